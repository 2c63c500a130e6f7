/** What every outcome must be like, whatever the packet was. */
import { CmAction, CmDirection, CmReason } from '@clustermesh/bpf';
import { readHead } from '../../flow/packet.ts';
import { classOf } from '../names.ts';
import { read } from '../testing/frames.ts';
import { C, D, OK, type Outcome, REDIRECT, SHOT, VXLAN, W } from '../testing/packet-lab.ts';
import { identityOf, PODS, podOf } from './oracle.ts';
import type { FuzzCase } from './packets.ts';

const VERDICT_OF: ReadonlyMap<number, number> = new Map([
  [CmAction.DROP, SHOT],
  [CmAction.STACK, OK],
  [CmAction.ENDPOINT, REDIRECT],
  [CmAction.TUNNEL, REDIRECT],
  [CmAction.NETWORK, REDIRECT],
  [CmAction.NEIGHBOUR, REDIRECT],
]);
const DIRECTION_OF = {
  cm_test_from_pod: CmDirection.FROM_POD,
  cm_test_to_pod: CmDirection.TO_POD,
  cm_test_overlay: CmDirection.OVERLAY,
  cm_test_from_network: CmDirection.FROM_NETWORK,
  cm_test_to_network: CmDirection.TO_NETWORK,
} as const;
const REASONS: ReadonlySet<number> = new Set(Object.values(CmReason));
/** What a pod's packet may be encapsulated to. */
const TUNNELS: ReadonlySet<string> = new Set([C.node, W.node, '172.31.2.12']);
/** What a client's packet may be; the last one if its node answers, of whom it must know who said so. */
const TUNNELS_OF_CLIENTS: ReadonlySet<string> = new Set([...TUNNELS, D.node]);
const REMOTE_NODE = 6;

/** An ICMP error may end within what it quotes: there is nothing to sum up then. */
function wrongChecksums(frame: Buffer): readonly string[] {
  try {
    return read(frame).wrong;
  } catch (error) {
    if (error instanceof RangeError) return [];
    throw error;
  }
}

/** Does it say which service it is for, or something else that must not be in front of layer 4? */
export const isNoted = (frame: Buffer): boolean =>
  frame.readUInt16BE(12) === 0x0800 ? frame[14] !== 0x45 : frame[20] === 60 && frame[56] === 0x5e;

/** The first thing that is wrong, or undefined. */
export function judge(fuzz: FuzzCase, { verdict, decision, out }: Outcome): string | undefined {
  const { program, hook } = fuzz;
  const { action, reason, direction, target, identity, vni, remote } = decision;
  const expected = VERDICT_OF.get(action);
  if (expected === undefined) return `action ${action} out of range`;
  if (verdict !== expected) return `verdict ${verdict} for action ${action}`;
  if (!REASONS.has(reason) || reason === CmReason.UNSPEC || reason === CmReason.MAX) return `reason ${reason}`;
  if (direction !== DIRECTION_OF[program]) return `direction ${direction}`;
  const kind = classOf(reason);
  if (kind === 'noted' || (kind === 'dropped') !== (action === CmAction.DROP))
    return `reason ${reason} for action ${action}`;
  if (action === CmAction.DROP) return undefined;

  const before = wrongChecksums(fuzz.packet);
  const wrong = fuzz.isWellFormed ? wrongChecksums(out).filter((name) => !before.includes(name)) : [];
  if (wrong.length > 0) return `wrong checksums: ${wrong.join(', ')}`;
  if (program === 'cm_test_to_network') return action === CmAction.STACK ? undefined : 'what leaves was redirected';
  if (program === 'cm_test_to_pod') return action === CmAction.STACK ? undefined : 'what the host sends was redirected';

  const isClients = program === 'cm_test_from_network' && action === CmAction.TUNNEL;
  const isLeftAlone = action === CmAction.STACK;
  if (!isClients && !isLeftAlone && isNoted(out)) return 'sent on with a service noted in it';

  if (action === CmAction.ENDPOINT) {
    const pod = PODS.find(({ ifindex }) => ifindex === target);
    if (pod === undefined) return `redirected to interface ${target}, where no pod is`;
    const to = readHead(out)?.tuple?.destination;
    if (to === undefined || podOf(to) !== pod) return `${to} handed to another pod`;
    const mac = out.toString('hex', 0, 6);
    if (mac !== pod.mac.replaceAll(':', '')) return `MAC ${mac} is not the pod's`;
    if (kind === 'answered' && target !== hook.ifindex) return 'an answer went to another pod';
  }
  if (action === CmAction.TUNNEL && target !== VXLAN) return `encapsulated through interface ${target}`;
  if (program === 'cm_test_from_pod') {
    const isLocal = reason === CmReason.ARP || reason === CmReason.ND;
    const own = PODS.find(({ ifindex }) => ifindex === hook.ifindex)?.identity;
    if (!isLocal && identity !== own) return `identity ${identity} instead of ${own}`;
    if (action === CmAction.TUNNEL && (vni !== own || !TUNNELS.has(remote)))
      return `encapsulated to ${remote} as ${vni}`;
    return undefined;
  }
  if (program === 'cm_test_from_network') {
    if (kind === 'answered') return target === hook.ifindex ? undefined : 'an answer went elsewhere';
    if (action === CmAction.STACK) return undefined;
    if (action === CmAction.TUNNEL && (vni >= 256 || !TUNNELS_OF_CLIENTS.has(remote)))
      return `encapsulated to ${remote} as ${vni}`;
    const source = readHead(fuzz.packet)?.tuple?.source ?? '';
    return identity === identityOf(source) ? undefined : `identity ${identity} instead of that of ${source}`;
  }
  const believed = hook.vni === 1 ? REMOTE_NODE : hook.vni;
  if (identity !== believed) return `identity ${identity} instead of ${believed}`;
  if (action === CmAction.TUNNEL && (kind !== 'answered' || vni !== 1 || remote !== hook.remote))
    return `sent on from the tunnel to ${remote} as ${vni}`;
  return undefined;
}
