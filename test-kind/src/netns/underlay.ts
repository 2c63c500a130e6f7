/**
 * The physical network, so to speak: one router with a bridge per cluster, a host for each control plane, one per node.
 *
 *                 cm-<i>-wan   172.31.<id>.1 on br-<id>, one bridge per cluster, forwarding between them
 *      ┌───────────────┬──────┴────────┬──────────────┐
 *   <c>-cp .2       <c>-n1 .11      <c>-n2 .12      the next cluster's …
 *
 * With IPv6, the same numbers end fd31:<id>::.
 *
 * Nothing is made in the root namespace: veth pairs are created with both ends in their final place.
 */
import type { LabCluster, LabNode, Topology } from '../topology.ts';
import { inNamespace, ipBatch, run } from './exec.ts';
import { controlPlaneNamespace, nodeNamespace, wanNamespace } from './names.ts';
import { type Partition, partitionRules } from './partition.ts';

interface Host {
  readonly namespace: string;
  readonly ip: string;
  /** The end of its cable in the router's namespace. */
  readonly port: string;
}

function hostsOf(instance: string, cluster: LabCluster): Host[] {
  const hosts = [
    { namespace: controlPlaneNamespace(instance, cluster.name), ip: cluster.controlPlaneIP },
    ...cluster.nodes.map((node) => ({ namespace: nodeNamespace(instance, cluster.name, node.name), ip: node.ip })),
  ];
  return hosts.map((host, index) => ({ ...host, port: `p${cluster.id}-${index}` }));
}

/** Forwarding is per namespace; rp_filter would drop packets whose way back leads through a tunnel. */
async function enableForwarding(namespace: string, hasIpv6: boolean): Promise<void> {
  const script =
    'cd /proc/sys/net && echo 1 >ipv4/ip_forward && echo 0 >ipv4/conf/all/rp_filter && echo 0 >ipv4/conf/default/rp_filter';
  const whole = hasIpv6 ? `${script} && echo 1 >ipv6/conf/all/forwarding` : script;
  const [command, ...args] = inNamespace(namespace, ['sh', '-c', whole]);
  await run(`enabling forwarding in ${namespace}`, command!, args);
}

export async function buildUnderlay(instance: string, topology: Topology): Promise<void> {
  const wan = wanNamespace(instance);
  const hosts = new Map(topology.clusters.map((cluster) => [cluster, hostsOf(instance, cluster)]));
  const all = [...hosts.values()].flat();
  await ipBatch(`making the namespaces of instance ${instance}`, [
    `netns add ${wan}`,
    ...all.map((host) => `netns add ${host.namespace}`),
    ...all.map((host) => `link add eth0 netns ${host.namespace} type veth peer name ${host.port} netns ${wan}`),
  ]);
  const routerLines = topology.clusters.flatMap((cluster) => [
    `link add br-${cluster.id} type bridge forward_delay 0`,
    `link set br-${cluster.id} addrgenmode none`,
    `addr add ${cluster.routerIP}/24 dev br-${cluster.id}`,
    ...ipv6Lines(cluster.ipv6?.routerIP, `br-${cluster.id}`),
    `link set br-${cluster.id} up`,
    ...hosts
      .get(cluster)!
      .flatMap((host) => [
        `link set ${host.port} addrgenmode none`,
        `link set ${host.port} master br-${cluster.id}`,
        `link set ${host.port} up`,
      ]),
  ]);
  const router = async () => {
    await ipBatch('setting up the router', ['link set lo up', ...routerLines], wan);
    await enableForwarding(
      wan,
      topology.clusters.some(({ ipv6 }) => ipv6 !== undefined),
    );
    await applyPartitions(instance, topology, []);
  };
  const nodes = topology.clusters.flatMap((cluster) =>
    hosts.get(cluster)!.map(async (host, index) => {
      const node = index === 0 ? undefined : cluster.nodes[index - 1];
      await ipBatch(
        `addressing ${host.namespace}`,
        [
          'link set lo up',
          'link set eth0 addrgenmode none',
          `addr add ${host.ip}/24 dev eth0`,
          'link set eth0 up',
          `route add default via ${cluster.routerIP}`,
          ...(node === undefined ? [] : nodeLines(node, cluster)),
        ],
        host.namespace,
      );
      if (node !== undefined) await enableForwarding(host.namespace, node.ipv6 !== undefined);
    }),
  );
  await Promise.all([router(), ...nodes]);
}

/**
 * The pods' gateway is an address of the node itself. Pods have a route of their own each, so what is left of the pod CIDR is
 * nobody's: say so by ICMP instead of sending it out of the default route.
 */
function nodeLines({ gatewayIP, podCIDR, ipv6 }: LabNode, cluster: LabCluster): string[] {
  const lines = [`addr add ${gatewayIP}/32 dev lo`, `route add unreachable ${podCIDR} metric 4096`];
  if (ipv6 === undefined || cluster.ipv6 === undefined) return lines;
  return [
    ...lines,
    ...ipv6Lines(ipv6.ip, 'eth0'),
    `route add default via ${cluster.ipv6.routerIP}`,
    `addr add ${ipv6.gatewayIP}/128 dev lo`,
    `route add unreachable ${ipv6.podCIDR} metric 4096`,
  ];
}

/** Neighbours are asked for from a link-local address, which the kernel does not make by itself here: one that ends alike. */
function ipv6Lines(ip: string | undefined, device: string): string[] {
  if (ip === undefined) return [];
  const linkLocal = `fe80::${ip.split('::')[1]}`;
  return [`addr add ${ip}/64 dev ${device} nodad`, `addr add ${linkLocal}/64 dev ${device} nodad`];
}

/** Replaces the router's drop rules with those of `partitions`, in one transaction. */
export async function applyPartitions(
  instance: string,
  topology: Topology,
  partitions: readonly Partition[],
): Promise<void> {
  const wan = wanNamespace(instance);
  const [command, ...args] = inNamespace(wan, ['nft', '-f', '-']);
  await run('setting the drop rules of the router', command!, args, { input: partitionRules(topology, partitions) });
}
