/** What a CNI plugin does for a pod: its network namespace, its address, the cable to its node. */
import { ipBatch } from '../netns/exec.ts';
import { podInterface, podMacs } from '../netns/names.ts';

/** VXLAN over IPv4 adds 50 bytes to the underlay's 1500. */
const POD_MTU = 1450;
/** Every pod's gateway: a link-local address that no one has; a permanent neighbour entry leads it to the host's end. */
const GATEWAY = '169.254.1.1';
const GATEWAY6 = 'fe80::1';

export interface PodNetwork {
  readonly podNamespace: string;
  readonly nodeNamespace: string;
  readonly interface: string;
  readonly ip: string;
  readonly ipv6: string | undefined;
  readonly hostMac: string;
  readonly podMac: string;
}

export function planPodNetwork(params: {
  id: string;
  ip: string;
  ipv6?: string | undefined;
  podNamespace: string;
  nodeNamespace: string;
}): PodNetwork {
  const macs = podMacs(params.ip);
  return {
    podNamespace: params.podNamespace,
    nodeNamespace: params.nodeNamespace,
    interface: podInterface(params.id),
    ip: params.ip,
    ipv6: params.ipv6,
    hostMac: macs.host,
    podMac: macs.pod,
  };
}

/** All of it or nothing. A namespace that is there already is somebody else's: it is left alone, and that is an error. */
export async function addPodNetwork(net: PodNetwork): Promise<void> {
  await ipBatch('making a pod namespace', [`netns add ${net.podNamespace}`]);
  try {
    await connectPod(net);
  } catch (error) {
    await removePodNetwork(net).catch(() => {});
    throw error;
  }
}

async function connectPod(net: PodNetwork): Promise<void> {
  await ipBatch(`making the cable of ${net.podNamespace}`, [
    `link add eth0 address ${net.podMac} mtu ${POD_MTU} netns ${net.podNamespace} type veth peer name ${net.interface} address ${net.hostMac} mtu ${POD_MTU} netns ${net.nodeNamespace}`,
  ]);
  // Both to their end, whatever comes of the other: what is taken back after a failure must not be half way.
  const ends = await Promise.allSettled([
    ipBatch(
      `addressing ${net.podNamespace}`,
      [
        'link set lo up',
        'link set eth0 addrgenmode none',
        `addr add ${net.ip}/32 dev eth0`,
        'link set eth0 up',
        `route add ${GATEWAY} dev eth0`,
        `neigh add ${GATEWAY} lladdr ${net.hostMac} dev eth0 nud permanent`,
        `route add default via ${GATEWAY}`,
        ...(net.ipv6 === undefined
          ? []
          : [
              `addr add ${net.ipv6}/128 dev eth0 nodad`,
              `neigh add ${GATEWAY6} lladdr ${net.hostMac} dev eth0 nud permanent`,
              `route add default via ${GATEWAY6} dev eth0`,
            ]),
      ],
      net.podNamespace,
    ),
    ipBatch(
      `connecting ${net.podNamespace} to ${net.nodeNamespace}`,
      [
        `link set ${net.interface} addrgenmode none`,
        `link set ${net.interface} up`,
        `route add ${net.ip}/32 dev ${net.interface}`,
        `neigh add ${net.ip} lladdr ${net.podMac} dev ${net.interface} nud permanent`,
        ...(net.ipv6 === undefined
          ? []
          : [
              `route add ${net.ipv6}/128 dev ${net.interface}`,
              `neigh add ${net.ipv6} lladdr ${net.podMac} dev ${net.interface} nud permanent`,
            ]),
      ],
      net.nodeNamespace,
    ),
  ]);
  for (const end of ends) if (end.status === 'rejected') throw end.reason;
}

/** The cable first: a namespace is destroyed in the background, and its end of the cable would linger with it. */
export async function removePodNetwork(net: PodNetwork): Promise<void> {
  await ipBatch('unplugging a pod', [`link del ${net.interface}`], net.nodeNamespace).catch(ignoreMissing);
  await ipBatch('removing a pod namespace', [`netns del ${net.podNamespace}`]).catch(ignoreMissing);
}

/** Half-made networks are removed too, and removing the missing is success. */
function ignoreMissing(error: unknown): void {
  const text = error instanceof Error ? error.message : '';
  if (!/Cannot find device|No such file|does not exist|Cannot open network namespace/.test(text)) throw error;
}
