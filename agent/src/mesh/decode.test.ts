import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import {
  type Decoded,
  decodeIpEntry,
  decodeNode,
  encodeIpEntry,
  encodeNode,
  makeNode,
  validateIpEntry,
  validateNode,
} from '@clustermesh/contract';
import fc from 'fast-check';
import { type AddressEntry, type Expected, readIpEntry, readNode } from './decode.ts';
import { writtenAddress } from './written-address.ts';

const EXPECTED: Expected = { cluster: 'us', clusterId: 2, maxConnectedClusters: 255 };
const RUNS = { numRuns: Number(process.env.CM_RUNS ?? 3_000) };

/** Values that a stranger may put anywhere. */
const odd = fc.oneof(
  fc.constantFrom<unknown>(
    null,
    '',
    0,
    -1,
    1.5,
    256,
    2 ** 32,
    true,
    [],
    {},
    '10.2.1.5',
    '10.2.1.05',
    'fd00::1',
    '////AA==',
  ),
  fc.jsonValue({ maxDepth: 2 }),
);

/** A good object of which up to three fields are left out, replaced or added. */
function spoiled(good: object, extra: readonly string[]): fc.Arbitrary<string> {
  const fields = [...Object.keys(good), ...extra];
  return fc
    .array(fc.tuple(fc.constantFrom(...fields), fc.option(odd, { nil: undefined, freq: 4 })), { maxLength: 3 })
    .map((changes) => {
      const object: Record<string, unknown> = { ...structuredClone(good) };
      for (const [field, value] of changes) {
        if (value === undefined) delete object[field];
        else object[field] = value;
      }
      return JSON.stringify(object);
    });
}

const name = fc.constantFrom('10.2.1.5', '10.2.1.5/32', '10.2.1.05', 'fd00::1', '', 'n1', 'n2');

/** What is used of an entry, its stamp included. */
function used(decoded: Decoded<AddressEntry>): unknown {
  if (!decoded.ok) return decoded;
  const { IP, Mask, HostIP, ID, Key, NamedPorts, 'x-clustermesh': stamp } = decoded.value;
  return { IP, Mask: Mask ?? null, HostIP, ID, Key, NamedPorts: NamedPorts ?? null, changedAt: stamp?.changedAt };
}

function sameAddress(fast: Decoded<AddressEntry>, slow: Decoded<AddressEntry>): void {
  assert.deepEqual(used(fast), used(slow));
}

function same(fast: Decoded<unknown>, slow: Decoded<unknown>): void {
  assert.deepEqual(fast, slow);
}

/** A good text in which a few letters are replaced, left out or put in. */
function blemished(good: string): fc.Arbitrary<string> {
  const letter = fc.oneof(fc.constantFrom(...'"\\{},:[]0.9 \n\u0000\u00e9'), fc.string({ maxLength: 2 }));
  const change = fc.tuple(fc.nat(good.length), fc.nat(1), letter);
  return fc
    .array(change, { maxLength: 2 })
    .map((changes) => changes.reduce((text, [at, cut, put]) => text.slice(0, at) + put + text.slice(at + cut), good));
}

