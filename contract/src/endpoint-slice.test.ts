import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { describe, it } from 'node:test';
import { fileURLToPath } from 'node:url';
import { loadSync, type MessageTypeDefinition } from '@grpc/proto-loader';
import fc from 'fast-check';
import {
  accept,
  type ClusterEndpointSlice,
  type Compression,
  type Decoded,
  decodeEndpointSlice,
  decodeEndpointSliceMessage,
  encodeEndpointSlice,
  encodeEndpointSliceMessage,
  MAX_ENDPOINT_SLICE_BYTES,
  reject,
  validateEndpointSlice,
} from './index.ts';

/** What everyone else makes of the .proto file. */
const definition = loadSync(fileURLToPath(new URL('../proto/endpointslice.proto', import.meta.url)), {
  keepCase: true,
})['clustermesh.endpointslice.ClusterEndpointSlice'] as MessageTypeDefinition<object, object>;

const vectors: readonly { comment?: string; message?: string; slice?: ClusterEndpointSlice }[] = JSON.parse(
  readFileSync(new URL('../fixtures/both-layouts.json', import.meta.url), 'utf8'),
).vectors;

const plain: ClusterEndpointSlice = {
  cluster: 'cluster3',
  clusterID: 3,
  namespace: 'shop',
  name: 'web-1',
  labels: { 'kubernetes.io/service-name': 'web' },
  addressType: 'IPv4',
  endpoints: [{ addresses: ['10.244.1.79'], conditions: { ready: true } }],
  ports: [{ name: 'http', protocol: 'TCP', port: 8080 }],
};
const expected = { cluster: 'cluster3', clusterId: 3, name: 'shop/web-1' };

function value<T>(decoded: Decoded<T>): T {
  assert.ok(decoded.ok, decoded.ok ? '' : decoded.reason);
  return decoded.value;
}

function refused(decoded: Decoded<unknown>, why: RegExp): void {
  assert.equal(decoded.ok, false, 'was accepted');
  if (!decoded.ok) assert.match(decoded.reason, why);
}

/** One length-delimited field. */
const field = (number: number, bytes: readonly number[] | Uint8Array) => [(number << 3) | 2, bytes.length, ...bytes];
const decode = (...bytes: number[]) => decodeEndpointSliceMessage(Uint8Array.from(bytes));

const words = fc.stringMatching(/^[a-zA-Z0-9./_\u00e9\u4e2d-]{0,12}$/);
const labels = fc.dictionary(words, words, { minKeys: 1, maxKeys: 4 });
const flag = fc.option(fc.boolean(), { nil: undefined });
const maybe = <T>(arbitrary: fc.Arbitrary<T>) => fc.option(arbitrary, { nil: undefined });
const slices = fc
  .record({
    cluster: words,
    clusterID: fc.nat(0xffffffff),
    namespace: words,
    name: words,
    labels: maybe(labels),
    annotations: maybe(labels),
    addressType: fc.constantFrom('IPv4', 'IPv6'),
    endpoints: fc.array(
      fc.record({
        addresses: fc.array(words, { maxLength: 3 }),
        conditions: fc.record({ ready: flag, serving: flag, terminating: flag }),
        hostname: maybe(words),
        nodeName: maybe(words),
        zone: maybe(words),
        hints: maybe(fc.record({ forZones: fc.array(fc.record({ name: words }), { maxLength: 2 }) })),
      }),
      { maxLength: 4 },
    ),
    ports: fc.array(
      fc.record({
        name: maybe(words),
        protocol: maybe(words),
        port: maybe(fc.integer({ min: -0x80000000, max: 0x7fffffff })),
      }),
      { maxLength: 3 },
    ),
  })
  // Through JSON: what is undefined goes, and every object is a plain one.
  .map((slice) => JSON.parse(JSON.stringify(slice)) as ClusterEndpointSlice);

