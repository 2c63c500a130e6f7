/** The nodes source: what the agents publish in the local etcd → snapshots, known nodes persisted. */
import { readFileSync } from 'node:fs';
import { messageOf, NODES_PREFIX } from '@clustermesh/contract';
import { type Etcd, type ReflectorStatus, startReflector } from '@clustermesh/kvstore';
import { atomicWrite, type Clock, type Log, systemClock } from '@clustermesh/runtime';
import { z } from 'zod';
import { type NodesDelta, type NodesSnapshot, NodeTable } from './node-table.ts';

export interface NodeSourceOptions {
  readonly etcd: Etcd;
  readonly knownNodesFile: string;
  readonly graceMs: number;
  readonly log: Log;
  readonly signal: AbortSignal;
  readonly clock?: Clock;
  readonly onChange: () => void;
}

export interface NodeSource {
  snapshot(): NodesSnapshot;
  /** All that is in force, then what has changed since (node-table.ts): for the exporter that leads, until the signal. */
  follow(signal: AbortSignal): () => NodesDelta;
  /** Known nodes that have not published their complete list (again). */
  waitingFor(): readonly string[];
  status(): ReflectorStatus;
  readonly ended: Promise<void>;
}

const stateSchema = z.object({ version: z.literal(1), nodes: z.array(z.string()) });
/** Watches have lost events in the field: listed again this often. */
const RESYNC_MS = 300_000;

function loadKnownNodes(file: string, log: Log): readonly string[] {
  try {
    return stateSchema.parse(JSON.parse(readFileSync(file, 'utf8'))).nodes;
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ENOENT')
      log.error({ file, reason: messageOf(error) }, 'known nodes are unreadable; none is waited for');
    return [];
  }
}

export function startNodeSource(options: NodeSourceOptions): NodeSource {
  const clock = options.clock ?? systemClock;
  const log = options.log.child({ subsystem: 'nodes' });
  const table = new NodeTable({ graceMs: options.graceMs, known: loadKnownNodes(options.knownNodesFile, log) });
  let persisted = JSON.stringify(table.known);
  let deadline: AbortController | undefined;

  const persist = () => {
    const now = JSON.stringify(table.known);
    if (now === persisted) return;
    atomicWrite(options.knownNodesFile, `${JSON.stringify({ version: 1, nodes: table.known })}\n`);
    persisted = now;
  };

  // Not AbortSignal.any per sleep: it would keep each one reachable from this long-lived signal.
  options.signal.addEventListener('abort', () => deadline?.abort(), { once: true });

  /** The grace period of a missing node ends without any event: wake up for it. */
  const armDeadline = () => {
    deadline?.abort();
    const at = table.nextDeadlineMs();
    if (at === undefined || options.signal.aborted) return;
    const current = new AbortController();
    deadline = current;
    void clock.sleep(Math.max(0, at - clock.nowMs()) + 1, current.signal).then(() => {
      if (!current.signal.aborted) changed();
    });
  };

  const changed = () => {
    const waitingBefore = table.nextDeadlineMs();
    table.expire(clock.nowMs());
    persist();
    armDeadline();
    if (waitingBefore !== undefined && table.nextDeadlineMs() === undefined)
      log.info('all known nodes have published again, or their grace period is over');
    options.onChange();
  };

  const reflector = startReflector({
    etcd: options.etcd,
    prefix: NODES_PREFIX,
    log,
    clock,
    signal: options.signal,
    backoff: { minMs: 100, maxMs: 5_000 },
    resyncIntervalMs: RESYNC_MS,
    sink: {
      apply: (batch) => {
        table.apply(batch, clock.nowMs());
        changed();
      },
      synced: () => {
        table.listed(clock.nowMs());
        changed();
      },
    },
  });
  return {
    snapshot: () => table.snapshot(clock.nowMs()),
    follow(signal) {
      const follower = table.follow();
      signal.addEventListener('abort', follower.end, { once: true });
      return () => follower.take(clock.nowMs());
    },
    waitingFor: () => table.waitingFor(),
    status: () => reflector.status(),
    ended: reflector.done,
  };
}
