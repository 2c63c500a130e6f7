/** Whatever happens to nodes, endpoints and namespaces, in steps of any size: what is kept up to date equals a projection of the whole. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { EXTENSION_FIELD, identityKey, ipKey, nodeKey, type WireFamily } from '@clustermesh/contract';
import fc from 'fast-check';
import { type LocatedEndpoint, type NodesSnapshot, NodeTable } from '../sources/nodes/node-table.ts';
import { EndpointFamilies } from './endpoint-families.ts';
import { ENDPOINT_FAMILIES, type EndpointFamily } from './endpoint-projection.ts';
import { addressesOf, byAge, chooseOwner, ipRow, nodeRow, refOf, refusalOf } from './endpoints.ts';

const CLUSTER = { name: 'eu', id: 1, maxConnectedClusters: 255 as const, region: 'eu-west' };
const GRACE_MS = 50;
const NODES = ['n1', 'n2', 'n3'];
const prefix = (family: EndpointFamily) => `cilium/state/${family}/v1/`;

type Step =
  | { readonly do: 'node' | 'remove-node' | 'synced' | 'wipe'; readonly node: string; readonly host: number }
  | { readonly do: 'pod'; readonly node: string; readonly id: string; readonly pod: Pod }
  | { readonly do: 'remove-pod'; readonly node: string; readonly id: string }
  | { readonly do: 'namespace'; readonly name: string }
  | { readonly do: 'pass'; readonly afterMs: number };

interface Pod {
  readonly namespace: string;
  readonly app: string;
  readonly address: number;
  readonly isDual: boolean;
  readonly identity: number;
}

const node = fc.constantFrom(...NODES);
const id = fc.constantFrom('a', 'b', 'c', 'd');
const pod: fc.Arbitrary<Pod> = fc.record({
  namespace: fc.constantFrom('shop', 'bank'),
  app: fc.constantFrom('web', 'db'),
  address: fc.integer({ min: 1, max: 5 }),
  isDual: fc.boolean(),
  // The last one is another cluster's.
  identity: fc.constantFrom(65_800, 65_801, 131_072),
});
const step: fc.Arbitrary<Step> = fc.oneof(
  { weight: 8, arbitrary: fc.record({ do: fc.constant('pod' as const), node, id, pod }) },
  { weight: 4, arbitrary: fc.record({ do: fc.constant('remove-pod' as const), node, id }) },
  {
    weight: 4,
    arbitrary: fc.record({
      do: fc.constantFrom(
        'node' as const,
        'remove-node' as const,
        'synced' as const,
        'synced' as const,
        'wipe' as const,
      ),
      node,
      host: fc.integer({ min: 1, max: 2 }),
    }),
  },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('namespace' as const), name: fc.constantFrom('shop', 'bank') }) },
  { weight: 6, arbitrary: fc.record({ do: fc.constant('pass' as const), afterMs: fc.integer({ min: 1, max: 60 }) }) },
);

/** The whole of it, from nothing but what is in force and who owned which address before. */
function project(
  { nodes, endpoints }: NodesSnapshot,
  closed: ReadonlySet<string>,
  ownersBefore: ReadonlyMap<string, string>,
) {
  const exported = endpoints.filter(
    (endpoint) => !closed.has(endpoint.record.namespace) && refusalOf(CLUSTER, endpoint) === undefined,
  );
  const claims = new Map<string, LocatedEndpoint[]>();
  for (const endpoint of exported)
    for (const address of addressesOf(endpoint)) claims.set(address, [...(claims.get(address) ?? []), endpoint]);
  const owners = new Map<string, string>();
  const ip = new Map<string, string>();
  for (const [address, claimants] of claims) {
    const owner = chooseOwner(claimants, ownersBefore.get(address));
    owners.set(address, refOf(owner));
    const host = nodes.get(owner.node)?.internalIp;
    if (host !== undefined) ip.set(ipKey(CLUSTER.name, address), ipRow(address, owner, host));
  }
  const identities = new Map<string, string>();
  for (const { record } of exported.toSorted(byAge)) {
    const key = identityKey(CLUSTER.name, record.identity);
    if (!identities.has(key)) identities.set(key, record.labels);
  }
  const rows = new Map([...nodes].map(([name, record]) => [nodeKey(CLUSTER.name, name), nodeRow(CLUSTER, record)]));
  const conflicts = [...claims.values()].reduce((sum, claimants) => sum + claimants.length - 1, 0);
  return { rows: { nodes: rows, ip, identities }, owners, conflicts };
}

function withoutStamp(value: string): unknown {
  if (!value.startsWith('{')) return value;
  const { [EXTENSION_FIELD]: extension, ...rest } = JSON.parse(value);
  const { changedAt: _, ...kept } = extension ?? {};
  return { ...rest, [EXTENSION_FIELD]: kept };
}

const meaning = (rows: ReadonlyMap<string, string>) =>
  new Map([...rows].sort().map(([key, value]) => [key, withoutStamp(value)]));

