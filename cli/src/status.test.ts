import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { ClusterStatus, FamilyStatus, PeerInfo } from '@clustermesh/contract';
import { report, statusTable, whatIsMissing } from './status.ts';

const family = (name: string, more: Partial<FamilyStatus> = {}): FamilyStatus => ({
  family: name,
  synced: true,
  count: 3,
  revision: 9,
  quarantined: 0,
  lastQuarantineReason: '',
  nodesApplied: 2,
  ...more,
});
const peer = (more: Partial<PeerInfo> = {}): PeerInfo => ({
  name: 'us',
  id: 2,
  connected: true,
  ready: true,
  lastProofAgeMs: 1200,
  error: '',
  nodesApplied: 2,
  families: [family('nodes', { count: 2 }), family('services'), family('identities'), family('ip', { count: 12 })],
  ...more,
});
const status = (more: Partial<ClusterStatus> = {}): ClusterStatus => ({
  cluster: {
    name: 'eu',
    id: 1,
    maxConnectedClusters: 255,
    region: 'eu-west',
    endpoints: [],
    hostAliases: [],
    caPem: '',
    version: '0.1.0',
    podCidr: '10.1.0.0/16',
    podCidrV6: '',
  },
  etcdConnected: true,
  etcdError: '',
  redisConnected: true,
  meshDisabled: false,
  peers: [peer()],
  nodes: [
    { name: 'n1', alive: true, version: '0.1.0', problems: [] },
    { name: 'n2', alive: true, version: '0.1.0', problems: [] },
  ],
  problems: [],
  localServices: 3,
  globalServices: 1,
  localEndpoints: 5,
  ...more,
});

describe('the status', () => {
  it('is a table of peers', () => {
    assert.equal(
      statusTable(
        status({
          peers: [
            peer(),
            peer({
              name: 'asia-pacific',
              id: 3,
              connected: false,
              ready: false,
              lastProofAgeMs: -1,
              nodesApplied: 0,
              families: [],
              error: 'connection refused',
            }),
          ],
        }),
      ),
      [
        'cluster eu (id 1, eu-west), apiserver 0.1.0',
        '  etcd    connected',
        '  redis   connected',
        '  nodes   2/2 alive',
        '  own     3 services (1 global), 5 endpoints',
        '  mesh    1/2 remote clusters ready',
        '',
        'PEER          ID  STATE         LAST SEEN  NODES  SERVICES  IDENTITIES  IP  APPLIED',
        'us            2   ready         1.2 s ago  2      3         3           12  2/2 nodes',
        'asia-pacific  3   disconnected  never      -      -         -           -   0/2 nodes',
        '',
        '! asia-pacific: connection refused',
      ].join('\n'),
    );
  });

  it('tells what is refused and what is wrong at home', () => {
    const text = statusTable(
      status({
        peers: [
          peer({
            families: [family('services', { synced: false, quarantined: 2, lastQuarantineReason: 'us/shop: no port' })],
          }),
        ],
        problems: ['shop.yaml: unknown affinity'],
        redisConnected: false,
        etcdConnected: false,
        etcdError: 'connection refused',
        nodes: [
          { name: 'n1', alive: true, version: '', problems: ['map services is full'] },
          { name: 'n2', alive: false, version: '', problems: [] },
        ],
      }),
    );
    for (const line of [
      '! us: 2 of services refused, the last: us/shop: no port',
      '! node n1: map services is full',
      '! shop.yaml: unknown affinity',
      '  redis   unreachable: operations wait, traffic does not need it',
      '  etcd    not connected: connection refused',
      '  nodes   1/2 alive, no sign of n2',
    ]) {
      assert.ok(text.split('\n').includes(line), `${line} is missing in\n${text}`);
    }
    assert.match(text, /3 \(syncing\)/);
  });

  const cases: readonly {
    readonly when: string;
    readonly given: Partial<ClusterStatus>;
    readonly missing: readonly string[];
  }[] = [
    { when: 'all is applied', given: {}, missing: [] },
    { when: 'there are no peers', given: { peers: [] }, missing: [] },
    {
      when: 'a dead node lags',
      given: {
        nodes: [
          { name: 'n1', alive: true, version: '', problems: [] },
          { name: 'n2', alive: false, version: '', problems: [] },
        ],
        peers: [peer({ nodesApplied: 1 })],
      },
      missing: [],
    },
    {
      when: 'no agent is alive',
      given: { nodes: [{ name: 'n1', alive: false, version: '', problems: [] }], peers: [peer({ nodesApplied: 0 })] },
      missing: ['no agent of this cluster is alive'],
    },
    {
      when: 'a peer is not connected',
      given: { peers: [peer({ connected: false, ready: true, error: 'refused' })] },
      missing: ['us: not connected (refused)'],
    },
    {
      when: 'a family is not synced',
      given: { peers: [peer({ ready: false, families: [family('nodes'), family('ip', { synced: false })] })] },
      missing: ['us: not synced: ip'],
    },
    {
      when: 'a node has not applied all',
      given: {
        peers: [peer({ nodesApplied: 1, families: [family('nodes'), family('services', { nodesApplied: 1 })] })],
      },
      missing: ['us: applied on 1 of 2 nodes (services 1/2)'],
    },
    {
      when: 'etcd is away',
      given: { etcdConnected: false, etcdError: 'timeout' },
      missing: ['etcd of eu is not connected (timeout)'],
    },
  ];
  for (const { when, given, missing } of cases) {
    it(`waits for ${missing.length === 0 ? 'nothing' : missing.join(' and ')} when ${when}`, () => {
      assert.deepEqual(whatIsMissing(status(given)), missing);
      assert.equal(report('eu', status(given)).ready, missing.length === 0);
    });
  }

  it('does not print the CA', () => {
    assert.ok(!('caPem' in report('eu', status()).cluster));
  });
});
