/** `clustermesh disable`: a cluster parts from every peer, on both sides where both can be reached, and connects with nobody. */
import { MeshError, type OperationEvent } from '@clustermesh/contract';
import { failureOf } from './connect.ts';
import { disconnect } from './disconnect.ts';
import { formatDuration } from './duration.ts';
import { OutOfTime } from './exit-codes.ts';
import { follow, isLost, type Side, whenPossible } from './side.ts';
import { createStepLines } from './step-lines.ts';
import type { Terminal } from './terminal.ts';

export interface DisableOptions {
  readonly side: Side;
  /** Clusters that can be told, by name; a peer that is not among them keeps its half until it is told there. */
  readonly others: ReadonlyMap<string, Side>;
  readonly timeoutMs: number;
  readonly terminal: Terminal;
  readonly signal: AbortSignal;
  readonly now?: () => number;
}

export async function disable(options: DisableOptions): Promise<void> {
  const { side, others, terminal } = options;
  const now = options.now ?? (() => performance.now());
  const startedAt = now();
  const signal = AbortSignal.any([options.signal, AbortSignal.timeout(options.timeoutMs)]);
  const outOfTime = () =>
    options.signal.aborted
      ? new MeshError({ code: 'cancelled', message: 'interrupted' })
      : new OutOfTime({
          message: `disabling clustermesh on ${side.name}: not done within ${formatDuration(options.timeoutMs)}`,
          hint: 'what was started goes on; run the same command again to follow it',
        });

  // Safe to repeat: a disconnect that runs is followed, and not started twice.
  const answer = await whenPossible(side, { signal, terminal }, () => side.call('Disable', {}));
  if (answer === undefined) throw outOfTime();

  const part = async (peer: string, id: string): Promise<OperationEvent | undefined> => {
    const lines = createStepLines({
      ...{ side: `${side.name} from ${peer}`, terminal, now },
      onChange: () => terminal.progress(`${side.name} from ${peer}: ${lines.current()}`),
    });
    return follow(side, id, { signal, terminal, onEvent: lines.onEvent });
  };
  const tell = async (peer: string): Promise<void> => {
    const other = others.get(peer);
    const again = `clustermesh disconnect --context ${peer} --peer ${side.name}`;
    if (other === undefined) return terminal.err(`${peer}: it has no context here and is not told; there: ${again}`);
    try {
      await disconnect({ source: other, peer: side.name, timeoutMs: options.timeoutMs, terminal, signal });
    } catch (error) {
      if (!isLost(error)) throw error;
      terminal.err(`${peer}: its apiserver does not answer and is not told; when it is back: ${again}`);
    }
  };
  const peers = answer.partings.map(({ peer }) => peer);
  const [ends] = await Promise.all([
    Promise.all(answer.partings.map(({ peer, id }) => part(peer, id))),
    Promise.all(peers.map(tell)),
  ]);
  terminal.progress('');
  for (const end of ends) {
    if (end === undefined) throw outOfTime();
    if (end.state === 'failed') throw failureOf(end, side);
  }
  const parted = peers.length === 0 ? 'it had no peers' : `parted from ${peers.join(', ')}`;
  terminal.out(`clustermesh is disabled on ${side.name}: ${parted} (${formatDuration(now() - startedAt)})`);
}
