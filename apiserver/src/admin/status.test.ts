import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { type AgentStatus, hasApplied, type PeerStatus } from '@clustermesh/contract';
import { composeStatus, type StatusFacts } from './status.ts';

const agent = (node: string, applied: AgentStatus['applied'], problems: string[] = []): AgentStatus => ({
  node,
  version: '0.1.0',
  updatedAt: '',
  applied,
  problems,
});
const family = (revision: number, more: Partial<PeerStatus['families'][string]> = {}) => ({
  synced: true,
  count: 1,
  revision,
  quarantined: 0,
  ...more,
});
const peer = (cluster: string, families: PeerStatus['families'], more: Partial<PeerStatus> = {}): PeerStatus => ({
  cluster,
  clusterId: 2,
  connected: true,
  ready: true,
  lastProofAgeMs: 40,
  updatedAt: '',
  families,
  ...more,
});
const facts = (more: Partial<StatusFacts>): StatusFacts => ({
  cluster: {
    name: 'eu',
    id: 1,
    maxConnectedClusters: 255,
    region: '',
    endpoints: [],
    hostAliases: [],
    caPem: '',
    version: '',
    podCidr: '',
    podCidrV6: '',
  },
  peers: [],
  agents: [],
  nodes: [],
  problems: [],
  counts: { services: 3, globalServices: 2, endpoints: 4 },
  etcdConnected: true,
  etcdError: '',
  redisConnected: true,
  meshDisabled: false,
  ...more,
});

describe('the status of a cluster', () => {
  it('counts a node as applied only when it has the revision of the family', () => {
    const agents = [
      agent('n1', { us: { nodes: 10, ip: 21 } }),
      agent('n2', { us: { nodes: 12, ip: 19 } }),
      agent('n3', { us: { nodes: 10 } }),
      agent('n4', {}),
    ];
    const [us] = composeStatus(facts({ peers: [peer('us', { nodes: family(10), ip: family(20) })], agents })).peers;
    assert.deepEqual(
      us?.families.map(({ family: name, nodesApplied }) => [name, nodesApplied]),
      [
        ['nodes', 3],
        ['ip', 1],
      ],
    );
    assert.equal(us?.nodesApplied, 1, 'all families at once: only n1');
  });

  it('takes an empty family as applied only when the agent has listed it', () => {
    assert.ok(hasApplied(agent('n1', { us: { services: 0 } }), 'us', 'services', 0));
    assert.ok(!hasApplied(agent('n1', { us: {} }), 'us', 'services', 0));
    assert.ok(!hasApplied(agent('n1', {}), 'us', 'services', 0));
  });

  it('does not call a peer applied of which nothing is known', () => {
    const [us] = composeStatus(facts({ peers: [peer('us', {})], agents: [agent('n1', { us: {} })] })).peers;
    assert.equal(us?.nodesApplied, 0);
  });

  it('lists the nodes that should be there and those that are', () => {
    const { nodes } = composeStatus(
      facts({ nodes: ['n2', 'n1'], agents: [agent('n1', {}, ['map is full']), agent('n9', {})] }),
    );
    assert.deepEqual(nodes, [
      { name: 'n1', alive: true, version: '0.1.0', problems: ['map is full'] },
      { name: 'n2', alive: false, version: '', problems: [] },
      { name: 'n9', alive: true, version: '0.1.0', problems: [] },
    ]);
  });

  it('writes what is absent as the wire can carry it, and sorts peers by name', () => {
    const { peers } = composeStatus(
      facts({
        peers: [
          peer('us', { ip: family(1, { quarantined: 1, lastQuarantineReason: 'bad' }) }, { lastProofAgeMs: null }),
          peer('ap', {}, { error: 'refused' }),
        ],
      }),
    );
    assert.deepEqual(
      peers.map(({ name, lastProofAgeMs, error }) => [name, lastProofAgeMs, error]),
      [
        ['ap', 40, 'refused'],
        ['us', -1, ''],
      ],
    );
    assert.equal(peers[1]?.families[0]?.lastQuarantineReason, 'bad');
  });
});
