/** kill, start, pause, resume, partition, heal. */

import { LabClient } from '../client.ts';
import type { Partition, Plane } from '../netns/partition.ts';

export async function control(
  instance: string,
  action: 'kill' | 'start' | 'pause' | 'resume',
  targets: readonly string[],
): Promise<void> {
  const { done } = await new LabClient(instance).call('control', { action, targets });
  const past = { kill: 'killed', start: 'started', pause: 'paused', resume: 'resumed' }[action];
  for (const name of done) process.stdout.write(`${name} ${past}\n`);
}

export interface PartitionOptions {
  readonly control?: boolean;
  readonly data?: boolean;
  readonly oneWay?: boolean;
}

export async function partition(instance: string, from: string, to: string, options: PartitionOptions): Promise<void> {
  const chosen: Plane[] = [
    ...(options.control === true ? (['control'] as const) : []),
    ...(options.data === true ? (['data'] as const) : []),
  ];
  const planes: Plane[] = chosen.length === 0 ? ['control', 'data'] : chosen;
  const { partitions } = await new LabClient(instance).call('partition', {
    from,
    to,
    planes,
    oneWay: options.oneWay === true,
  });
  show(partitions);
}

export async function heal(instance: string, a: string, b: string): Promise<void> {
  const { partitions } = await new LabClient(instance).call('heal', { a, b });
  show(partitions);
}

function show(partitions: readonly Partition[]): void {
  if (partitions.length === 0) process.stdout.write('no partitions\n');
  for (const { from, to, plane } of partitions) process.stdout.write(`${from} → ${to}: ${plane} plane cut\n`);
}
