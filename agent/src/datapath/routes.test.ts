import assert from 'node:assert/strict';
import { test } from 'node:test';
import { batchFailures } from './links.ts';
import { routeTo, wayOf } from './routes.ts';
import type { IpcacheRow } from './types.ts';

const options = {
  vxlanDevice: 'cm_vxlan',
  underlayMtu: 1500,
  gatewayIp: '10.1.1.1',
  gatewayIp6: 'fd00:1:1::1',
  hostToRemotePods: true,
};
const row = (prefix: string, node: string | null, direct?: true): IpcacheRow => ({
  prefix,
  identity: 3,
  clusterId: 2,
  tunnelEndpoint: node,
  encryptKey: 0,
  ...(direct ? { direct } : {}),
});
const text = (r: IpcacheRow, o: Partial<typeof options> = {}) => routeTo(r, { ...options, ...o })?.join(' ');

test('a pod CIDR of another node has a route, by the tunnel with the size that fits or to the node itself', () => {
  const to = (prefix: string, source: string) => `route replace ${prefix} src ${source} proto 201`;
  const v4 = to('10.2.1.0/24', '10.1.1.1');
  const v6 = to('fd00:2:1::/64', 'fd00:1:1::1');
  const tunnel = (kind: string, node: string, mtu: number) => `encap ${kind} id 1 dst ${node} dev cm_vxlan mtu ${mtu}`;
  assert.equal(text(row('10.2.1.0/24', '172.31.2.11')), `${v4} ${tunnel('ip', '172.31.2.11', 1450)}`);
  assert.equal(text(row('fd00:2:1::/64', '172.31.2.11')), `${v6} ${tunnel('ip', '172.31.2.11', 1450)}`);
  assert.equal(text(row('10.2.1.0/24', 'fd31::2')), `${v4} ${tunnel('ip6', 'fd31::2', 1430)}`);
  assert.equal(text(row('10.2.1.0/24', '172.31.2.11', true)), `${v4} via 172.31.2.11`);
  assert.equal(text(row('fd00:2:1::/64', 'fd31::2', true)), `${v6} via fd31::2`);
});

test('there is none for hosts, for what lies behind no node, and where the families do not meet', () => {
  for (const [prefix, node, direct] of [
    ['10.2.1.5/32', '172.31.2.11', undefined],
    ['fd00:2:1::5/128', '172.31.2.11', undefined],
    ['0.0.0.0/0', null, undefined],
    ['fd00:2:1::/64', '172.31.2.11', true],
  ] as const) {
    assert.equal(text(row(prefix, node, direct)), undefined, prefix);
  }
  assert.equal(routeTo(row('fd00:2:1::/64', '172.31.2.11'), { ...options, gatewayIp6: undefined }), undefined);
  assert.equal(text(row('10.2.1.0/24', '172.31.2.11'), { hostToRemotePods: false }), undefined);
  assert.ok(text(row('10.2.1.0/24', '172.31.2.11', true), { hostToRemotePods: false }));
});

test('of a batch it is known which commands failed, and why', () => {
  const said = [
    'RTNETLINK answers: No such process',
    'Command failed -:1',
    'Error: Invalid prefsrc address.',
    'Command failed -:12',
    '',
  ];
  assert.deepEqual(
    [...batchFailures(said.join('\n'))],
    [
      [0, 'RTNETLINK answers: No such process'],
      [11, 'Error: Invalid prefsrc address.'],
    ],
  );
});

test('a route that the kernel shows is told apart from one that should be there', () => {
  const isWay = (r: IpcacheRow, shown: string) => wayOf(routeTo(r, options)!) === wayOf(shown.split(' '));
  const encap = (node: string) =>
    `10.2.1.0/24 encap ip id 1 src 0.0.0.0 dst ${node} ttl 0 tos 0 dev cm_vxlan scope link`;
  const tunnelled = row('10.2.1.0/24', '172.31.2.11');
  assert.ok(isWay(tunnelled, `${encap('172.31.2.11')} src 10.1.1.1 mtu 1450`));
  assert.ok(!isWay(tunnelled, `${encap('172.31.2.12')} src 10.1.1.1 mtu 1450`));
  assert.ok(!isWay(tunnelled, `${encap('172.31.2.11')} src 10.1.1.1`));
  assert.ok(!isWay(tunnelled, '10.2.1.0/24 via 172.31.2.11 dev eth0 src 10.1.1.1'));
  const direct = row('fd00:2:1::/64', 'fd31::2', true);
  assert.ok(isWay(direct, 'fd00:2:1::/64 via fd31::2 dev eth0 src fd00:1:1::1 metric 1024 pref medium'));
  assert.ok(!isWay(direct, 'fd00:2:1::/64 via fd31::3 dev eth0 src fd00:1:1::1 metric 1024 pref medium'));
});
