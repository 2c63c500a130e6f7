import assert from 'node:assert/strict';
import { before, describe, it } from 'node:test';
import type { ClusterFacts, NodeFacts } from '@clustermesh/contract';
import { createCa, issueClient } from '@clustermesh/pki';
import { environmentChecks } from './environment.ts';

const DAY_MS = 86_400_000;
const node = (name: string, address: string, more: Partial<NodeFacts> = {}): NodeFacts => ({
  name,
  address,
  addressV6: '',
  podCidrs: [],
  mtu: 1500,
  routingMode: 'tunnel',
  ...more,
});

describe('the surroundings of two clusters', () => {
  let caPem: string;
  let leafPem: string;
  before(async () => {
    const ca = await createCa({ cluster: 'us' });
    caPem = ca.certPem;
    leafPem = (await issueClient({ ca, commonName: 'remote' })).certPem;
  });

  const facts = (name: string, id: number, more: Partial<ClusterFacts> = {}, info = {}): ClusterFacts => ({
    cluster: {
      ...{ name, id, maxConnectedClusters: 255, region: '', endpoints: ['https://x:2379'], hostAliases: [] },
      ...{ caPem, version: '0.1.0', podCidr: `10.${id}.0.0/16`, podCidrV6: `fd00:${id}::/32`, ...info },
    },
    serviceCidr: '10.96.0.0/16',
    nodes: [node('n1', `192.0.2.${id}`)],
    unixMs: Date.now(),
    meshDisabled: false,
    ...more,
  });
  const checks = (peer: ClusterFacts, own = facts('eu', 1), offsetMs = 0, errorMs = 0) =>
    environmentChecks(own, peer, { offsetMs, errorMs });
  const found = (peer: ClusterFacts, name: string, own?: ClusterFacts, offsetMs?: number, errorMs?: number) =>
    checks(peer, own, offsetMs, errorMs).find((check) => check.name === name) ?? assert.fail(`no check ${name}`);

  it('are fine when all is well, equal service CIDRs and unknown nodes included', () => {
    for (const peer of [facts('us', 2), facts('us', 2, { nodes: [] })])
      assert.deepEqual(
        checks(peer).filter((check) => check.state !== 'ok'),
        [],
      );
  });

  const cases: readonly [string, () => ReturnType<typeof found>, 'failed' | 'warning' | 'ok', RegExp][] = [
    [
      'a service CIDR that holds the pods of the other',
      () => found(facts('us', 2, { serviceCidr: '10.1.0.0/20' }), 'addresses'),
      'failed',
      /the service CIDR 10\.1\.0\.0\/20 of us overlaps the pod CIDR 10\.1\.0\.0\/16 of eu/,
    ],
    [
      'a node with an address of the pods of the other',
      () => found(facts('us', 2, { nodes: [node('n9', '10.1.7.7')] }), 'addresses'),
      'failed',
      /node n9 of us \(10\.1\.7\.7\) has an address of the pod CIDR 10\.1\.0\.0\/16 of eu/,
    ],
    [
      'a node with an IPv6 address of the pods of the other',
      () => found(facts('us', 2, { nodes: [node('n9', '192.0.2.9', { addressV6: 'fd00:1:7::7' })] }), 'addresses'),
      'failed',
      /node n9 of us \(fd00:1:7::7\) has an address of the pod CIDR fd00:1::\/32 of eu/,
    ],
    [
      'one address on two nodes',
      () => found(facts('us', 2, { nodes: [node('n9', '192.0.2.1')] }), 'addresses'),
      'failed',
      /node n1 of eu and node n9 of us both have the address 192\.0\.2\.1/,
    ],
    [
      'two routing modes',
      () => found(facts('us', 2, { nodes: [node('n1', '192.0.2.2', { routingMode: 'native' })] }), 'routing'),
      'failed',
      /nodes of eu use routing mode tunnel, those of us native/,
    ],
    [
      'a smaller MTU over there',
      () => found(facts('us', 2, { nodes: [node('n1', '192.0.2.2'), node('n2', '192.0.2.3', { mtu: 1400 })] }), 'mtu'),
      'warning',
      /the MTU differs: eu 1500 \(node n1\), us 1400 \(node n2\)/,
    ],
    [
      'an MTU too small for a tunnel',
      () => found(facts('us', 2, { nodes: [node('n1', '192.0.2.2', { mtu: 1300 })] }), 'mtu'),
      'failed',
      /the smallest MTU of the nodes is 1300/,
    ],
    [
      'F18 a clock that is ten minutes off',
      () => found(facts('us', 2), 'clock', undefined, -600_000, 20),
      'failed',
      /the clock of us is 600\.0 s behind that of eu/,
    ],
    [
      'F18 a clock that is ten seconds off',
      () => found(facts('us', 2), 'clock', undefined, 10_000, 20),
      'warning',
      /ahead/,
    ],
    [
      'a clock that cannot be told from a slow answer',
      () => found(facts('us', 2), 'clock', undefined, 10_000, 10_000),
      'ok',
      /agree/,
    ],
    ['another major release', () => found(facts('us', 2, {}, { version: '1.0.0' }), 'version'), 'failed', /us 1\.0\.0/],
    ['a release two minors on', () => found(facts('us', 2, {}, { version: '0.3.0' }), 'version'), 'warning', /us 0\.3/],
    ['the next release', () => found(facts('us', 2, {}, { version: '0.2.9' }), 'version'), 'ok', /us 0\.2\.9/],
    [
      'a leaf as CA',
      () => found(facts('us', 2, {}, { caPem: leafPem }), 'ca'),
      'failed',
      /is no certificate authority/,
    ],
    [
      'no CA',
      () => found(facts('us', 2, {}, { caPem: '' }), 'ca'),
      'failed',
      /reading the certificate of the CA of us/,
    ],
    [
      'an expired CA',
      () => found(facts('us', 2), 'ca', facts('eu', 1, { unixMs: Date.now() + 3651 * DAY_MS })),
      'failed',
      /has expired on/,
    ],
    [
      'a CA that is about to expire',
      () => found(facts('us', 2), 'ca', facts('eu', 1, { unixMs: Date.now() + 3640 * DAY_MS })),
      'warning',
      /expires on/,
    ],
  ];
  for (const [title, look, state, what] of cases) {
    it(`${title}: ${state}`, () => {
      const check = look();
      assert.equal(check.state, state, check.what);
      assert.match(check.what, what);
      assert.equal(
        check.why !== '' && check.fix !== '',
        state !== 'ok',
        'every finding says why it matters and how to mend it',
      );
    });
  }
});
