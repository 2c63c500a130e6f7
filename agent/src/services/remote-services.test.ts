import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { EXTENSION_FIELD } from '@clustermesh/contract';
import type { ServiceRow } from '../datapath/types.ts';
import type { ServiceV2 } from './choice.ts';
import { createServicesProjection } from './projection.ts';
import { type EndpointState, localService, OWN_ID, remoteService, remoteSlice } from './testing.ts';

const NAME = 'default/shop';
const SLICE = 'default/shop-1';
const A = '10.2.1.1';
const B = '10.2.1.2';

function rig(serviceV2: ServiceV2 = 'prefer-legacy') {
  const heard = new Set<number>([OWN_ID]);
  const rows = new Map<string, ServiceRow>();
  const projection = createServicesProjection({
    clusterId: OWN_ID,
    serviceV2,
    sources: { isSettled: () => true, areSlicesHeard: (id) => heard.has(id), isGone: () => false },
  });
  const written: string[] = [];
  const flush = () => {
    written.length = 0;
    projection.flush({
      set: (key, row) => {
        written.push(key);
        rows.set(key, row);
      },
      delete: (key) => void rows.delete(key),
    });
    return written;
  };
  projection.setService(NAME, localService());
  return {
    projection,
    flush,
    legacy(ips: readonly string[] | undefined, extension?: { readonly outgrownAt: string }) {
      const service =
        ips === undefined
          ? undefined
          : remoteService('us', 2, ips, extension === undefined ? {} : { [EXTENSION_FIELD]: extension });
      projection.setRemote('us', 2, NAME, service);
    },
    slice(endpoints: Readonly<Record<string, EndpointState>> | undefined, name = SLICE) {
      const short = name.slice('default/'.length);
      projection.setRemoteSlice(
        'us',
        2,
        name,
        endpoints === undefined ? undefined : remoteSlice('us', 2, endpoints, { name: short }),
      );
    },
    hear() {
      heard.add(2);
      projection.sourcesChanged(2);
    },
    backends(frontend = '10.96.0.10:80/TCP') {
      flush();
      return rows.get(frontend)?.backends.map(({ ip }) => ip);
    },
  };
}

describe('where a cluster publishes both forms', () => {
  const cases: [
    what: string,
    preference: ServiceV2,
    legacy: string[] | undefined,
    slice: Record<string, EndpointState> | undefined,
    expected: string[],
  ][] = [
    ['the legacy one is taken while it has all', 'prefer-legacy', [A, B], { [A]: 'ready' }, [A, B]],
    ['the slices are, where they have more', 'prefer-legacy', [A], { [A]: 'ready', [B]: 'ready' }, [A, B]],
    ['a backend that is not ready is nothing to miss', 'prefer-legacy', [A], { [A]: 'ready', [B]: 'not-ready' }, [A]],
    ['the slices are, where there is no legacy value', 'prefer-legacy', undefined, { [B]: 'ready' }, [B]],
    ['the legacy one is, where there is no slice', 'prefer-legacy', [A], undefined, [A]],
    ['slices are preferred if asked for', 'prefer-endpointslice', [A, B], { [A]: 'ready' }, [A]],
    ['and without one the legacy value counts', 'prefer-endpointslice', [A], undefined, [A]],
    ['slices alone, if asked for', 'only-endpointslice', [A], undefined, []],
  ];
  for (const [what, preference, legacy, endpoints, expected] of cases) {
    for (const order of ['legacy', 'slice'] as const) {
      test(`${what} (${preference}, ${order} first)`, () => {
        const r = rig(preference);
        r.hear();
        if (order === 'legacy') r.legacy(legacy);
        r.slice(endpoints);
        if (order === 'slice') r.legacy(legacy);
        assert.deepEqual(r.backends(), expected);
      });
    }
  }

  test('a service that has outgrown its legacy value has the backends of its slices', () => {
    const r = rig();
    r.hear();
    r.legacy([A, B], { outgrownAt: '2026-01-01T00:00:00Z' });
    assert.deepEqual(r.backends(), [A, B], 'without slices the old value is all there is');
    assert.match(r.projection.problems().join(), /1 services of us have more backends than one value .*default\/shop/);
    r.slice({ [A]: 'ready' });
    assert.deepEqual(r.backends(), [A]);
    assert.deepEqual(r.projection.problems(), []);
    r.slice(undefined);
    r.legacy([B]);
    assert.deepEqual(r.backends(), [B]);
    assert.deepEqual(r.projection.problems(), []);
  });

  test('a part of the slices never takes the place of a whole value', () => {
    const r = rig('prefer-endpointslice');
    r.legacy([A, B]);
    r.slice({ '10.2.1.3': 'ready' });
    assert.deepEqual(r.backends(), [A, B]);
    r.hear();
    assert.deepEqual(r.backends(), ['10.2.1.3']);
  });
});

