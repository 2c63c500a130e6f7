/** `clustermesh disconnect`: each side ends on its own, so a dead peer holds nothing up. */
import { MeshError, type OperationEvent } from '@clustermesh/contract';
import { failureOf } from './connect.ts';
import { formatDuration } from './duration.ts';
import { OutOfTime } from './exit-codes.ts';
import { follow, isLost, newRequest, type Side, whenPossible } from './side.ts';
import { createStepLines } from './step-lines.ts';
import type { Terminal } from './terminal.ts';

type Method = 'StartDrain' | 'StartDisconnect';

export interface DisconnectOptions {
  readonly source: Side;
  /** Undefined: only the source is told, about `peer`. */
  readonly destination?: Side | undefined;
  /** The destination's cluster name. */
  readonly peer: string;
  /** First traffic is moved away, on both sides. */
  readonly drain?: boolean;
  readonly timeoutMs: number;
  readonly terminal: Terminal;
  readonly signal: AbortSignal;
  readonly now?: () => number;
}

export async function disconnect(options: DisconnectOptions): Promise<void> {
  const { source, destination, terminal, peer } = options;
  const now = options.now ?? (() => performance.now());
  const startedAt = now();
  const signal = AbortSignal.any([options.signal, AbortSignal.timeout(options.timeoutMs)]);
  terminal.out(`disconnecting ${source.name} and ${peer}`);

  const run = async (method: Method, side: Side, from: string): Promise<OperationEvent | undefined> => {
    const lines = createStepLines({
      side: side.name,
      terminal,
      now,
      onChange: () => terminal.progress(`${side.name}: ${lines.current()}`),
    });
    const request = newRequest();
    const reference = await whenPossible(side, { signal, terminal }, () => side.call(method, { peer: from, request }));
    if (reference === undefined) return undefined;
    return follow(side, reference.id, { signal, terminal, onEvent: lines.onEvent });
  };
  const other = async (method: Method): Promise<OperationEvent | 'unreachable' | undefined> => {
    if (destination === undefined) return 'unreachable';
    try {
      // Asked first: only a peer that never answered counts as dead, not one that goes away in the middle.
      await destination.call('GetCluster', {});
    } catch (error) {
      if (!isLost(error)) throw error;
      terminal.err(
        `${destination.name}: its apiserver does not answer, so only ${source.name} is disconnected; repeat the command when ${destination.name} is back`,
      );
      return 'unreachable';
    }
    return run(method, destination, source.name);
  };

  // Asked first: an apiserver that was never there is an error, one that goes away in the middle is waited for.
  await source.call('GetCluster', {});
  /** On both sides at once; throws when one has failed or the time is over. Says whether the peer took part. */
  const both = async (method: Method): Promise<boolean> => {
    const [own, its] = await Promise.all([run(method, source, peer), other(method)]);
    terminal.progress('');
    for (const [event, side] of [
      [own, source],
      [its, destination],
    ] as const) {
      if (event === 'unreachable') continue;
      if (event === undefined) {
        if (options.signal.aborted) throw new MeshError({ code: 'cancelled', message: 'interrupted' });
        throw new OutOfTime({
          message: `disconnecting ${source.name} and ${peer}: not done within ${formatDuration(options.timeoutMs)}`,
          hint: 'what was started goes on; run the same command again to follow it',
        });
      }
      if (event.state === 'failed' && side !== undefined) throw failureOf(event, side);
    }
    return its !== 'unreachable';
  };
  // Not before both have moved their traffic away: the one that parts first takes the way back from the other's.
  if (options.drain === true) await both('StartDrain');
  const wasBoth = await both('StartDisconnect');
  terminal.out(
    `disconnected ${!wasBoth ? `${source.name} from ${peer}` : `${source.name} and ${peer}`} in ${formatDuration(now() - startedAt)}`,
  );
}
