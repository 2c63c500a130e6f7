/**
 * The apiserver, killed with SIGKILL at each step of connect and of disconnect, on either side, and started again. Here: one kill per
 * step. With CM_KILL=all (npm run test:kill) each step on either side at three moments.
 */
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import type { ClusterStatus } from '@clustermesh/contract';
import { waitFor } from '@clustermesh/runtime';
import { type CommandResult, runCli, startTestCluster, type TestCluster } from '../testing/apiserver-process.ts';
import { leftoversOf } from '../testing/leftovers.ts';
import { type OperationKind, STEPS } from './model.ts';

/** Of the step's log lines: as it starts, a moment into it, as it ends. */
const MOMENTS = ['step started', 'within', 'step done'] as const;
type Moment = (typeof MOMENTS)[number];

interface Kill {
  readonly kind: OperationKind;
  readonly step: string;
  readonly side: 'eu' | 'us';
  readonly moment: Moment;
  /** How far into the step, for `within`. */
  readonly afterMs: number;
}

const every: Kill[] = (['connect', 'disconnect'] as const).flatMap((kind) =>
  STEPS[kind].flatMap((step) =>
    (['eu', 'us'] as const).flatMap((side) =>
      MOMENTS.map((moment, index) => ({ kind, step, side, moment, afterMs: 3 + 7 * (step.length % 5) + index })),
    ),
  ),
);
/** Combinations of side and moment per step. */
const PER_STEP = 2 * MOMENTS.length;
/**
 * One per step, with another side and moment each time. Not as the first step starts: the command's own call may not be answered yet,
 * and a call that was never answered is an error, not repeated.
 */
const slice = every
  .filter((_, index) => index % PER_STEP === Math.floor(index / PER_STEP) % PER_STEP)
  .map((kill) => (kill.step === STEPS[kill.kind][0] ? { ...kill, moment: 'step done' as const } : kill));
const kills = process.env.CM_KILL === 'all' ? every : slice;

describe('an apiserver that is killed in the middle', () => {
  let eu: TestCluster;
  let us: TestCluster;
  before(async () => {
    [eu, us] = await Promise.all([startTestCluster('eu', 1), startTestCluster('us', 2)]);
    await Promise.all([eu.startApiserver(), us.startApiserver()]);
  });
  after(() => Promise.all([eu.close(), us.close()]));

  const command = (kind: OperationKind) =>
    runCli([kind, '--context', eu.context, '--destination-context', us.context, '--timeout', '90s']);
  const said = (result: CommandResult) => `exit ${result.code}\n${result.out}\n${result.err}`;

  /** Kills when the log says that it is time, and starts the apiserver again. */
  function killAt(kill: Kill): { readonly done: Promise<boolean>; cancel(): void } {
    const victim = kill.side === 'eu' ? eu : us;
    const line = kill.moment === 'step done' ? 'step done' : 'step started';
    let cancel = () => {};
    const done = new Promise<boolean>((resolve, reject) => {
      const stop = victim.onLog((text) => {
        if (!text.includes(`"${line}"`) || !text.includes(`"${kill.step}"`)) return;
        stop();
        const now = () => victim.killApiserver().then(() => victim.startApiserver());
        setTimeout(() => now().then(() => resolve(true), reject), kill.moment === 'within' ? kill.afterMs : 0);
      });
      cancel = () => {
        stop();
        resolve(false);
      };
    });
    return { done, cancel: () => cancel() };
  }

  async function isConnected(cluster: TestCluster): Promise<boolean> {
    const result = await runCli(['status', '--context', cluster.context, '-o', 'json']);
    const status = JSON.parse(result.out) as ClusterStatus;
    return status.peers.length === 1 && status.peers.every((peer) => peer.ready && peer.connected);
  }

  async function assertClean(): Promise<void> {
    let left: string[] = [];
    await waitFor(
      async () => {
        left = [...(await leftoversOf(eu, 'us')), ...(await leftoversOf(us, 'eu'))];
        return left.length === 0;
      },
      { what: 'both sides to be clean', timeoutMs: 30_000 },
    ).catch((error: Error) => assert.fail(`${error.message}: ${left.join(', ')}`));
  }

  for (const kill of kills) {
    const title = `${kill.kind}: ${kill.side} killed at ${kill.step}, ${kill.moment}: ends ${kill.kind}ed, never half`;
    it(title, async () => {
      if (kill.kind === 'disconnect') {
        const result = await command('connect');
        assert.equal(result.code, 0, said(result));
      }
      const killing = killAt(kill);
      const result = await command(kill.kind);
      assert.equal(result.code, 0, said(result));
      // The last step's end may be told before its log line is.
      const killed = await Promise.race([
        killing.done,
        new Promise<false>((resolve) => setTimeout(() => resolve(false), 5000).unref()),
      ]);
      killing.cancel();
      assert.ok(killed, 'the apiserver was killed');
      if (kill.kind === 'connect') {
        for (const side of [eu, us])
          await waitFor(() => isConnected(side), { what: `${side.name} to be connected`, timeoutMs: 30_000 });
        const parted = await command('disconnect');
        assert.equal(parted.code, 0, said(parted));
      }
      await assertClean();
    });
  }
});
