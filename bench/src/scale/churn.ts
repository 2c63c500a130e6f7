/**
 * Changes at a given rate, in an open loop (a slow reader does not slow the writer down), each followed until the kernel has it.
 * Every change of an address or a node is a put or a delete of one key; identities are load only, no kernel row comes of them.
 */
import type { Etcd } from '@clustermesh/kvstore';
import {
  CHURN,
  type Entry,
  type Expected,
  endpointAddress,
  endpointEntry,
  expectEndpoint,
  expectNode,
  identityEntry,
  identityNumber,
  ipcacheText,
  type LoadShape,
  nodeEntry,
  nodeIp,
} from './load.ts';
import { type AppliedRow, monotonicMs } from './messages.ts';

export interface ChurnResult {
  readonly events: number;
  /** Milliseconds from the beginning of the put to the kernel, sorted. */
  readonly latencies: readonly number[];
  /** Changes that never arrived. */
  readonly lost: readonly string[];
  readonly putErrors: number;
}

export interface Churn {
  /** Rows that the kernel took. */
  applied(rows: readonly AppliedRow[]): void;
  /** Runs for this long, then waits until all has arrived. */
  run(seconds: number, onProgress: (text: string) => void): Promise<ChurnResult>;
}

/** Extra nodes come and go beyond those of the shape; there are 128 addresses a cluster. */
const EXTRA_NODES = 20;
const DRAIN_MS = 10_000;

export function createChurn(options: {
  readonly etcd: Etcd;
  readonly shape: LoadShape;
  readonly expected: Expected;
  /** Of the rates of the scale test. */
  readonly rateScale: number;
}): Churn {
  const { etcd, shape, expected } = options;
  const waiting = new Map<string, { readonly text: string | undefined; readonly sinceMs: number }>();
  const latencies: number[] = [];
  const absent = new Set<string>();
  const extraNodes = new Set<string>();
  let events = 0;
  let putErrors = 0;
  let seed = 1;

  /** A small generator of its own: two runs make the same changes. */
  function random(below: number): number {
    seed = (Math.imul(seed, 1664525) + 1013904223) >>> 0;
    return Math.floor((seed / 2 ** 32) * below);
  }

  function send({ key, value }: Entry, remove: boolean, row: string | undefined, text?: string): void {
    events++;
    if (row !== undefined) waiting.set(row, { text, sinceMs: monotonicMs() });
    const done = remove ? etcd.delete(key) : etcd.put(key, value);
    done.catch(() => {
      putErrors++;
    });
  }

  function changeEndpoint(cluster: number): void {
    const endpoint = random(shape.endpoints);
    const slot = `${cluster}/${endpoint}`;
    const at = endpointAddress(shape, cluster, endpoint);
    const remove = !absent.has(slot) && random(3) === 0;
    const held = expected.ipcache.get(`${at.ip}/32`);
    const textOf = (id: number) => ipcacheText(identityNumber(cluster, id), cluster, at.host);
    const drawn = random(shape.identities);
    // The same row again would not be written.
    const identity = textOf(drawn) === held ? (drawn + 1) % shape.identities : drawn;
    const text = textOf(identity);
    const row = `ipcache ${at.ip}/32`;
    if (remove) absent.add(slot);
    else absent.delete(slot);
    // Gone from its own row, the address is still inside its node's pod CIDR: nothing takes its place.
    expectEndpoint(expected, at, cluster, remove ? undefined : identity);
    send(endpointEntry(shape, cluster, endpoint, identity), remove, row, remove ? undefined : text);
  }

  function changeNode(cluster: number): void {
    const node = shape.nodes + random(EXTRA_NODES);
    const slot = `${cluster}/${node}`;
    const remove = extraNodes.delete(slot);
    if (!remove) extraNodes.add(slot);
    expectNode(expected, cluster, node, !remove);
    send(nodeEntry(cluster, node), remove, `nodes ${nodeIp(cluster, node)}`, remove ? undefined : String(cluster));
  }

  function changeIdentity(cluster: number): void {
    send(identityEntry(cluster, shape.identities + random(100)), random(2) === 0, undefined);
  }

  const streams = [
    { rate: CHURN.endpoints, change: changeEndpoint },
    { rate: CHURN.identities, change: changeIdentity },
    { rate: CHURN.nodes, change: changeNode },
  ].map(({ rate, change }) => ({ everyMs: 1000 / (rate * options.rateScale * shape.clusters), change, dueMs: 0 }));

  return {
    applied(rows) {
      for (const row of rows) {
        const name = `${row.table} ${row.key}`;
        const change = waiting.get(name);
        if (change === undefined || change.text !== row.text || row.atMs < change.sinceMs) continue;
        waiting.delete(name);
        latencies.push(row.atMs - change.sinceMs);
      }
    },
    async run(seconds, onProgress) {
      const startMs = monotonicMs();
      const endMs = startMs + seconds * 1000;
      for (const stream of streams) stream.dueMs = startMs + random(1000) * (stream.everyMs / 1000);
      let nextReportMs = startMs + 30_000;
      for (let now = startMs; now < endMs; now = monotonicMs()) {
        for (const stream of streams) {
          for (; stream.dueMs <= now; stream.dueMs += stream.everyMs) stream.change(1 + random(shape.clusters));
        }
        if (now >= nextReportMs) {
          nextReportMs += 30_000;
          onProgress(`${Math.round((now - startMs) / 1000)} s, ${events} changes, ${waiting.size} on their way`);
        }
        await new Promise((resolve) => setTimeout(resolve, 1));
      }
      const deadline = monotonicMs() + DRAIN_MS;
      while (waiting.size > 0 && monotonicMs() < deadline) await new Promise((resolve) => setTimeout(resolve, 50));
      return { events, latencies: [...latencies].sort((a, b) => a - b), lost: [...waiting.keys()], putErrors };
    },
  };
}
