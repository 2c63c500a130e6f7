/**
 * The apiserver, killed with SIGKILL at each step of connect, disconnect, drain and join, on either side, and started again. Here: one
 * kill per step. With CM_KILL=all (npm run test:kill) each step on either side at three moments; CM_KILL=drain: those of the drain.
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

/** A command, and the operation whose steps it takes. */
const COMMANDS = {
  connect: 'connect',
  disconnect: 'disconnect',
  drain: 'drain',
  join: 'connect',
} as const satisfies Record<string, OperationKind>;
type Command = keyof typeof COMMANDS;

interface Kill {
  readonly command: Command;
  readonly step: string;
  readonly side: 'eu' | 'us';
  readonly moment: Moment;
  /** How far into the step, for `within`. */
  readonly afterMs: number;
}

const every: Kill[] = (Object.keys(COMMANDS) as Command[]).flatMap((command) =>
  STEPS[COMMANDS[command]].flatMap((step) =>
    (['eu', 'us'] as const).flatMap((side) =>
      MOMENTS.map((moment, index) => ({ command, step, side, moment, afterMs: 3 + 7 * (step.length % 5) + index })),
    ),
  ),
);
/** Combinations of side and moment per step. */
const PER_STEP = 2 * MOMENTS.length;
/** One per step, with another side and moment each time. */
const slice = every.filter((_, index) => index % PER_STEP === Math.floor(index / PER_STEP) % PER_STEP);
const wanted = process.env.CM_KILL;
const kills = wanted === undefined ? slice : every.filter(({ command }) => wanted === 'all' || wanted === command);

describe('an apiserver that is killed in the middle', () => {
  let eu: TestCluster;
  let us: TestCluster;
  before(async () => {
    [eu, us] = await Promise.all([startTestCluster('eu', 1), startTestCluster('us', 2)]);
    await Promise.all([eu.startApiserver(), us.startApiserver()]);
  });
  after(() => Promise.all([eu.close(), us.close()]));

  /** In a join eu invites. */
  async function run(command: Command): Promise<CommandResult> {
    if (command === 'join') {
      const invited = await runCli(['invite', '--context', eu.context]);
      assert.equal(invited.code, 0, said(invited));
      return runCli(['join', invited.out.trim(), '--context', us.context, '--timeout', '90s']);
    }
    const args = command === 'drain' ? ['disconnect', '--drain'] : [command];
    return runCli([...args, '--context', eu.context, '--destination-context', us.context, '--timeout', '90s']);
  }
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
    const connects = COMMANDS[kill.command] === 'connect';
    const end = connects ? 'connected' : 'disconnected';
    it(`${kill.command}: ${kill.side} killed at ${kill.step}, ${kill.moment}: ends ${end}, never half`, async () => {
      if (!connects) {
        const result = await run('connect');
        assert.equal(result.code, 0, said(result));
      }
      const killing = killAt(kill);
      const result = await run(kill.command);
      assert.equal(result.code, 0, said(result));
      // The last step's end may be told before its log line is; of a join the inviting side's last step may come later.
      const killed = await Promise.race([
        killing.done,
        new Promise<false>((resolve) => setTimeout(() => resolve(false), 30_000).unref()),
      ]);
      killing.cancel();
      assert.ok(killed, 'the apiserver was killed');
      if (connects) {
        for (const side of [eu, us])
          await waitFor(() => isConnected(side), { what: `${side.name} to be connected`, timeoutMs: 30_000 });
        const parted = await run('disconnect');
        assert.equal(parted.code, 0, said(parted));
      }
      await assertClean();
    });
  }
});
