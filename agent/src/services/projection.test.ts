import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { Affinity } from '@clustermesh/contract';
import fc from 'fast-check';
import type { ServiceRow } from '../datapath/types.ts';
import { createServicesProjection, type ServicesProjection } from './projection.ts';
import { backend, type EndpointState, localService, OWN_ID, remoteService, slice } from './testing.ts';

const NAME = 'default/shop';
const FRONTEND = '10.96.0.10:80/TCP';

/** A projection with its output and with sources that can be told to have spoken. */
function rig() {
  const settled = new Set<number>();
  const gone = new Set<number>();
  const rows = new Map<string, ServiceRow>();
  const projection = createServicesProjection({
    clusterId: OWN_ID,
    podCidr: { ip: '10.1.1.0', length: 24 },
    serviceV2: 'prefer-legacy',
    sources: {
      isSettled: (id) => settled.has(id),
      areSlicesHeard: (id) => settled.has(id),
      isGone: (id) => gone.has(id),
    },
  });
  const sink = {
    set: (key: string, row: ServiceRow) => void rows.set(key, row),
    delete: (key: string) => void rows.delete(key),
  };
  return {
    projection,
    rows,
    flush: () => projection.flush(sink),
    settle(id: number) {
      settled.add(id);
      projection.sourcesChanged();
      projection.flush(sink);
    },
    leave(id: number) {
      gone.add(id);
      projection.sourcesChanged();
      projection.flush(sink);
    },
    restore(held: ReadonlyMap<string, ServiceRow>) {
      for (const [key, row] of held) rows.set(key, row);
      projection.restore(held);
      projection.flush(sink);
    },
    backends: () => rows.get(FRONTEND)?.backends.map((b) => b.ip),
  };
}

const rowOf = (backends: ServiceRow['backends']): ServiceRow => ({
  frontend: { ip: '10.96.0.10', port: 80, protocol: 'TCP' },
  backends,
  flags: 0,
});

describe('arrival and removal', () => {
  const steps: Record<string, (p: ServicesProjection) => void> = {
    service: (p) => p.setService(NAME, localService()),
    slice: (p) => p.setSlice('default/shop-1', slice({ '10.1.1.1': 'ready' })),
    remote: (p) => p.setRemote('us', 2, NAME, remoteService('us', 2, ['10.2.1.1'])),
  };
  const undo: Record<string, (p: ServicesProjection) => void> = {
    service: (p) => p.setService(NAME, undefined),
    slice: (p) => p.setSlice('default/shop-1', undefined),
    remote: (p) => p.setRemote('us', 2, NAME, undefined),
  };
  const orders = [
    ['service', 'slice', 'remote'],
    ['remote', 'slice', 'service'],
    ['slice', 'service', 'remote'],
    ['remote', 'service', 'slice'],
  ];
  for (const order of orders) {
    test(`in the order ${order.join(', ')} both backends are there, then nothing is`, () => {
      const r = rig();
      r.settle(OWN_ID);
      for (const step of order) {
        steps[step]?.(r.projection);
        r.flush();
      }
      assert.deepEqual(r.backends(), ['10.1.1.1', '10.2.1.1']);
      for (const step of order) {
        undo[step]?.(r.projection);
        r.flush();
      }
      assert.equal(r.rows.size, 0);
    });
  }
});

test('a slice that moves to another service leaves the first', () => {
  const r = rig();
  r.projection.setService(NAME, localService());
  r.projection.setSlice('default/x', slice({ '10.1.1.1': 'ready' }));
  r.flush();
  r.projection.setSlice('default/x', slice({ '10.1.1.1': 'ready' }, { service: 'other' }));
  r.flush();
  assert.deepEqual(r.backends(), []);
});

test('a new address of a service takes the old row with it', () => {
  const r = rig();
  r.settle(OWN_ID);
  r.projection.setService(NAME, localService());
  r.flush();
  r.projection.setService(NAME, localService({ clusterIPs: ['10.96.0.11'] }));
  r.flush();
  assert.deepEqual([...r.rows.keys()], ['10.96.0.11:80/TCP']);
});

test('of two services with one address the same one wins in any order, and the other takes over when it goes', () => {
  for (const order of [
    ['default/a', 'default/b'],
    ['default/b', 'default/a'],
  ]) {
    const r = rig();
    for (const name of order) {
      const short = name.slice('default/'.length);
      r.projection.setService(name, localService({ name: short }));
      r.projection.setSlice(
        name,
        slice({ [short === 'a' ? '10.1.1.1' : '10.1.1.2']: 'ready' }, { service: short, name: short }),
      );
      r.flush();
    }
    assert.deepEqual(r.backends(), ['10.1.1.1']);
    r.projection.setService('default/a', undefined);
    r.flush();
    assert.deepEqual(r.backends(), ['10.1.1.2']);
  }
});

