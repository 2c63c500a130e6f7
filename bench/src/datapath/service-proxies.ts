/**
 * The same services as kube-proxy would program them, in its two modes: all rules that a forwarded packet meets on a node whose services
 * are ClusterIPs with one endpoint each, as kube-proxy 1.32 and later write them. Named beside them is the function of kubernetes/kubernetes
 * that does; where none is, it is syncProxyRules() of that mode's proxier.go. Chains for what only the node itself sends or receives are
 * there as far as they hang on these.
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

/** largeClusterEndpointsThreshold: with more endpoints, kube-proxy leaves comments out where they only explain. */
const LARGE = 1000;

const commented = (text: string): string => `-m comment --comment "${text}"`;

/** pkg/proxy/iptables/proxier.go. */
function iptablesRules(podCidr: string, services: readonly PlannedService[]): string {
  const id = (i: number): string => i.toString(36).toUpperCase().padStart(16, '0');
  const name = (i: number): string => `default/service-${i}:http`;
  /** appendServiceCommentLocked() */
  const explained = (text: string): string => (services.length > LARGE ? '' : `${commented(text)} `);
  const toService = ({ ip, port }: PlannedService, i: number): string =>
    `${commented(`${name(i)} cluster IP`)} -m tcp -p tcp -d ${ip} --dport ${port}`;
  const chains = services.flatMap((_, i) => [`:KUBE-SVC-${id(i)} - [0:0]`, `:KUBE-SEP-${id(i)} - [0:0]`]);
  const dispatch = services.map((one, i) => `-A KUBE-SERVICES ${toService(one, i)} -j KUBE-SVC-${id(i)}`);
  // writeServiceToEndpointRules(), and the endpoints' own chains
  const bodies = services.flatMap((one, i) => {
    const endpoint = `${one.backend.ip}:${one.backend.port}`;
    return [
      `-A KUBE-SVC-${id(i)} ${toService(one, i)} ! -s ${podCidr} -j KUBE-MARK-MASQ`,
      `-A KUBE-SVC-${id(i)} ${explained(`${name(i)} -> ${endpoint}`)}-j KUBE-SEP-${id(i)}`,
      `-A KUBE-SEP-${id(i)} ${explained(name(i))}-s ${one.backend.ip} -j KUBE-MARK-MASQ`,
      `-A KUBE-SEP-${id(i)} ${explained(name(i))}-m tcp -p tcp -j DNAT --to-destination ${endpoint}`,
    ];
  });
  const portals = commented('kubernetes service portals');
  const isNew = '-m conntrack --ctstate NEW';
  return `${[
    '*filter',
    ':INPUT ACCEPT [0:0]',
    ':FORWARD ACCEPT [0:0]',
    ':OUTPUT ACCEPT [0:0]',
    ':KUBE-SERVICES - [0:0]',
    ':KUBE-EXTERNAL-SERVICES - [0:0]',
    ':KUBE-FORWARD - [0:0]',
    ':KUBE-NODEPORTS - [0:0]',
    ':KUBE-PROXY-FIREWALL - [0:0]',
    // iptablesJumpChains, each put before those that are there
    `-A FORWARD ${isNew} ${commented('kubernetes load balancer firewall')} -j KUBE-PROXY-FIREWALL`,
    `-A FORWARD ${commented('kubernetes forwarding rules')} -j KUBE-FORWARD`,
    `-A FORWARD ${isNew} ${portals} -j KUBE-SERVICES`,
    `-A FORWARD ${isNew} ${commented('kubernetes externally-visible service portals')} -j KUBE-EXTERNAL-SERVICES`,
    '-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP',
    `-A KUBE-FORWARD ${commented('kubernetes forwarding rules')} -m mark --mark 0x4000/0x4000 -j ACCEPT`,
    `-A KUBE-FORWARD ${commented('kubernetes forwarding conntrack rule')} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT`,
    'COMMIT',
    '*nat',
    ':PREROUTING ACCEPT [0:0]',
    ':OUTPUT ACCEPT [0:0]',
    ':POSTROUTING ACCEPT [0:0]',
    ':KUBE-SERVICES - [0:0]',
    ':KUBE-NODEPORTS - [0:0]',
    ':KUBE-POSTROUTING - [0:0]',
    ':KUBE-MARK-MASQ - [0:0]',
    ...chains,
    `-A PREROUTING ${portals} -j KUBE-SERVICES`,
    `-A OUTPUT ${portals} -j KUBE-SERVICES`,
    `-A POSTROUTING ${commented('kubernetes postrouting rules')} -j KUBE-POSTROUTING`,
    '-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN',
    '-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000',
    `-A KUBE-POSTROUTING ${commented('kubernetes service traffic requiring SNAT')} -j MASQUERADE --random-fully`,
    '-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000',
    ...dispatch,
    `-A KUBE-SERVICES ${commented('kubernetes service nodeports; NOTE: this must be the last rule in this chain')} -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS`,
    ...bodies,
    'COMMIT',
  ].join('\n')}\n`;
}

/**
 * `legacy`: the faster packet walk of the two that iptables has. `nft`: what iptables is by default on Debian and Ubuntu since 2019 and 2020,
 * and so what kube-proxy's image takes there.
 */
export const programIptables = (
  node: ProxyNode,
  services: readonly PlannedService[],
  backEnd: 'legacy' | 'nft' = 'legacy',
): void => feed(node, iptablesRules(node.podCidr, services), `iptables-${backEnd}-restore`);

/** pkg/proxy/nftables/proxier.go. */
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
  const serviceMap = 'type ipv4_addr . inet_proto . inet_service : verdict';
  const nodePortMap = 'type inet_proto . inet_service : verdict';
  const rules = [
    'table ip kube-proxy {}',
    'flush table ip kube-proxy',
    'delete table ip kube-proxy',
    'table ip kube-proxy {',
    'chain mark-for-masquerade { mark set mark or 0x4000; }',
    ...bodies,
    `map service-ips { ${serviceMap}`,
    `  elements = { ${elements.join(',\n')} }`,
    '}',
    // setupNFTables()
    `set cluster-ips { type ipv4_addr; elements = { ${services.map(({ ip }) => ip).join(', ')} } }`,
    `map service-nodeports { ${nodePortMap}; }`,
    `map no-endpoint-services { ${serviceMap}; }`,
    `map firewall-ips { ${serviceMap}; }`,
    'chain services {',
    '  ip daddr . meta l4proto . th dport vmap @service-ips',
    '  fib daddr type local ip daddr != 127.0.0.0/8 meta l4proto . th dport vmap @service-nodeports',
    '}',
    'chain firewall-check { ip daddr . meta l4proto . th dport vmap @firewall-ips; }',
    'chain service-endpoints-check { ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }',
    'chain cluster-ips-check { ip daddr @cluster-ips reject; }',
    'chain masquerading { mark and 0x4000 == 0 return; mark set mark xor 0x4000; masquerade fully-random; }',
    // nftablesBaseChains and nftablesJumpChains
    'chain filter-prerouting { type filter hook prerouting priority dstnat - 10; ct state new jump firewall-check; }',
    'chain filter-forward { type filter hook forward priority -110;',
    '  ct state new jump service-endpoints-check; ct state new jump cluster-ips-check; }',
    'chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }',
    'chain nat-output { type nat hook output priority -100; jump services; }',
    'chain nat-postrouting { type nat hook postrouting priority srcnat; jump masquerading; }',
    '}',
  ];
  feed(node, rules.join('\n'), 'nft', '-f', '-');
}
