/** The programs' bodies under BPF_PROG_TEST_RUN, over maps of their own: see bpf/test/seam.bpf.c. Nothing is sent. */
import { type CmDecision, cmAddr } from '@clustermesh/bpf';
import * as libbpf from '../libbpf.ts';
import { type Loaded, loadPrograms } from '../loader.ts';
import { toFamily, toMac } from '../rows.ts';
import { openSandbox } from './sandbox.ts';

export const NODE = { nodeIp: '172.31.1.11', gatewayIp: '10.1.1.1', podCidr: '10.1.1.0/24' };
export const VXLAN_IFINDEX = 9;

/** What the kernel would tell a program. */
export interface Hook {
  readonly vni?: number;
  readonly remote?: string;
  readonly ifindex?: number;
}

export interface BenchPod {
  readonly ip: string;
  readonly ifindex: number;
  readonly identity: number;
}

export interface Ran {
  readonly verdict: number;
  readonly decision: CmDecision;
  readonly out: Buffer;
}

export interface PacketBench {
  readonly loaded: Loaded;
  run(program: string, packet: Buffer, hook: Hook): Ran;
  close(): Promise<void>;
}

const SKB_BYTES = 192;
const CB = 48;
const MARK = 8;

function context({ vni = 0, remote, ifindex = 0 }: Hook): Buffer {
  const skb = Buffer.alloc(SKB_BYTES);
  skb.writeUInt32LE(vni, CB);
  cmAddr.encode(remote ?? '::', skb, CB + 4);
  skb.writeUInt32LE(ifindex, MARK);
  return skb;
}

/** MACs are 02:aa:… inside a pod and 02:bb:… at its host end, ending in its ifindex. */
export const macsOf = ({ ifindex }: BenchPod) => {
  const tail = `00:00:00:${ifindex.toString(16).padStart(2, '0')}`;
  return { podMac: `02:aa:${tail}`, hostMac: `02:bb:${tail}` };
};

export async function openPacketBench({ pods }: { readonly pods: readonly BenchPod[] }): Promise<PacketBench> {
  const sandbox = await openSandbox();
  const loaded = loadPrograms({
    objects: ['seam'],
    pinDir: `${sandbox.bpffs}/packet-bench`,
    settings: {
      ipv4: toFamily(NODE),
      ipv6: toFamily(),
      vxlanIfindex: VXLAN_IFINDEX,
      identityShift: 16,
      underlayMtu: 0,
    },
  });
  await loaded.maps.cm_endpoints.update(
    pods.map((pod, i) => {
      const { podMac, hostMac } = macsOf(pod);
      const { ifindex, identity } = pod;
      return [pod.ip, { ifindex, identity, endpointId: i, podMac: toMac(podMac), hostMac: toMac(hostMac) }];
    }),
  );
  return {
    loaded,
    run(program, packet, hook) {
      const result = libbpf.testRun(loaded.programFd(program), { packet, context: context(hook) });
      return { verdict: result.verdict, decision: loaded.maps.cm_decisions.lookup(0)!, out: result.packet };
    },
    async close() {
      loaded.close();
      await sandbox.close();
    },
  };
}