describe('backends of a peer', () => {
  for (const ip of ['127.0.0.1', '0.0.0.0', '0.1.2.3', '224.0.0.1', '255.255.255.255', '10.1.1.7']) {
    test(`at ${ip} are ignored and counted, until the peer takes them back`, () => {
      const r = rig();
      r.projection.setService(NAME, localService());
      r.projection.setRemote('us', 2, NAME, remoteService('us', 2, ['10.2.1.1', ip]));
      r.flush();
      assert.deepEqual(r.backends(), ['10.2.1.1']);
      assert.deepEqual(r.projection.problems(), [
        `1 service backends of us cannot be another cluster's: ignored; e.g. ${ip} of ${NAME}`,
      ]);
      r.projection.setRemote('us', 2, NAME, remoteService('us', 2, ['10.2.1.1']));
      assert.deepEqual(r.projection.problems(), []);
    });
  }

  test('outside of the pod CIDR of this node are taken, also next to it', () => {
    const r = rig();
    r.projection.setService(NAME, localService());
    r.projection.setRemote('us', 2, NAME, remoteService('us', 2, ['10.1.0.255', '10.1.2.0', '223.255.255.255']));
    r.flush();
    assert.deepEqual(r.backends(), ['10.1.0.255', '10.1.2.0', '223.255.255.255']);
    assert.deepEqual(r.projection.problems(), []);
  });
});

describe('restored rows', () => {
  const held = new Map([[FRONTEND, rowOf([backend('10.1.1.1'), backend('10.2.1.1', 2), backend('10.3.1.1', 3)])]]);

  test('stay whole while nobody has spoken', () => {
    const r = rig();
    r.restore(held);
    assert.deepEqual(r.backends(), ['10.1.1.1', '10.2.1.1', '10.3.1.1']);
  });

  test('of no service at all go once the local services have synced', () => {
    const r = rig();
    r.restore(held);
    r.settle(2);
    r.settle(3);
    assert.equal(r.rows.size, 1);
    r.settle(OWN_ID);
    assert.equal(r.rows.size, 0);
    assert.equal(r.projection.restoredCount(), 0);
  });

  test('keep the backends of a peer that has not synced, after the service itself was heard', () => {
    const r = rig();
    r.restore(held);
    r.projection.setService(NAME, localService());
    r.projection.setSlice('default/shop-1', slice({ '10.1.1.1': 'ready' }));
    r.settle(OWN_ID);
    assert.deepEqual(r.backends(), ['10.1.1.1', '10.2.1.1', '10.3.1.1']);
    r.settle(2);
    assert.deepEqual(r.backends(), ['10.1.1.1', '10.3.1.1'], 'cluster 2 synced without this backend');
    r.settle(3);
    assert.deepEqual(r.backends(), ['10.1.1.1']);
    assert.equal(r.projection.restoredCount(), 0);
  });

  test('lose the backends of a cluster that left the mesh, even before the local services are heard', () => {
    const r = rig();
    r.restore(held);
    r.leave(2);
    assert.deepEqual(r.backends(), ['10.1.1.1', '10.3.1.1']);
  });
});

// ---- properties

interface World {
  readonly affinity: Affinity;
  readonly global: boolean;
  readonly local: Readonly<Record<string, EndpointState>>;
  readonly secondSlice: Readonly<Record<string, EndpointState>>;
  readonly remote: Readonly<Record<number, readonly string[]>>;
}

const states = fc.constantFrom<EndpointState>('ready', 'terminating', 'not-ready');
const worlds: fc.Arbitrary<World> = fc.record({
  affinity: fc.constantFrom<Affinity>('none', 'local', 'remote'),
  global: fc.boolean(),
  local: fc.dictionary(fc.constantFrom('10.1.1.1', '10.1.1.2'), states),
  secondSlice: fc.dictionary(fc.constantFrom('10.1.2.1', '10.1.2.2'), states),
  remote: fc.record({
    2: fc.subarray(['10.2.1.1', '10.2.1.2']),
    3: fc.subarray(['10.3.1.1']),
  }),
});

const CLUSTERS = [2, 3];

/** Every single fact of a world, as it would arrive from etcd, and the moments at which a source is complete. */
function facts(world: World): { readonly id: number; readonly tell: (p: ServicesProjection) => void }[] {
  return [
    { id: OWN_ID, tell: (p) => p.setService(NAME, localService({ affinity: world.affinity, global: world.global })) },
    { id: OWN_ID, tell: (p) => p.setSlice('default/shop-1', slice(world.local)) },
    { id: OWN_ID, tell: (p) => p.setSlice('default/shop-2', slice(world.secondSlice, { name: 'shop-2' })) },
    ...CLUSTERS.map((id) => ({
      id,
      tell: (p: ServicesProjection) =>
        p.setRemote(`c${id}`, id, NAME, remoteService(`c${id}`, id, world.remote[id] ?? [])),
    })),
  ];
}