describe('slices', () => {
  test('of one service are one set, and each goes by itself', () => {
    const r = rig();
    r.hear();
    r.slice({ [A]: 'ready' });
    r.slice({ [B]: 'ready', [A]: 'ready' }, 'default/shop-2');
    assert.deepEqual(r.backends(), [A, B]);
    r.slice(undefined);
    assert.deepEqual(r.backends(), [A, B]);
    r.slice(undefined, 'default/shop-2');
    assert.deepEqual(r.backends(), []);
  });

  test('that terminate serve as a last resort, and what is merely not ready does not', () => {
    const r = rig();
    r.hear();
    r.slice({ [A]: 'terminating', [B]: 'ready', '10.2.1.3': 'not-ready' });
    assert.deepEqual(r.backends(), [B]);
    r.slice({ [A]: 'terminating', [B]: 'not-ready' });
    assert.deepEqual(r.backends(), [A]);
  });

  test('whose conditions are absent are ready', () => {
    const r = rig();
    r.hear();
    r.projection.setRemoteSlice('us', 2, SLICE, {
      ...remoteSlice('us', 2, {}),
      endpoints: [{ addresses: [A], conditions: {} }],
    });
    assert.deepEqual(r.backends(), [A]);
  });

  test('that move to another service leave the first', () => {
    const r = rig();
    r.hear();
    r.slice({ [A]: 'ready' });
    const elsewhere = { 'kubernetes.io/service-name': 'other' };
    r.projection.setRemoteSlice('us', 2, SLICE, remoteSlice('us', 2, { [A]: 'ready' }, { labels: elsewhere }));
    assert.deepEqual(r.backends(), []);
  });

  test('with addresses that cannot be are left out there, and it is said', () => {
    const r = rig();
    r.hear();
    r.slice({ [A]: 'ready', '127.0.0.1': 'ready', '224.0.0.1': 'terminating' });
    assert.deepEqual(r.backends(), [A]);
    assert.match(r.projection.problems().join(), /2 service backends of us .* 127.0.0.1 of slice default\/shop-1/);
  });

  test('of IPv6 reach the frontend of their family, each address once in whatever form, and those that cannot be do not', () => {
    const r = rig();
    r.hear();
    r.projection.setService(NAME, localService({ clusterIPs: ['10.96.0.10', 'fd00::10'] }));
    const endpoints = {
      'FD02:0::1': 'ready',
      'fd02::1': 'ready',
      'fe80::1': 'ready',
      '::ffff:127.0.0.1': 'ready',
    } as const;
    r.projection.setRemoteSlice('us', 2, SLICE, { ...remoteSlice('us', 2, endpoints), addressType: 'IPv6' });
    assert.deepEqual(r.backends(), []);
    assert.deepEqual(r.backends('[fd00::10]:80/TCP'), ['fd02::1']);
    assert.match(r.projection.problems().join(), /2 service backends of us cannot be another cluster's/);
  });

  test('a change of one merges its service and no other, however many there are', () => {
    const r = rig();
    r.hear();
    for (let n = 0; n < 50; n++) {
      const name = `s${n}`;
      r.projection.setService(`default/${name}`, localService({ name, clusterIPs: [`10.96.1.${n}`] }));
      for (let cluster = 3; cluster < 13; cluster++) {
        const labels = { 'kubernetes.io/service-name': name };
        const slice = remoteSlice(`c${cluster}`, cluster, { [`10.${cluster}.1.${n}`]: 'ready' }, { name, labels });
        r.projection.setRemoteSlice(`c${cluster}`, cluster, `default/${name}`, slice);
      }
    }
    assert.equal(r.flush().length, 51);
    r.slice({ [A]: 'ready' });
    assert.deepEqual(r.flush(), ['10.96.0.10:80/TCP']);
  });
});
