/** Random packets against the programs' bodies, a plain oracle and invariants beside them. */
import { CmAction } from '@clustermesh/bpf';
import type { Outcome, PacketLab } from '../testing/packet-lab.ts';
import { isNoted, judge } from './judge.ts';
import { createOracle, POLICY_REASON } from './oracle.ts';
import { type FuzzCase, makeCase } from './packets.ts';
import { enforcePolicies } from './policies.ts';
import { seeded } from './random.ts';

export interface Finding {
  readonly seed: number;
  readonly what: string;
  readonly fuzz: FuzzCase;
  readonly outcome: Outcome;
}

export interface FuzzResult {
  readonly packets: number;
  readonly forwarded: number;
  /** How often the oracle demanded a drop. */
  readonly demanded: number;
  /** Of those, by policies. */
  readonly denied: number;
  /** Of those that came by the tunnel with a service noted in them, those that a pod got. */
  readonly taken: number;
  readonly findings: readonly Finding[];
}

const MOST_FINDINGS = 10;

/** One half without policies, one with. Ends early once there are many findings. The kernel refuses to run programs on frames that are too short: those do not count. */
export async function fuzz(
  lab: PacketLab,
  options: { readonly seed: number; readonly packets: number; readonly onProgress?: (packets: number) => void },
): Promise<FuzzResult> {
  const random = seeded(options.seed);
  const findings: Finding[] = [];
  let [packets, forwarded, demanded, denied, taken] = [0, 0, 0, 0, 0];
  let isPoliced = false;
  let oracle = createOracle(isPoliced);
  const half = Math.floor(options.packets / 2);
  await lab.reset();
  await enforcePolicies(lab, isPoliced);
  while (packets < options.packets && findings.length < MOST_FINDINGS) {
    if (packets === half && !isPoliced) {
      isPoliced = true;
      await lab.reset();
      await enforcePolicies(lab, isPoliced);
      oracle = createOracle(isPoliced);
    }
    const one = makeCase(random);
    const outcome = attempt(lab, one);
    if (outcome === undefined) continue;
    packets++;
    const reason = oracle.mustDrop(one);
    const isForwarded = outcome.decision.action !== CmAction.DROP;
    if (isForwarded) forwarded++;
    if (reason !== undefined) demanded++;
    if (reason === POLICY_REASON) denied++;
    const { action } = outcome.decision;
    if (one.program === 'cm_test_overlay' && action === CmAction.ENDPOINT && isNoted(one.packet)) taken++;
    oracle.observe(one, outcome);
    const what =
      judge(one, outcome) ??
      (isForwarded && reason !== undefined ? `forwarded, but must be dropped: ${reason}` : undefined);
    if (what !== undefined) findings.push({ seed: options.seed, what, fuzz: one, outcome });
    if (packets % 10_000 === 0) {
      options.onProgress?.(packets);
      await new Promise(setImmediate);
    }
  }
  await enforcePolicies(lab, false);
  return { packets, forwarded, demanded, denied, taken, findings };
}

function attempt(lab: PacketLab, { program, packet, hook }: FuzzCase): Outcome | undefined {
  try {
    return lab.run(program, packet, hook);
  } catch (error) {
    if (/EINVAL/.test(String(error))) return undefined;
    throw error;
  }
}

export function describeFinding({ seed, what, fuzz: { program, packet, hook }, outcome }: Finding): string {
  return [
    what,
    `  seed ${seed}, ${program}, ${JSON.stringify(hook)}`,
    `  in   ${packet.toString('hex')}`,
    `  out  ${outcome.out.toString('hex')}`,
    `  ${JSON.stringify({ verdict: outcome.verdict, ...outcome.decision })}`,
  ].join('\n');
}
