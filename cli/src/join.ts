/** `clustermesh join`: the clusters talk to each other; this command only starts it in one of them, and follows. */
import { MeshError } from '@clustermesh/contract';
import { awaitApplied, failureOf } from './connect.ts';
import { formatDuration } from './duration.ts';
import { OutOfTime } from './exit-codes.ts';
import { follow, newRequest, type Side, whenPossible } from './side.ts';
import { createStepLines } from './step-lines.ts';
import type { Terminal } from './terminal.ts';

export async function join(options: {
  readonly side: Side;
  readonly token: string;
  readonly timeoutMs: number;
  readonly terminal: Terminal;
  readonly signal: AbortSignal;
  readonly now?: () => number;
}): Promise<void> {
  const { side, token, terminal } = options;
  const now = options.now ?? (() => performance.now());
  const startedAt = now();
  const signal = AbortSignal.any([options.signal, AbortSignal.timeout(options.timeoutMs)]);
  const outOfTime = (what: string) =>
    options.signal.aborted
      ? new MeshError({ code: 'cancelled', message: 'interrupted' })
      : new OutOfTime({
          message: `joining with ${side.name}: not done within ${formatDuration(options.timeoutMs)} (${what})`,
          hint: 'what was started goes on in the clusters; look with: clustermesh operations list',
        });

  // Asked first: an apiserver that was never there is an error, one that goes away in the middle is waited for.
  await side.call('GetCluster', {});
  const request = newRequest();
  const started = await whenPossible(side, { signal, terminal }, () => side.call('Join', { token, request }));
  if (started === undefined) throw outOfTime('not started');
  const lines = createStepLines({
    ...{ side: side.name, terminal, now },
    onChange: () => terminal.progress(`${side.name}: ${lines.current()}`),
  });
  let peer = '';
  const end = await follow(side, started.id, {
    signal,
    terminal,
    onEvent: (event) => {
      peer = event.peer || peer;
      lines.onEvent(event);
    },
  });
  terminal.progress('');
  if (end === undefined) throw outOfTime(lines.current());
  if (end.state === 'failed') throw failureOf(end, side);
  const { alive, missing } = await awaitApplied(side, peer, { signal, terminal });
  terminal.progress('');
  if (missing !== '') throw outOfTime(missing);
  terminal.out(
    `${side.name} has joined ${peer}, applied on every node of ${side.name} (${alive}) after ${formatDuration(now() - startedAt)}`,
  );
}
