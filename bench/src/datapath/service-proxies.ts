/**
 * The same services as kube-proxy would program them, in its two modes. The rules follow what kube-proxy 1.33 writes for a
 * ClusterIP service with one endpoint (pkg/proxy/iptables/proxier.go, pkg/proxy/nftables/proxier.go), without node ports.
 */
import { execFileSync } from 'node:child_process';
import { netnsPath } from '@clustermesh/agent/testing/sandbox';
import type { ProxyNode } from './kernel-paths.ts';

export interface PlannedService {
  readonly ip: string;
  readonly port: number;
  readonly backend: { readonly ip: string; readonly port: number };
}

/**
 * The same at every size: connection tracking remembers closed connections by their addresses, and new ones through another service
 * to the same backend would stand in their way.
 */
export const MEASURED_IP = '10.97.0.1';

/** `n` services. The one in the middle is measured and leads to `backend`, the others lead to addresses that nobody has. */
export function planServices(n: number, backend: PlannedService['backend']) {
  const services = Array.from({ length: n }, (_, i): PlannedService => {
    const tail = `${(i >> 8) & 255}.${i & 255}`;
    if (i === n >> 1) return { ip: MEASURED_IP, port: 80, backend };
    return { ip: `10.96.${tail}`, port: 80, backend: { ip: `10.200.${tail}`, port: 8080 } };
  });
  return { services, measured: services[n >> 1]! };
}

/** Loads rules given on stdin, inside the node's namespace. */
function feed(node: ProxyNode, rules: string, program: string, ...args: string[]): void {
  execFileSync('nsenter', [`--net=${netnsPath(node.netns)}`, program, ...args], {
    input: rules,
    stdio: ['pipe', 'ignore', 'pipe'],
    maxBuffer: 64 << 20,
  });
}

/** The legacy back end: its packet walk is the faster one of the two that iptables has. */
export function programIptables(node: ProxyNode, services: readonly PlannedService[]): void {
  const id = (i: number): string => i.toString(36).toUpperCase().padStart(16, '0');
  const chains = services.flatMap((_, i) => [`:KUBE-SVC-${id(i)} - [0:0]`, `:KUBE-SEP-${id(i)} - [0:0]`]);
  const dispatch = services.map(
    ({ ip, port }, i) => `-A KUBE-SERVICES -d ${ip}/32 -p tcp -m tcp --dport ${port} -j KUBE-SVC-${id(i)}`,
  );
  const bodies = services.flatMap(({ ip, port, backend }, i) => [
    `-A KUBE-SVC-${id(i)} ! -s ${node.podCidr} -d ${ip}/32 -p tcp -m tcp --dport ${port} -j KUBE-MARK-MASQ`,
    `-A KUBE-SVC-${id(i)} -j KUBE-SEP-${id(i)}`,
    `-A KUBE-SEP-${id(i)} -s ${backend.ip}/32 -j KUBE-MARK-MASQ`,
    `-A KUBE-SEP-${id(i)} -p tcp -m tcp -j DNAT --to-destination ${backend.ip}:${backend.port}`,
  ]);
  const rules = [
    '*nat',
    ':PREROUTING ACCEPT [0:0]',
    ':OUTPUT ACCEPT [0:0]',
    ':POSTROUTING ACCEPT [0:0]',
    ':KUBE-SERVICES - [0:0]',
    ':KUBE-POSTROUTING - [0:0]',
    ':KUBE-MARK-MASQ - [0:0]',
    ...chains,
    '-A PREROUTING -j KUBE-SERVICES',
    '-A OUTPUT -j KUBE-SERVICES',
    '-A POSTROUTING -j KUBE-POSTROUTING',
    '-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN',
    '-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000',
    '-A KUBE-POSTROUTING -j MASQUERADE --random-fully',
    '-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000',
    ...dispatch,
    ...bodies,
    'COMMIT',
  ];
  feed(node, `${rules.join('\n')}\n`, 'iptables-legacy-restore');
}

export function programNftables(node: ProxyNode, services: readonly PlannedService[]): void {
  const bodies = services.flatMap(({ ip, port, backend }, i) => [
    `chain endpoint-${i} {`,
    `  ip saddr ${backend.ip} jump mark-for-masquerade`,
    `  meta l4proto tcp dnat to ${backend.ip}:${backend.port}`,
    '}',
    `chain service-${i} {`,
    `  ip daddr ${ip} tcp dport ${port} ip saddr != ${node.podCidr} jump mark-for-masquerade`,
    `  numgen random mod 1 vmap { 0 : goto endpoint-${i} }`,
    '}',
  ]);
  const elements = services.map(({ ip, port }, i) => `${ip} . tcp . ${port} : goto service-${i}`);
  const rules = [
    'table ip kube-proxy {}',
    'flush table ip kube-proxy',
    'delete table ip kube-proxy',
    'table ip kube-proxy {',
    'chain mark-for-masquerade { mark set mark or 0x4000; }',
    ...bodies,
    'map service-ips {',
    '  type ipv4_addr . inet_proto . inet_service : verdict',
    `  elements = { ${elements.join(',\n')} }`,
    '}',
    'chain services { ip daddr . meta l4proto . th dport vmap @service-ips; }',
    'chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }',
    'chain nat-output { type nat hook output priority -100; jump services; }',
    'chain masquerading { mark and 0x4000 == 0 return; mark set mark xor 0x4000; masquerade fully-random; }',
    'chain nat-postrouting { type nat hook postrouting priority srcnat; jump masquerading; }',
    '}',
  ];
  feed(node, rules.join('\n'), 'nft', '-f', '-');
}
