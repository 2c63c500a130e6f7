import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { silentLog, waitFor } from '@clustermesh/runtime';
import fc from 'fast-check';
import { startReflector } from './reflector.ts';
import { type EtcdServer, startEtcd, type TcpProxy } from './testing/etcd-server.ts';
import { memorySink } from './testing/memory-sink.ts';
import type { Etcd } from './types.ts';
import { startWriter } from './writer.ts';

/** CM_SEED replays a history that failed; CM_RUNS makes it longer. */
const seed = Number(process.env.CM_SEED ?? Date.now() % 1_000_000);
const runs = Number(process.env.CM_RUNS ?? 12);

const KEYS = Array.from({ length: 8 }, (_, i) => `k${i}`);

type Step =
  | { readonly do: 'set'; readonly key: string; readonly value: string }
  | { readonly do: 'delete'; readonly key: string }
  | { readonly do: 'replace'; readonly keys: readonly string[] }
  | { readonly do: 'flush' | 'pause' | 'compact' | 'meddle' | 'wipe' | 'expire' }
  | { readonly do: 'cut' | 'blackhole' | 'heal'; readonly side: 'writer' | 'reader' };

const key = fc.constantFrom(...KEYS);
const side = fc.constantFrom('writer' as const, 'reader' as const);
const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 12, arbitrary: fc.record({ do: fc.constant('set' as const), key, value: fc.string({ maxLength: 3 }) }) },
  { weight: 5, arbitrary: fc.record({ do: fc.constant('delete' as const), key }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('replace' as const), keys: fc.uniqueArray(key) }) },
  { weight: 3, arbitrary: fc.record({ do: fc.constantFrom('flush' as const, 'pause' as const, 'pause' as const) }) },
  { weight: 2, arbitrary: fc.record({ do: fc.constantFrom('compact' as const, 'meddle' as const) }) },
  { weight: 4, arbitrary: fc.record({ do: fc.constantFrom('cut' as const, 'heal' as const, 'heal' as const), side }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('blackhole' as const), side }) },
);
/** With leases also the end of one that its writer keeps. */
const leasedStep: fc.Arbitrary<Step> = fc.oneof(
  { weight: 12, arbitrary: step },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('expire' as const) }) },
);
/** At most one wipe a history: it takes the longest. */
const historyOf = (steps: fc.Arbitrary<Step>) =>
  fc
    .tuple(fc.array(steps, { minLength: 10, maxLength: 60 }), fc.option(fc.nat(60), { freq: 3 }))
    .map(([all, at]): Step[] => (at === null ? all : [...all.slice(0, at), { do: 'wipe' }, ...all.slice(at)]));

/** Every delete may be the end of a lease here: there are eight keys, and any number of them on one. */
const LEASED = {
  writer: { lease: { ttlSeconds: 1, maxKeysPerLease: 4 } },
  reader: { holdDeletes: { lastHeartbeatAt: () => performance.now(), burst: 1, settleMs: 400 } },
};