describe('the fast path says what the contract says', () => {
  const entry = {
    IP: '10.2.1.5',
    Mask: null,
    HostIP: '172.31.2.11',
    ID: 2 * 65_536 + 300,
    Key: 0,
    Metadata: '',
    K8sNamespace: 'shop',
    K8sPodName: 'web-0',
    'x-clustermesh': { changedAt: '2026-01-01T00:00:00Z', zone: 'a', other: 1 },
    Later: { version: 2 },
  };

  const { Later: _, ...rest } = entry;
  const written = { ...rest, 'x-clustermesh': { changedAt: '2026-01-01T00:00:00Z' } };
  const pick = ({ IP, Mask, HostIP, ID, Key }: AddressEntry) => ({ IP, Mask, HostIP, ID, Key });

  test('of an address', () => {
    const texts = fc.oneof(
      spoiled(entry, ['NamedPorts', 'K8sServiceAccount', '__proto__', 'another']),
      spoiled(written, ['NamedPorts', 'K8sServiceAccount', '__proto__', 'another']),
      blemished(JSON.stringify(written)),
      fc.string(),
      fc.json(),
    );
    fc.assert(
      fc.property(texts, name, (text, key) => {
        const decoded = decodeIpEntry(text);
        sameAddress(
          readIpEntry(key, Buffer.from(text), EXPECTED),
          decoded.ok ? validateIpEntry(decoded.value, { ...EXPECTED, name: key }) : decoded,
        );
      }),
      RUNS,
    );
  });

  test('of an address as it is written', () => {
    const decoded = readIpEntry(written.IP, Buffer.from(JSON.stringify(written)), EXPECTED);
    assert.deepEqual(used(decoded), { ...pick(written), NamedPorts: null, changedAt: '2026-01-01T00:00:00Z' });
  });

  test('and is taken for what our apiservers write', () => {
    const { K8sNamespace: _n, K8sPodName: _p, 'x-clustermesh': _x, ...least } = written;
    for (const like of [
      written,
      least,
      { ...least, 'x-clustermesh': written['x-clustermesh'] },
      { ...least, K8sPodName: 'p' },
    ]) {
      const value = Buffer.from(encodeIpEntry(like));
      assert.deepEqual(
        writtenAddress(like.IP, value, EXPECTED),
        'x-clustermesh' in like ? { ...pick(like), 'x-clustermesh': like['x-clustermesh'] } : pick(like),
      );
      for (let length = 0; length < value.length; length++)
        assert.equal(writtenAddress(like.IP, value.subarray(0, length), EXPECTED), undefined);
    }
  });

  test('of an address with any identity', () => {
    fc.assert(
      fc.property(fc.oneof(fc.nat(300), fc.integer({ min: 65_000, max: 262_500 })), (ID) => {
        for (const like of [entry, written]) {
          const text = JSON.stringify({ ...like, ID });
          const decoded = decodeIpEntry(text);
          assert.ok(decoded.ok);
          const slow = validateIpEntry(decoded.value, { ...EXPECTED, name: entry.IP });
          sameAddress(readIpEntry(entry.IP, Buffer.from(text), EXPECTED), slow);
        }
      }),
      RUNS,
    );
  });

  const node = {
    ...JSON.parse(
      encodeNode(
        makeNode({
          name: 'n1',
          cluster: 'us',
          clusterId: 2,
          internalIp: '172.31.2.11',
          gatewayIp: '10.2.1.1',
          podCidr: '10.2.1.0/24',
          labels: { a: 'b' },
        }),
      ),
    ),
    'x-clustermesh': { changedAt: '2026-01-01T00:00:00Z' },
  };

  test('of a node', () => {
    const addresses = [
      [],
      [{ Type: 'Hostname', IP: 'n1' }],
      [{ Type: 'InternalIP', IP: 'nowhere' }],
      [{ Type: 'InternalIP', IP: '172.31.2.11', Since: 'x' }],
    ];
    const cidrs = [
      '10.2.1.0/24',
      { IP: '10.2.1.0', Mask: '////AA==' },
      { IP: '10.2.1.0', Mask: '//8AAA==', Zone: '' },
      { IP: '10.2.1.0', Mask: '/w//AA==' },
      { IP: 'fd00::', Mask: '////AA==' },
    ];
    const texts = fc.oneof(
      spoiled(node, ['__proto__', 'another']),
      fc.constantFrom(...addresses).map((IPAddresses) => JSON.stringify({ ...node, IPAddresses })),
      fc.constantFrom(...cidrs).map((IPv4AllocCIDR) => JSON.stringify({ ...node, IPv4AllocCIDR })),
      fc.json(),
    );
    fc.assert(
      fc.property(texts, name, (text, key) => {
        const decoded = decodeNode(text);
        same(
          readNode(key, text, EXPECTED),
          decoded.ok ? validateNode(decoded.value, { ...EXPECTED, name: key }) : decoded,
        );
      }),
      RUNS,
    );
  });
});
