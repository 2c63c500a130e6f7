/** XDP is tc, earlier: whatever it does not pass on must be what tc makes of the same packet. */
import { CmAction } from '@clustermesh/bpf';
import { read } from './frames.ts';
import { NODE, NODE6, type Outcome, UPLINK, UPLINK_WORLD, XDP } from './packet-lab.ts';
import { macOfNode, UP_MAC } from './routed.ts';

const VXLAN_PORT = 8472;

export interface Encapsulated {
  readonly outer: ReturnType<typeof read>;
  readonly vni: number;
  /** What the other end takes out. */
  readonly inner: Buffer;
}

export function decapsulate(frame: Buffer): Encapsulated {
  const outer = read(frame);
  const vxlan = Buffer.from(outer.payload, 'latin1');
  if (outer.udp?.dport !== VXLAN_PORT || vxlan.readUInt32BE(0) !== 0x08000000) throw new Error('this is no VXLAN');
  return { outer, vni: vxlan.readUInt32BE(4) >>> 8, inner: vxlan.subarray(8) };
}

/** What is said of a packet that goes by the tunnel, but for what is in it. */
function wrongOutside(frame: Buffer, { decision }: Outcome): string | undefined {
  const { outer, vni, inner } = decapsulate(frame);
  const isV6 = decision.remote.includes(':');
  const [a, b] = isV6 ? decision.remote.split(':').slice(-2) : decision.remote.split('.').slice(-2);
  const expected = {
    saddr: isV6 ? NODE6 : NODE,
    daddr: decision.remote,
    srcMac: UP_MAC.up0,
    dstMac: macOfNode(Number(a), Number(b)),
    // Reckoned from the packet's own: what is wrong there is wrong here, and found out at the tunnel's other end.
    wrong: isV6 && read(inner).wrong.some((name) => name !== 'ip') ? ['udp'] : [],
    vni: decision.vni,
    hasChecksum: isV6, // UDP over IPv6 must have one (RFC 8200, 8.1)
    bytes: inner.length,
  };
  const { saddr, daddr, srcMac, dstMac, wrong } = outer;
  const hasChecksum = outer.udp?.checksum !== 'none';
  const got = { saddr, daddr, srcMac, dstMac, wrong, vni, hasChecksum, bytes: frame.length - (isV6 ? 70 : 50) };
  return JSON.stringify(got) === JSON.stringify(expected)
    ? undefined
    : `around it is ${JSON.stringify(got)} instead of ${JSON.stringify(expected)}`;
}

const SAME = ['action', 'reason', 'vni', 'remote', 'identity', 'serviceId', 'backendId'] as const;

/** The first difference; undefined: there is none. `frame`: as both got it. */
export function differsFromTc(frame: Buffer, xdp: Outcome, tc: Outcome, ifindex = UPLINK): string | undefined {
  if (xdp.verdict === XDP.pass) return xdp.out.equals(frame) ? undefined : 'passed on, but changed';
  for (const name of SAME)
    if (xdp.decision[name] !== tc.decision[name])
      return `${name} ${xdp.decision[name]} instead of ${tc.decision[name]}`;
  const { action, target } = xdp.decision;
  if (action === CmAction.DROP) return xdp.verdict === XDP.drop ? undefined : `verdict ${xdp.verdict} for a drop`;
  if (xdp.verdict !== (target === ifindex ? XDP.tx : XDP.redirect)) return `verdict ${xdp.verdict} towards ${target}`;
  if (action === CmAction.NETWORK) {
    if (target !== tc.decision.target) return `by interface ${target} instead of ${tc.decision.target}`;
    return xdp.out.equals(tc.out)
      ? undefined
      : `left as ${xdp.out.toString('hex')}, by tc as ${tc.out.toString('hex')}`;
  }
  if (action !== CmAction.TUNNEL) return `action ${action}, which is tc's`;
  if (target !== UPLINK && target !== UPLINK_WORLD) return `encapsulated to interface ${target}`;
  const { inner } = decapsulate(xdp.out);
  if (!inner.equals(tc.out)) return `encapsulated ${inner.toString('hex')}, by tc ${tc.out.toString('hex')}`;
  return wrongOutside(xdp.out, xdp);
}
