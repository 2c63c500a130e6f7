import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { type Decoded, decodeServiceExport, validateServiceExport } from './index.ts';

const plain = {
  cluster: 'cluster3',
  name: 'web',
  namespace: 'shop',
  exportCreationTimestamp: '2026-01-02T03:04:05Z',
  ports: [{ name: 'http', protocol: 'TCP', port: 80 }],
  type: 'ClusterSetIP',
  sessionAffinity: 'None',
};

const read = (change: Record<string, unknown>, name = 'shop/web') => {
  const decoded = decodeServiceExport(JSON.stringify({ ...plain, ...change }));
  return decoded.ok ? validateServiceExport(decoded.value, { cluster: 'cluster3', name }) : decoded;
};

function refused(decoded: Decoded<unknown>, why: RegExp): void {
  assert.equal(decoded.ok, false, 'was accepted');
  if (!decoded.ok) assert.match(decoded.reason, why);
}

describe('service exports', () => {
  it('are read with what older writers left empty', () => {
    for (const sessionAffinity of ['', null, undefined]) {
      const decoded = read({ sessionAffinity, ports: null, labels: null });
      assert.ok(decoded.ok);
      assert.deepEqual([decoded.value.sessionAffinity, decoded.value.ports], ['None', []]);
    }
    assert.ok(read({ exportCreationTimestamp: '2026-01-02T03:04:05.678+02:00' }).ok);
  });

  const wrong: [string, Record<string, unknown>, RegExp][] = [
    ['of another cluster', { cluster: 'cluster4' }, /"cluster4", expected cluster3/],
    ['without a cluster', { cluster: '' }, /cluster/],
    ['under the key of another', { name: 'other' }, /shop\/other lies under the key of shop\/web/],
    ['without a time', { exportCreationTimestamp: null }, /exportCreationTimestamp/],
    ['with a time that is unset', { exportCreationTimestamp: '0001-01-01T00:00:00Z' }, /is unset/],
    ['with a time of another form', { exportCreationTimestamp: '2026-01-02 03:04:05' }, /RFC 3339/],
    ['with a date that is none', { exportCreationTimestamp: '2026-13-02T03:04:05Z' }, /no date/],
    ['of an unknown type', { type: 'ExternalName' }, /type/],
    ['with an unknown session affinity', { sessionAffinity: 'Cookie' }, /sessionAffinity/],
    ['with an unknown traffic policy', { internalTrafficPolicy: 'Nearby' }, /internalTrafficPolicy/],
    ['with an unknown traffic distribution', { trafficDistribution: 'Nearby' }, /trafficDistribution/],
    ['with a port beyond 65535', { ports: [{ port: 65_536 }] }, /port/],
    ['with a port without a number', { ports: [{ name: 'http' }] }, /port/],
  ];
  for (const [what, change, why] of wrong) it(`${what} are refused`, () => refused(read(change), why));
});
