/**
 * Two nodes of two clusters on one wire, as the lab would build them, each with a process that runs its datapath.
 *
 *   n1 (cluster 1) eth0 172.31.0.1, fd31::1 ── eth0 172.31.0.2, fd31::2 n2 (cluster 2)
 *    ├─ a 10.1.1.5  fd00:1:1::5                ├─ c 10.2.1.5  fd00:2:1::5
 *    └─ b 10.1.1.6  fd00:1:1::6                └─ d 10.2.1.6  fd00:2:1::6, by IPv6 over the IPv6 underlay
 *
 *   x, a host of the world: 203.0.113.7, 2001:db8:7::7; eth1 of n1 and eth1 of n2 lead to it, and it has 192.0.2.0/24 and
 *   2001:db8:1::/64 behind n1
 */
import type { DatapathConfig, EndpointRow, IpcacheRow, ServiceRow } from '../types.ts';
import { type Remote, startRemote } from './remote.ts';
import { openSandbox, type Sandbox, sh, shIn } from './sandbox.ts';

export type NodeName = 'n1' | 'n2';
export type PodName = 'a' | 'b' | 'c' | 'd';

export interface Pod {
  netns: string;
  endpoint: EndpointRow;
  /** The same pod by its IPv6 address. */
  endpoint6: EndpointRow;
  /** A process under socket load balancing. */
  inside: Remote;
}

export interface Node {
  name: NodeName;
  clusterId: number;
  netns: string;
  cgroup: string;
  config: DatapathConfig;
  pods: Pod[];
  datapath: Remote;
}

export interface TwoNodes {
  sandbox: Sandbox;
  nodes: Record<NodeName, Node>;
  pods: Record<PodName, Pod>;
  /** A process of the host of the world. */
  world: Remote;
  /** A process in this pod's namespace that socket load balancing does not see. */
  outsider(pod: Pod): Promise<Remote>;
  setServices(rows: ServiceRow[]): Promise<void>;
  /** Starts the node's datapath process anew (the old one must have ended). */
  restart(node: Node): Promise<void>;
  /** From now on, pods of the other node with these numbers (all: and whatever lies in its pod CIDRs) are reached without the tunnel. */
  setDirect(directly: Directly): Promise<void>;
  close(): Promise<void>;
}

interface Directly {
  readonly pods: readonly number[];
  readonly all?: boolean;
}

const GATE = '169.254.1.1';
const GATE6 = 'fe80::1';

/** eth0's MAC inside, and the host end's. */
function macsOf(index: number, node: number): { podMac: string; hostMac: string } {
  const tail = `00:00:${node.toString(16).padStart(2, '0')}:${index.toString(16).padStart(2, '0')}`;
  return { podMac: `02:aa:${tail}`, hostMac: `02:bb:${tail}` };
}

function buildNode(sandbox: Sandbox, name: NodeName, n: number): Omit<Node, 'pods' | 'datapath'> {
  const netns = sandbox.netns(name);
  const cgroup = sandbox.cgroup(name);
  for (const setting of [
    'net.ipv4.ip_forward=1',
    'net.ipv4.conf.all.rp_filter=0',
    'net.ipv4.conf.default.rp_filter=0',
    'net.ipv6.conf.all.forwarding=1',
  ]) {
    shIn(netns, 'sysctl', '-q', '-w', setting);
  }
  const config: DatapathConfig = {
    clusterId: n,
    clusterName: `c${n}`,
    identityShift: 16,
    nodeName: name,
    nodeIp: `172.31.0.${n}`,
    gatewayIp: `10.${n}.1.1`,
    podCidr: `10.${n}.1.0/24`,
    ipv6: { nodeIp: `fd31::${n}`, gatewayIp: `fd00:${n}:1::1`, podCidr: `fd00:${n}:1::/64` },
    bpffs: sandbox.bpffs,
    cgroup,
    vxlanDevice: 'cm_vxlan',
    uplinks: ['eth0', 'eth1'],
    hostToRemotePods: true,
  };
  sh('ip', '-n', netns, 'addr', 'add', `${config.gatewayIp}/32`, 'dev', 'lo');
  sh('ip', '-n', netns, 'addr', 'add', `${config.ipv6!.gatewayIp}/128`, 'dev', 'lo');
  return { name, clusterId: n, netns, cgroup, config };
}

