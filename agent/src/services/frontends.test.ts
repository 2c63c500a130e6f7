import assert from 'node:assert/strict';
import { test } from 'node:test';
import { serviceKey } from '../datapath/types.ts';
import type { NodeAddresses } from './frontends.ts';
import { groupOfLocalSlice, groupsOfService } from './groups.ts';
import { mergeService } from './merge.ts';
import { localService, OWN_ID, remoteService, slice } from './testing.ts';

const NODE: NodeAddresses = { own: ['172.31.0.1', 'fd31::1'], isHere: (ip) => ip.startsWith('10.1.1.') };
const HERE = '10.1.1.5';
const THERE = '10.1.2.5';
const ABROAD = '10.2.1.5';

/** Which backends each frontend leads to. */
function merged(overrides: Parameters<typeof localService>[0]): Record<string, string[]> {
  const rows = mergeService({
    clusterId: OWN_ID,
    node: NODE,
    service: localService(overrides),
    local: [groupOfLocalSlice(slice({ [HERE]: 'ready', [THERE]: 'ready' }))],
    remotes: [{ clusterId: 2, groups: groupsOfService(remoteService('us', 2, [ABROAD])) }],
    restored: () => [],
  });
  return Object.fromEntries(rows.map((row) => [serviceKey(row.frontend), row.backends.map(({ ip }) => ip)]));
}
const ports = [{ name: 'http', protocol: 'TCP' as const, port: 80, nodePort: 30_080 }];
const ALL = [HERE, THERE, ABROAD];

test('NodePorts are on the node’s addresses of the service’s families, for the node itself and for others', () => {
  assert.deepEqual(merged({ ports }), {
    '10.96.0.10:80/TCP': ALL,
    '172.31.0.1:30080/TCP': ALL,
    '172.31.0.1:30080/TCP/outside': ALL,
  });
  const dual = Object.keys(merged({ ports, clusterIPs: ['10.96.0.10', 'fd96::10'] }));
  assert.deepEqual(
    dual.filter((key) => key.startsWith('[')),
    ['[fd96::10]:80/TCP', '[fd31::1]:30080/TCP', '[fd31::1]:30080/TCP/outside'],
  );
});

test('external addresses have the service’s own port', () => {
  assert.deepEqual(merged({ externalIPs: ['192.0.2.1', '2001:db8::1'] }), {
    '10.96.0.10:80/TCP': ALL,
    '192.0.2.1:80/TCP': ALL,
    '192.0.2.1:80/TCP/outside': ALL,
  });
});

test('externalTrafficPolicy Local: from outside only to backends of this node, from within to any', () => {
  assert.deepEqual(merged({ ports, externalTrafficPolicy: 'Local', externalIPs: ['192.0.2.1'] }), {
    '10.96.0.10:80/TCP': ALL,
    '192.0.2.1:80/TCP': ALL,
    '192.0.2.1:80/TCP/outside': [HERE],
    '172.31.0.1:30080/TCP': ALL,
    '172.31.0.1:30080/TCP/outside': [HERE],
  });
});

test('internalTrafficPolicy Local: by the cluster address only to backends of this node', () => {
  assert.deepEqual(merged({ ports, internalTrafficPolicy: 'Local' }), {
    '10.96.0.10:80/TCP': [HERE],
    '172.31.0.1:30080/TCP': ALL,
    '172.31.0.1:30080/TCP/outside': ALL,
  });
});

test('Local with the affinity "remote": the backends of this node, as there are no remote ones here', () => {
  assert.deepEqual(merged({ affinity: 'remote', internalTrafficPolicy: 'Local' }), { '10.96.0.10:80/TCP': [HERE] });
});