/** Values of a desired set of keys; how many were set since it was asked last. */
function fakeWriter() {
  const desired = new Map<string, string>();
  let sets = 0;
  return {
    desired,
    takeSets() {
      const taken = sets;
      sets = 0;
      return taken;
    },
    set(key: string, value: string | Buffer) {
      sets++;
      desired.set(key, String(value));
    },
    delete(key: string) {
      desired.delete(key);
    },
    replace(owned: string, rows: ReadonlyMap<string, string | Buffer>) {
      for (const key of [...desired.keys()]) if (key.startsWith(owned) && !rows.has(key)) desired.delete(key);
      for (const [key, value] of rows) this.set(key, value);
    },
  };
}

function mesh(known: readonly string[] = []) {
  const table = new NodeTable({ graceMs: GRACE_MS, known });
  const { take } = table.follow();
  const writer = fakeWriter();
  const families = new EndpointFamilies({ cluster: CLUSTER, writer, prefix, wallMs: () => nowMs });
  const stamped = new Map<WireFamily, Map<string, string>>();
  const closed = new Set<string>();
  let owners: ReadonlyMap<string, string> = new Map();
  let revision = 1;
  let nowMs = 0;
  const put = (key: string, value: object | string) => ({
    key: `clustermesh/nodes/${key}`,
    value: Buffer.from(typeof value === 'string' ? value : JSON.stringify(value)),
    modRevision: ++revision,
  });
  const upsert = (key: string, value: object | string) =>
    table.apply({ upserts: [put(key, value)], removes: [] }, nowMs);
  const remove = (...keys: string[]) =>
    table.apply({ upserts: [], removes: keys.map((key) => `clustermesh/nodes/${key}`) }, nowMs);

  return {
    table,
    writer,
    take(one: Step) {
      switch (one.do) {
        case 'node': {
          const record = { internalIp: `172.31.${one.host}.11`, gatewayIp: '10.1.1.1', podCidr: '10.1.1.0/24' };
          return upsert(`${one.node}/node`, { name: one.node, ...record });
        }
        case 'remove-node':
          return remove(`${one.node}/node`);
        case 'synced':
          return upsert(`${one.node}/synced`, 'T');
        case 'wipe':
          return remove(
            ...['node', 'synced', ...['a', 'b', 'c', 'd'].map((pod) => `endpoints/${pod}`)].map(
              (key) => `${one.node}/${key}`,
            ),
          );
        case 'pod': {
          const { namespace, app, address, isDual, identity } = one.pod;
          const labels = `k8s:app=${app};k8s:io.cilium.k8s.policy.cluster=eu;k8s:io.kubernetes.pod.namespace=${namespace};`;
          const ipv6 = isDual ? { ipv6: `fd00::${address}` } : {};
          const record = { id: one.id, namespace, pod: one.id, labels, identity, ipv4: `10.1.1.${address}`, ...ipv6 };
          return upsert(`${one.node}/endpoints/${one.id}`, record);
        }
        case 'remove-pod':
          return remove(`${one.node}/endpoints/${one.id}`);
        case 'namespace':
          if (!closed.delete(one.name)) closed.add(one.name);
          return;
        case 'pass':
          nowMs += one.afterMs;
          return this.pass();
      }
    },
    pass() {
      const delta = take(nowMs);
      families.write(delta, (namespace) => !closed.has(namespace), stamped);
      const snapshot = table.snapshot(nowMs);
      const whole = project(snapshot, closed, owners);
      owners = whole.owners;
      assert.equal(delta.complete, snapshot.complete);
      assert.equal(families.size, snapshot.endpoints.length);
      const conflicts = families.problems().filter((problem) => problem.includes('already belongs to'));
      assert.equal(conflicts.length, whole.conflicts);
      // Until every known node is there, nothing is taken away.
      if (!delta.complete) return;
      for (const family of ENDPOINT_FAMILIES) {
        const written = new Map([...writer.desired].filter(([key]) => key.startsWith(prefix(family))));
        assert.deepEqual(meaning(written), meaning(whole.rows[family]), family);
        assert.deepEqual(
          new Map([...(stamped.get(family) ?? [])].sort()),
          new Map([...written].sort()),
          'what is stamped',
        );
      }
    },
  };
}

test('after any history what is written equals a projection of the whole', () => {
  const history = fc.tuple(fc.array(step, { minLength: 5, maxLength: 80 }), fc.subarray(NODES));
  fc.assert(
    fc.property(history, ([steps, known]) => {
      const one = mesh(known);
      one.table.listed(0);
      for (const each of [...steps, { do: 'pass', afterMs: 1 } as const]) one.take(each);
    }),
    { numRuns: 500 },
  );
});

test('one pod more is one address more to be written, however many there are', () => {
  const one = mesh();
  one.table.listed(0);
  one.take({ do: 'node', node: 'n1', host: 1 });
  one.take({ do: 'synced', node: 'n1', host: 1 });
  const start = (i: number) =>
    one.take({
      do: 'pod',
      node: 'n1',
      id: `p${i}`,
      pod: { namespace: 'shop', app: 'web', address: i, isDual: false, identity: 65_800 },
    });
  for (let i = 1; i <= 200; i++) start(i);
  one.pass();
  assert.equal(one.writer.takeSets(), 202, 'a node, an identity and the addresses');
  start(201);
  one.pass();
  assert.equal(one.writer.takeSets(), 1);
  one.pass();
  assert.equal(one.writer.takeSets(), 0);
});
