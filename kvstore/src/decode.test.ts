import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import { describe, it } from 'node:test';
import type { MethodDefinition } from '@grpc/grpc-js';
import { loadSync } from '@grpc/proto-loader';
import fc from 'fast-check';
import { decodeBeside, decodeRange, decodeWatch } from './decode.ts';

const definition = loadSync(createRequire(import.meta.url).resolve('etcd3/proto/rpc.proto'), { keepCase: true });
const method = (service: string, name: string) =>
  (definition[`etcdserverpb.${service}`] as Record<string, MethodDefinition<object, object>>)[name]!;

const revision = fc.maxSafeNat();
const id = fc.bigInt({ min: 0n, max: 2n ** 63n - 1n }).map(String);
const header = fc.record({
  cluster_id: id,
  member_id: id,
  revision: revision.map(String),
  raft_term: fc.constant('7'),
});
const kv = fc.record({
  key: fc.string({ unit: 'binary', minLength: 1 }),
  value: fc.uint8Array(),
  create_revision: revision,
  mod_revision: revision,
  version: revision,
  lease: id,
});
const sent = ({ key, value, ...rest }: { key: string; value: Uint8Array }) => ({
  ...{ key: Buffer.from(key), value: Buffer.from(value) },
  ...Object.fromEntries(Object.entries(rest).map(([name, number]) => [name, String(number)])),
});

describe('decoder', () => {
  it('reads lists as protobufjs writes them', () => {
    const { responseSerialize } = method('KV', 'Range');
    fc.assert(
      fc.property(header, fc.array(kv), fc.boolean(), (head, kvs, more) => {
        const answer = decodeRange(responseSerialize({ header: head, kvs: kvs.map(sent), more, count: '300000' }));
        assert.deepEqual(answer.header, { cluster_id: head.cluster_id, revision: head.revision });
        assert.equal(answer.more, more);
        assert.equal(answer.count, 300_000);
        assert.equal(answer.lastKey?.toString(), kvs.at(-1)?.key);
        const expected = kvs.map((row) => ({
          ...{ key: row.key, value: Buffer.from(row.value), lease: row.lease, version: row.version },
          ...{ createRevision: row.create_revision, modRevision: row.mod_revision },
        }));
        assert.deepEqual(answer.kvs, expected);
      }),
    );
  });

  it('reads a key and a page that were read in one transaction', () => {
    const { responseSerialize } = method('KV', 'Txn');
    fc.assert(
      fc.property(header, fc.array(kv), fc.option(kv), fc.boolean(), (head, kvs, canary, more) => {
        // The reads' own headers say less than that of the whole.
        const read = (rows: (typeof canary)[], rest: object) => ({
          response_range: {
            header: { revision: '1' },
            kvs: rows.flatMap((row) => (row === null ? [] : [sent(row)])),
            ...rest,
          },
        });
        const responses = [read([canary], { count: '1' }), read(kvs, { more, count: '300000' })];
        const answer = decodeBeside(responseSerialize({ header: head, succeeded: true, responses }));
        const { responseSerialize: alone } = method('KV', 'Range');
        const page = decodeRange(alone({ header: head, kvs: kvs.map(sent), more, count: '300000' }));
        const { beside, ...rest } = answer;
        assert.deepEqual(rest, page);
        assert.equal(beside?.key, canary?.key);
        assert.equal(beside?.modRevision, canary?.mod_revision);
      }),
    );
  });

  it('refuses what is not the answer to two reads', () => {
    const { responseSerialize } = method('KV', 'Txn');
    const one = responseSerialize({ header: {}, succeeded: true, responses: [{ response_range: { count: '0' } }] });
    assert.throws(() => decodeBeside(one), /two reads with 1 answers/);
    const put = responseSerialize({
      header: {},
      succeeded: true,
      responses: [{ response_put: { header: { revision: '1' } } }],
    });
    assert.throws(() => decodeBeside(put), /something else/);
  });

  it('reads events, cancellations and fragments as protobufjs writes them', () => {
    const { responseSerialize } = method('Watch', 'Watch');
    fc.assert(
      fc.property(header, fc.array(fc.tuple(fc.boolean(), kv)), fc.boolean(), (head, events, fragment) => {
        const response = {
          ...{
            header: head,
            watch_id: '-1',
            canceled: true,
            compact_revision: '77',
            cancel_reason: 'etcd: why',
            fragment,
          },
          events: events.map(([isPut, row]) => ({ type: isPut ? 'Put' : 'Delete', kv: sent(row), prev_kv: sent(row) })),
        };
        const answer = decodeWatch(responseSerialize(response));
        assert.deepEqual(
          [answer.watchId, answer.created, answer.canceled, answer.compactRevision, answer.cancelReason],
          ['-1', false, true, 77, 'etcd: why'],
        );
        assert.equal(answer.fragment, fragment);
        assert.deepEqual(
          answer.events.map(({ type, key, modRevision }) => [type, key, modRevision]),
          events.map(([isPut, row]) => [isPut ? 'put' : 'delete', row.key, row.mod_revision]),
        );
      }),
    );
  });

  it('refuses a message that ends early', () => {
    const { responseSerialize } = method('KV', 'Range');
    const whole = responseSerialize({
      header: { cluster_id: '1' },
      kvs: [{ key: Buffer.from('a'), value: Buffer.from('b') }],
    });
    for (let length = 1; length < whole.length; length++) {
      try {
        assert.ok(decodeRange(whole.subarray(0, length)).kvs.length <= 1);
      } catch (error) {
        assert.match((error as Error).message, /etcd/);
      }
    }
  });
});