/** What a CNI does for a pod, but for telling the agent. */
function buildPod(sandbox: Sandbox, node: { netns: string; clusterId: number }, name: PodName, index: number) {
  const netns = sandbox.netns(name);
  const { clusterId: n } = node;
  const endpoint: EndpointRow = {
    ip: `10.${n}.1.${4 + index}`,
    interface: `cmp-${name}`,
    ...macsOf(index, n),
    identity: (n << 16) + 300 + index,
    endpointId: index,
  };
  const endpoint6 = { ...endpoint, ip: `fd00:${n}:1::${4 + index}` };
  const { podMac, hostMac } = endpoint;
  const peer = ['type', 'veth', 'peer', 'name', 'eth0', 'address', podMac, 'mtu', '1450', 'netns', netns];
  sh('ip', '-n', node.netns, 'link', 'add', endpoint.interface, 'address', hostMac, 'mtu', '1450', ...peer);
  sh('ip', '-n', node.netns, 'link', 'set', endpoint.interface, 'up');
  sh('ip', '-n', node.netns, 'route', 'add', `${endpoint.ip}/32`, 'dev', endpoint.interface);
  const neighbour = (ip: string, mac: string, dev: string) => [
    'neigh',
    'replace',
    ip,
    'lladdr',
    mac,
    'dev',
    dev,
    'nud',
    'permanent',
  ];
  sh('ip', '-n', node.netns, 'route', 'add', `${endpoint6.ip}/128`, 'dev', endpoint.interface);
  for (const { ip } of [endpoint, endpoint6]) {
    sh('ip', '-n', node.netns, ...neighbour(ip, podMac, endpoint.interface));
  }
  sh('ip', '-n', netns, 'addr', 'add', `${endpoint.ip}/32`, 'dev', 'eth0');
  sh('ip', '-n', netns, 'addr', 'add', `${endpoint6.ip}/128`, 'dev', 'eth0', 'nodad');
  sh('ip', '-n', netns, 'link', 'set', 'eth0', 'up');
  sh('ip', '-n', netns, 'route', 'add', GATE, 'dev', 'eth0');
  for (const gate of [GATE, GATE6]) {
    sh('ip', '-n', netns, 'route', 'add', 'default', 'via', gate, 'dev', 'eth0');
    sh('ip', '-n', netns, ...neighbour(gate, hostMac, 'eth0'));
  }
  return { netns, endpoint, endpoint6 };
}

export const WORLD = { ip: '203.0.113.7', ip6: '2001:db8:7::7' };

/** A host on a link of its own with each node, reached and reaching by that. */
function buildWorld(
  sandbox: Sandbox,
  nodes: readonly { netns: string; clusterId: number; config: DatapathConfig }[],
): string {
  const netns = sandbox.netns('x');
  sh('ip', '-n', netns, 'addr', 'add', `${WORLD.ip}/32`, 'dev', 'lo');
  sh('ip', '-n', netns, 'addr', 'add', `${WORLD.ip6}/128`, 'dev', 'lo', 'nodad');
  for (const { netns: node, clusterId: n, config } of nodes) {
    const dev = `n${n}`;
    sh('ip', '-n', node, 'link', 'add', 'eth1', 'type', 'veth', 'peer', 'name', dev, 'netns', netns);
    for (const [where, device, host] of [
      [node, 'eth1', 1],
      [netns, dev, 2],
    ] as const) {
      sh('ip', '-n', where, 'addr', 'add', `198.51.10${n}.${host}/24`, 'dev', device);
      sh('ip', '-n', where, 'addr', 'add', `fd51:${n}::${host}/64`, 'dev', device, 'nodad');
      sh('ip', '-n', where, 'link', 'set', device, 'up');
    }
    const routes = (where: string, host: number, src: readonly string[], ...to: string[]) => {
      for (const prefix of to) {
        const [via, from] = prefix.includes(':') ? [`fd51:${n}::${host}`, src[1]!] : [`198.51.10${n}.${host}`, src[0]!];
        sh('ip', '-n', where, 'route', 'add', prefix, 'via', via, 'src', from);
      }
    };
    const own = [config.nodeIp, config.ipv6!.nodeIp!];
    routes(node, 2, own, `${WORLD.ip}/32`, `${WORLD.ip6}/128`);
    const behind = n === 1 ? ['192.0.2.0/24', '2001:db8:1::/64'] : [];
    routes(netns, 1, [WORLD.ip, WORLD.ip6], `${own[0]}/32`, `${own[1]}/128`, ...behind);
  }
  return netns;
}

const startDatapath = (node: { netns: string; config: DatapathConfig }): Promise<Remote> =>
  startRemote({ script: 'node-process.ts', netns: node.netns, args: [JSON.stringify(node.config)] });