for (const { sameClusterId, isLeased } of [
  { sameClusterId: false, isLeased: false },
  { sameClusterId: true, isLeased: false },
  { sameClusterId: true, isLeased: true },
]) {
  const id = sameClusterId ? 'the same' : 'another';
  describe(`writer to reflector through failures, ${isLeased ? 'leased, ' : ''}rebuilt with ${id} cluster id`, {
    timeout: 600_000,
  }, () => {
    let server: EtcdServer;
    let direct: Etcd;
    let run = 0;
    before(async () => {
      server = await startEtcd({ sameClusterId });
      direct = server.client();
    });
    after(() => server.close());

    it(`after any history the reader has exactly what the writer wants (seed ${seed})`, async () => {
      const history = historyOf(isLeased ? leasedStep : step);
      await fc.assert(fc.asyncProperty(history, check), { seed, numRuns: runs, endOnFailure: true });
    });

    async function check(steps: Step[]): Promise<void> {
      const prefix = `run${run++}/`;
      const canaryKey = `synced/${prefix}`;
      const proxies: Record<'writer' | 'reader', TcpProxy & { readonly endpoint: string }> = {
        writer: await server.proxy(),
        reader: await server.proxy(),
      };
      const stop = new AbortController();
      const common = { log: silentLog(), signal: stop.signal, backoff: { minMs: 5, maxMs: 40 } };
      const client = (name: 'writer' | 'reader') =>
        server.client({
          endpoints: [proxies[name].endpoint],
          requestTimeoutMs: 250,
          connectTimeoutMs: 250,
          progressIntervalMs: 60,
        });
      const [writing, reading] = [client('writer'), client('reader')];
      const model = new Map<string, string>();
      const sink = memorySink();
      const violations = watchForEarlyRemovals(sink, model, prefix);

      const options = isLeased ? LEASED : { writer: {}, reader: {} };
      const writer = startWriter({
        ...common,
        etcd: writing,
        owned: [prefix],
        auditIntervalMs: 200,
        ...options.writer,
      });
      writer.ready(prefix);
      writer.canary(canaryKey, () => 'now');
      const reflector = startReflector({ ...common, etcd: reading, prefix, canaryKey, sink, ...options.reader });
      try {
        for (const current of steps) await perform(current);
        for (const proxy of Object.values(proxies)) proxy.heal();
        await writer.flush();
        const wanted = Object.fromEntries([...model].sort(([a], [b]) => (a < b ? -1 : 1)));
        const inEtcd = async () =>
          Object.fromEntries((await direct.range(prefix)).kvs.map((kv) => [kv.key, kv.value.toString()]));
        // Meddling is repaired by the next audit; only then is there anything to agree on.
        await waitFor(async () => equal(await inEtcd(), wanted), {
          what: `etcd to have ${JSON.stringify(wanted)}, writer ${JSON.stringify(writer.status())}`,
          timeoutMs: 10_000,
          intervalMs: 5,
        });
        await waitFor(() => reflector.status().synced && equal(sink.contents(), wanted), {
          what: `the reader to have ${JSON.stringify(wanted)}; it has ${JSON.stringify(sink.contents())}, status ${JSON.stringify(reflector.status())}`,
          timeoutMs: 10_000,
          intervalMs: 5,
        });
        assert.deepEqual(violations, []);
        assert.equal(reflector.status().count, model.size);
      } finally {
        stop.abort();
        await Promise.all([writer.done, reflector.done, writing.close(), reading.close()]);
        await Promise.all(Object.values(proxies).map((proxy) => proxy.close()));
      }

      async function perform(current: Step): Promise<void> {
        switch (current.do) {
          case 'set':
            model.set(prefix + current.key, current.value);
            return writer.set(prefix + current.key, current.value);
          case 'delete':
            model.delete(prefix + current.key);
            return writer.delete(prefix + current.key);
          case 'replace': {
            const rows = new Map(current.keys.map((name) => [prefix + name, 'replaced']));
            model.clear();
            for (const [name, value] of rows) model.set(name, value);
            return writer.replace(prefix, rows);
          }
          case 'cut':
          case 'blackhole':
          case 'heal':
            return proxies[current.side][current.do]();
          case 'compact':
            return direct.compact((await direct.put('compact', '')).revision);
          case 'meddle':
            // Somebody else changes one of the writer's keys and adds another.
            await direct.put(`${prefix}k0`, 'meddled');
            await direct.put(`${prefix}foreign`, 'meddled');
            return undefined;
          case 'wipe':
            return server.wipe();
          case 'expire': {
            const lease = (await direct.range(prefix)).kvs.find((kv) => kv.lease !== '0')?.lease;
            // Another may have ended it meanwhile.
            return lease === undefined ? undefined : server.expire(lease).catch(() => {});
          }
          case 'flush':
            for (const proxy of Object.values(proxies)) proxy.heal();
            await writer.flush();
            return undefined;
          case 'pause':
            // Any moment is a right moment: lets the other side get somewhere, or not.
            await new Promise((resolve) => setTimeout(resolve, 5));
            return undefined;
        }
      }
    }
  });
}

/**
 * A row that the writer has wanted all along must never be removed at the reader, whatever happens to etcd: that is what canaries and
 * complete lists are for. Foreign keys do not count, nor does a key that was unwanted at any time since the reader got it.
 */
function watchForEarlyRemovals(
  sink: ReturnType<typeof memorySink>,
  model: Map<string, string>,
  prefix: string,
): string[] {
  const violations: string[] = [];
  const unwanted = new Set<string>();
  /** The reader has it as it is wanted: until then its removal may be of a time before it was. */
  const due = new Set<string>();
  const forget = model.delete.bind(model);
  model.delete = (name) => {
    unwanted.add(name);
    return forget(name);
  };
  const clear = model.clear.bind(model);
  model.clear = () => {
    for (const name of model.keys()) unwanted.add(name);
    clear();
  };
  const apply = sink.apply.bind(sink);
  sink.apply = (batch) => {
    for (const name of batch.removes) {
      if (due.has(name) && model.has(name) && !unwanted.has(name) && name.startsWith(prefix))
        violations.push(`${name} was removed while wanted`);
    }
    for (const { key: name, value } of batch.upserts) if (model.get(name) === value.toString()) due.add(name);
    apply(batch);
  };
  return violations;
}

function equal(a: Record<string, string>, b: Record<string, string>): boolean {
  return JSON.stringify(a) === JSON.stringify(b);
}
