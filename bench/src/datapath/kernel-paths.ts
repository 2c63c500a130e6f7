/**
 * What the datapath is compared with, built from the kernel's own parts.
 *
 * Beside the pods' eth0, whose host end carries our programs, the same pods get an eth1 whose host end carries nothing, with an
 * address for each way across:
 *
 *   pod ─ eth0 10.1.1.5   ─ our programs ─ cm_vxlan ═══ our programs ─ eth0 of the node
 *       └ eth1 10.101.1.5 ─ routing ────── kernel VXLAN ══════════════ kwire
 *              10.102.1.5 ─ routing ────────────────────────────────── kwire
 *
 * kwire is to the other node what eth0 is, but for our programs, which look at all that passes an uplink.
 *
 * The rules of a service proxy weigh on all packets of their namespace, so each proxy has a node and two pods of its own.
 */
import { type Sandbox, sh, shIn } from '@clustermesh/agent/testing/sandbox';
import type { Node, TwoNodes } from '@clustermesh/agent/testing/two-nodes';
import type { Place } from './load.ts';

const GATE = '169.254.1.2';
/** As our pods': room for the VXLAN header. */
const MTU = '1450';
/** A node's end of the wire that carries no programs. */
const WIRE = 'kwire';
const wireIp = (node: number): string => `10.104.0.${node}`;

/** 101: through the kernel's VXLAN, 102: routed. */
const viaVxlan = (node: number, pod: number): string => `10.101.${node}.${4 + pod}`;
const viaRoute = (node: number, pod: number): string => `10.102.${node}.${4 + pod}`;

interface PlainPod {
  readonly node: string;
  readonly netns: string;
  /** Inside the pod. */
  readonly device: string;
  readonly hostDevice: string;
  readonly ips: readonly string[];
}

/** A veth of the same make as our pods', without programs. */
function addPlainVeth({ node, netns, device, hostDevice, ips }: PlainPod): void {
  const peer = ['type', 'veth', 'peer', 'name', device, 'mtu', MTU, 'netns', netns];
  sh('ip', '-n', node, 'link', 'add', hostDevice, 'mtu', MTU, ...peer);
  sh('ip', '-n', node, 'link', 'set', hostDevice, 'up');
  sh('ip', '-n', netns, 'link', 'set', device, 'up');
  sh('ip', '-n', node, 'addr', 'add', `${GATE}/32`, 'dev', hostDevice);
  sh('ip', '-n', netns, 'route', 'add', GATE, 'dev', device);
  for (const ip of ips) {
    sh('ip', '-n', node, 'route', 'add', `${ip}/32`, 'dev', hostDevice);
    sh('ip', '-n', netns, 'addr', 'add', `${ip}/32`, 'dev', device);
    const net = ip.replace(/^(\d+\.\d+)\..*/, '$1.0.0/16');
    sh('ip', '-n', netns, 'route', 'add', net, 'via', GATE, 'dev', device, 'src', ip);
  }
}

export interface KernelPaths {
  /** Address of pod `index` (1 or 2) of a node, by way. */
  readonly viaVxlan: typeof viaVxlan;
  readonly viaRoute: typeof viaRoute;
}

/** Second ways between the pods of two nodes, through kernel VXLAN and plainly routed. */
export function addKernelPaths({ nodes: { n1, n2 } }: TwoNodes): KernelPaths {
  sh('ip', '-n', n1.netns, 'link', 'add', WIRE, 'type', 'veth', 'peer', 'name', WIRE, 'netns', n2.netns);
  for (const { netns, clusterId } of [n1, n2]) {
    sh('ip', '-n', netns, 'addr', 'add', `${wireIp(clusterId)}/24`, 'dev', WIRE);
    sh('ip', '-n', netns, 'link', 'set', WIRE, 'up');
  }
  const across = (node: Node, other: Node): void => {
    const n = node.clusterId;
    const m = other.clusterId;
    node.pods.forEach((pod, i) => {
      const ips = [viaVxlan(n, i + 1), viaRoute(n, i + 1)];
      addPlainVeth({ node: node.netns, netns: pod.netns, device: 'eth1', hostDevice: `plain${i + 1}`, ips });
    });
    // As ours: no checksum over the outer UDP packet, no learning.
    const between = ['local', wireIp(n), 'remote', wireIp(m), 'dev', WIRE, 'dstport', '4789'];
    sh('ip', '-n', node.netns, 'link', 'add', 'kvxlan', 'type', 'vxlan', 'id', '77', ...between, 'noudpcsum');
    sh('ip', '-n', node.netns, 'addr', 'add', `10.103.0.${n}/24`, 'dev', 'kvxlan');
    sh('ip', '-n', node.netns, 'link', 'set', 'kvxlan', 'up');
    sh('ip', '-n', node.netns, 'route', 'add', `10.101.${m}.0/24`, 'via', `10.103.0.${m}`, 'dev', 'kvxlan');
    sh('ip', '-n', node.netns, 'route', 'add', `10.102.${m}.0/24`, 'via', wireIp(m), 'dev', WIRE);
  };
  across(n1, n2);
  across(n2, n1);
  return { viaVxlan, viaRoute };
}

export interface ProxyNode {
  readonly netns: string;
  readonly client: Place;
  readonly server: Place;
  readonly serverIp: string;
  /** Pods of this node; what comes from elsewhere is masqueraded. */
  readonly podCidr: string;
}

/** A node with two pods, for the rules of a service proxy. */
export function addProxyNode(sandbox: Sandbox, name: string): ProxyNode {
  const node = sandbox.netns(name);
  for (const setting of ['net.ipv4.ip_forward=1', 'net.ipv4.conf.all.rp_filter=0', 'net.ipv4.conf.default.rp_filter=0'])
    shIn(node, 'sysctl', '-q', '-w', setting);
  const cgroup = sandbox.cgroup(name);
  const pod = (index: number): Place & { readonly ip: string } => {
    const netns = sandbox.netns(`${name}-${index}`);
    const ip = viaRoute(9, index);
    addPlainVeth({ node, netns, device: 'eth0', hostDevice: `pod${index}`, ips: [ip] });
    sh('ip', '-n', netns, 'route', 'add', 'default', 'via', GATE, 'dev', 'eth0');
    return { netns, cgroup, ip };
  };
  const client = pod(1);
  const server = pod(2);
  return { netns: node, client, server, serverIp: server.ip, podCidr: '10.102.0.0/16' };
}