/** `settings`: of both nodes, beside those of the picture. */
export async function openTwoNodes(prefix?: string, settings: Partial<DatapathConfig> = {}): Promise<TwoNodes> {
  const sandbox = await openSandbox(prefix);
  const started: Remote[] = [];
  const start = async (remote: Promise<Remote>): Promise<Remote> => {
    started.push(await remote);
    return remote;
  };

  async function close(): Promise<void> {
    for (const remote of started.splice(0)) await remote.kill();
    await sandbox.close();
  }

  async function nodeWith(built: ReturnType<typeof buildNode>, names: PodName[]): Promise<Node> {
    const datapath = start(startDatapath(built));
    const pods = names.map(async (name, i) => {
      const pod = buildPod(sandbox, built, name, i + 1);
      return { ...pod, inside: await start(startRemote({ script: 'pod-process.ts', ...pod, cgroup: built.cgroup })) };
    });
    const node = { ...built, pods: await Promise.all(pods), datapath: await datapath };
    for (const { endpoint, endpoint6 } of node.pods) {
      await node.datapath.call('attach', endpoint);
      await node.datapath.call('attach', endpoint6);
    }
    return node;
  }

  /** Everything about the other node that the agents would learn through the mesh. */
  async function introduce(node: Node, other: Node, direct: Directly = { pods: [] }): Promise<void> {
    const { clusterId, config } = other;
    const remote = { clusterId, tunnelEndpoint: config.nodeIp, encryptKey: 0 };
    const addresses = [config.nodeIp, config.ipv6!.nodeIp!];
    const nodes = addresses.map((ip) => ({ ip, clusterId, nodeId: clusterId }));
    await node.datapath.call('update', { table: 'nodes', rows: nodes });
    const rows: IpcacheRow[] = other.pods.flatMap(({ endpoint, endpoint6 }, i) => {
      const row = {
        ...remote,
        identity: endpoint.identity,
        ...(direct.pods.includes(i) ? { direct: true as const } : {}),
      };
      return [
        { ...row, prefix: `${endpoint.ip}/32` },
        { ...row, prefix: `${endpoint6.ip}/128`, tunnelEndpoint: addresses[i % 2]! },
      ];
    });
    const gateways = [`${config.gatewayIp}/32`, `${config.ipv6!.gatewayIp}/128`];
    rows.push(...gateways.map((prefix) => ({ ...remote, prefix, identity: 6 })));
    [config.podCidr, config.ipv6!.podCidr].forEach((prefix, family) => {
      const net = { ...remote, prefix, identity: 2 };
      rows.push(direct.all ? { ...net, direct: true, tunnelEndpoint: addresses[family]! } : net);
    });
    await node.datapath.call('update', { table: 'ipcache', rows });
  }

  try {
    const built = [buildNode(sandbox, 'n1', 1), buildNode(sandbox, 'n2', 2)] as const;
    for (const { config } of built) Object.assign(config, settings);
    const wire = ['type', 'veth', 'peer', 'name', 'eth0', 'netns', built[1].netns];
    sh('ip', '-n', built[0].netns, 'link', 'add', 'eth0', ...wire);
    for (const { netns, config } of built) {
      sh('ip', '-n', netns, 'addr', 'add', `${config.nodeIp}/24`, 'dev', 'eth0');
      sh('ip', '-n', netns, 'addr', 'add', `${config.ipv6!.nodeIp}/64`, 'dev', 'eth0', 'nodad');
      sh('ip', '-n', netns, 'link', 'set', 'eth0', 'up');
    }
    const world = await start(startRemote({ script: 'pod-process.ts', netns: buildWorld(sandbox, built) }));
    const [n1, n2] = await Promise.all([nodeWith(built[0], ['a', 'b']), nodeWith(built[1], ['c', 'd'])]);
    await introduce(n1, n2);
    await introduce(n2, n1);
    const [a, b] = n1.pods as [Pod, Pod];
    const [c, d] = n2.pods as [Pod, Pod];
    return {
      sandbox,
      nodes: { n1, n2 },
      pods: { a, b, c, d },
      world,
      outsider: (pod) => start(startRemote({ script: 'pod-process.ts', netns: pod.netns })),
      async setServices(rows) {
        for (const node of [n1, n2]) await node.datapath.call('update', { table: 'services', rows });
      },
      async restart(node) {
        node.datapath = await start(startDatapath(node));
      },
      async setDirect(directly) {
        await introduce(n1, n2, directly);
        await introduce(n2, n1, directly);
      },
      close,
    };
  } catch (error) {
    await close();
    throw error;
  }
}