function settledWorld(world: World): ReturnType<typeof rig> {
  const r = rig();
  for (const fact of facts(world)) fact.tell(r.projection);
  for (const id of [OWN_ID, ...CLUSTERS]) r.settle(id);
  return r;
}

/** Facts in any order; a source settles at any moment after its last fact. */
function schedule(
  world: World,
  order: readonly number[],
): (() => { id: number; tell?: (p: ServicesProjection) => void; settles: boolean })[] {
  const all = facts(world);
  const events = [
    ...all.map((fact) => ({ id: fact.id, tell: fact.tell, settles: false })),
    ...[OWN_ID, ...CLUSTERS].map((id) => ({ id, settles: true })),
  ];
  const shuffled = events
    .map((event, i) => ({ event, at: order[i] ?? i }))
    .sort((a, b) => a.at - b.at)
    .map(({ event }) => event);
  // A settling that came before one of its facts is moved behind it.
  const settles = shuffled.filter((event) => event.settles);
  const result: typeof shuffled = [];
  const open = new Map(all.map((fact) => [fact.id, all.filter((other) => other.id === fact.id).length]));
  const waiting = new Set<number>();
  for (const event of shuffled) {
    if (event.settles) {
      if (open.get(event.id) === 0) result.push(event);
      else waiting.add(event.id);
      continue;
    }
    result.push(event);
    open.set(event.id, (open.get(event.id) ?? 0) - 1);
    if (open.get(event.id) === 0 && waiting.has(event.id))
      result.push(...settles.filter((settle) => settle.id === event.id));
  }
  return result.map((event) => () => event);
}

const orders = fc.array(fc.integer({ min: 0, max: 1000 }), { minLength: 8, maxLength: 8 });

test('property: a restart in an unchanged world never changes the row, whatever arrives first', () => {
  fc.assert(
    fc.property(worlds, orders, (world, order) => {
      const before = settledWorld(world);
      const expected = before.backends();
      const r = rig();
      r.restore(new Map(before.rows));
      assert.deepEqual(r.backends(), expected, 'right after the start');
      for (const next of schedule(world, order)) {
        const event = next();
        if (event.settles) r.settle(event.id);
        else {
          event.tell?.(r.projection);
          r.flush();
        }
        assert.deepEqual(
          r.backends(),
          expected,
          `after ${event.settles ? 'cluster' : 'a fact of cluster'} ${event.id}${event.settles ? ' settled' : ''}`,
        );
      }
      assert.equal(r.projection.restoredCount(), 0);
    }),
    { numRuns: 500 },
  );
});

test('property: a source that has not spoken cannot shrink a service (affinity none)', () => {
  const changed = fc.record({ before: worlds, after: worlds, order: orders });
  fc.assert(
    fc.property(changed, ({ before, after, order }) => {
      const world = { ...after, affinity: 'none' as const, global: true };
      const held = settledWorld({ ...before, affinity: 'none', global: true });
      const restored = held.rows.get(FRONTEND)?.backends ?? [];
      const r = rig();
      r.restore(new Map(held.rows));
      const settled = new Set<number>();
      for (const next of schedule(world, order)) {
        const event = next();
        if (event.settles) {
          settled.add(event.id);
          r.settle(event.id);
        } else {
          event.tell?.(r.projection);
          r.flush();
        }
        const mustStay = restored.filter((b) => !settled.has(b.clusterId) && b.clusterId !== OWN_ID).map((b) => b.ip);
        const have = new Set(r.backends());
        assert.ok(
          mustStay.every((ip) => have.has(ip)),
          `${[...have]} lacks one of ${mustStay}`,
        );
      }
    }),
    { numRuns: 300 },
  );
});

test('property: once all have spoken nothing of the past is left, whatever was restored', () => {
  fc.assert(
    fc.property(worlds, worlds, orders, (past, present, order) => {
      const expected = settledWorld(present);
      const r = rig();
      r.restore(new Map([...settledWorld(past).rows, ['10.96.0.99:1/TCP', rowOf([backend('10.2.9.9', 2)])]]));
      for (const next of schedule(present, order)) {
        const event = next();
        if (event.settles) r.settle(event.id);
        else {
          event.tell?.(r.projection);
          r.flush();
        }
      }
      assert.deepEqual([...r.rows], [...expected.rows]);
    }),
    { numRuns: 300 },
  );
});