describe('endpoint slices', () => {
  it('are written as any other protobuf implementation reads them, and read as it writes them', () => {
    fc.assert(
      fc.property(slices, (slice) => {
        const bytes = Buffer.from(encodeEndpointSliceMessage(slice));
        // Compared through JSON: the other side's objects have prototypes of their own.
        const theirs = JSON.parse(JSON.stringify(definition.deserialize(bytes)));
        assert.deepEqual(value(decodeEndpointSliceMessage(bytes)), slice);
        assert.deepEqual(value(decodeEndpointSliceMessage(definition.serialize(theirs))), slice);
      }),
      { numRuns: 300 },
    );
  });

  it('say what their vectors say', () => {
    const known = vectors.filter((vector) => vector.slice !== undefined && !vector.comment?.includes('newer'));
    assert.ok(known.length >= 4);
    for (const { slice, message = '' } of known) {
      assert.deepEqual(value(decodeEndpointSliceMessage(Buffer.from(message, 'base64'))), slice);
      assert.equal(Buffer.from(encodeEndpointSliceMessage(slice as ClusterEndpointSlice)).toString('base64'), message);
    }
  });

  it('have equal bytes when they are equal, whatever order their labels came in', () => {
    const reversed = { ...plain, labels: { b: '2', a: '1' } };
    const sorted = { ...plain, labels: { a: '1', b: '2' } };
    assert.deepEqual(encodeEndpointSliceMessage(reversed), encodeEndpointSliceMessage(sorted));
  });

  it('of a newer writer keep in every part what we do not know', () => {
    const message = Buffer.from(
      vectors.find(({ slice, comment }) => slice !== undefined && comment?.includes('newer'))?.message ?? '',
      'base64',
    );
    const slice = value(decodeEndpointSliceMessage(message));
    const [endpoint] = slice.endpoints;
    const parts = [slice, endpoint, endpoint?.conditions, endpoint?.hints, slice.ports[0]];
    for (const part of parts) assert.ok((part?.unknownFields?.length ?? 0) > 0);
    const changed = { ...slice, ports: [{ ...slice.ports[0], port: 81 }] };
    const again = value(decodeEndpointSliceMessage(encodeEndpointSliceMessage(changed)));
    assert.equal(again.ports[0]?.port, 81);
    assert.deepEqual(
      { ...again, ports: [] },
      { ...slice, ports: [] },
      'a change to one part leaves the rest, known or not',
    );
  });

  it('are compressed and decompressed by what they are given, with a bound', () => {
    const seen: number[] = [];
    const turned = (bytes: Uint8Array) => Uint8Array.from(bytes, (byte) => byte ^ 0xff);
    const compression: Compression = {
      compress: turned,
      decompress(frame, maxBytes) {
        seen.push(maxBytes);
        return frame.length > 1000 ? reject('is too much') : accept(turned(frame));
      },
    };
    const stored = encodeEndpointSlice(plain, compression);
    assert.deepEqual(value(decodeEndpointSlice(stored, compression)), plain);
    assert.deepEqual(seen, [MAX_ENDPOINT_SLICE_BYTES]);
    refused(decodeEndpointSlice(Buffer.alloc(1001), compression), /^endpoint slice is too much$/);
  });

  const wrong: [string, Partial<ClusterEndpointSlice>, RegExp][] = [
    ['of another cluster', { cluster: 'cluster4' }, /"cluster4", expected cluster3/],
    ['with another cluster id', { clusterID: 4 }, /cluster id 4, expected 3/],
    ['under the key of another', { name: 'web-2' }, /shop\/web-2 lies under the key of shop\/web-1/],
    ['without a name', { name: '' }, /no name/],
    ['without a namespace', { namespace: '' }, /no namespace/],
    ['of host names', { addressType: 'FQDN' }, /"FQDN"/],
    ['without an address type', { addressType: '' }, /""/],
    ['with an address of the other family', { endpoints: [{ addresses: ['fd00::1'], conditions: {} }] }, /not IPv4/],
    ['with an address that is none', { endpoints: [{ addresses: ['web-0'], conditions: {} }] }, /"web-0"/],
    [
      'with an address in a zone',
      { addressType: 'IPv6', endpoints: [{ addresses: ['fe80::1%eth0'], conditions: {} }] },
      /%eth0/,
    ],
    ['with a port beyond 65535', { ports: [{ port: 65_536 }] }, /65536/],
    ['with a negative port', { ports: [{ port: -1 }] }, /-1/],
  ];
  for (const [what, change, why] of wrong) {
    it(`${what} are refused`, () => refused(validateEndpointSlice({ ...plain, ...change }, expected), why));
  }

  it('that are as they should be are accepted', () => {
    value(validateEndpointSlice(plain, expected));
    value(validateEndpointSlice({ ...plain, endpoints: [], ports: [] }, expected));
  });
});

describe('a damaged message', () => {
  it('is refused with what is wrong with it', () => {
    refused(decode(0x0a), /ends inside a number/);
    refused(decode(0x0a, 5, 0x61), /ends inside a field/);
    refused(decode(0x10, ...Array<number>(11).fill(0xff)), /more than 10 bytes/);
    refused(decode(...field(1, [0xff, 0xfe])), /not UTF-8/);
    refused(decode(0x08, 1), /cluster of the wrong wire type 0/);
    refused(decode(0x02, 0), /numbered 0/);
    refused(decode(0x7b, 0x7c), /unknown wire type 3/);
    refused(decode(...field(8, [...field(2, []), ...field(2, [])])), /conditions twice/);
  });

  it('cannot become more than so many objects', () => {
    const many = new Uint8Array(2 * 300_000);
    for (let i = 0; i < many.length; i += 2) many[i] = (8 << 3) | 2;
    refused(decodeEndpointSliceMessage(many), /more than 250000 fields/);
  });

  it('never throws, and never changes objects of the language', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (bytes) => {
        decodeEndpointSliceMessage(bytes);
      }),
      { numRuns: 2000 },
    );
    const name = new TextEncoder().encode('__proto__');
    const slice = value(decode(...field(5, [...field(1, name), ...field(2, [0x78])])));
    assert.deepEqual(Object.entries(slice.labels ?? {}), [['__proto__', 'x']]);
    assert.equal(({} as { x?: unknown }).x, undefined);
    value(decodeEndpointSliceMessage(encodeEndpointSliceMessage(slice)));
  });
});
