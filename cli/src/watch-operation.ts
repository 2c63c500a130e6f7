import { MeshError } from '@clustermesh/contract';
import { failureOf } from './connect.ts';
import { follow, type Side } from './side.ts';
import { createStepLines } from './step-lines.ts';
import type { Terminal } from './terminal.ts';

/** Follows an operation to its end, a line per step; throws what it failed with. */
export async function watchOperation(
  side: Side,
  id: string,
  { terminal, signal }: { readonly terminal: Terminal; readonly signal: AbortSignal },
): Promise<void> {
  const lines = createStepLines({
    side: side.name,
    terminal,
    now: () => performance.now(),
    onChange: () => terminal.progress(`${side.name}: ${lines.current()}`),
  });
  const end = await follow(side, id, { signal, terminal, onEvent: lines.onEvent });
  terminal.progress('');
  if (end === undefined) throw new MeshError({ code: 'cancelled', message: 'interrupted' });
  if (end.state === 'failed') throw failureOf(end, side);
  terminal.out(`${id}: done`);
}
