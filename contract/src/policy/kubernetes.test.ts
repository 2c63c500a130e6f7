import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { parseLabels } from '../labels.ts';
import { kubernetesSpecs, networkPolicySpec } from './kubernetes.ts';
import { labelSet, selects } from './selector.ts';

const LOCAL = { cluster: 'eu', defaultLocalCluster: true };
const read = (spec: object) =>
  kubernetesSpecs(networkPolicySpec.parse({ podSelector: {}, ...spec }), 'shop', LOCAL)[0]!;
const pod = (cluster: string, namespace: string, team = '') =>
  labelSet(
    parseLabels(
      `k8s:app=web;k8s:io.cilium.k8s.namespace.labels.team=${team};k8s:io.cilium.k8s.policy.cluster=${cluster};k8s:io.kubernetes.pod.namespace=${namespace};`,
    )!,
  );
const peerOf = (peer: object) => {
  const parsed = read({ ingress: [{ from: [peer] }] }).rules[0]!.peers[0]!;
  return parsed.kind === 'labels' ? parsed.selector : assert.fail('no selector');
};

describe('a NetworkPolicy', () => {
  it('isolates ingress always, egress if it has egress rules or says so', () => {
    assert.deepEqual(read({}).defaultDeny, { ingress: true, egress: false });
    assert.deepEqual(read({ egress: [{}] }).defaultDeny, { ingress: true, egress: true });
    assert.deepEqual(read({ policyTypes: ['Egress'] }).defaultDeny, { ingress: false, egress: true });
  });

  it('reads an empty rule as "everybody, everything", no rule as nobody', () => {
    const everything = { direction: 'ingress', effect: 'allow', peers: [{ kind: 'all' }], layer4: null };
    assert.deepEqual(read({ ingress: [{}] }).rules, [everything]);
    assert.deepEqual(read({ ingress: [] }).rules, []);
  });

  it('means its own namespace unless a namespaceSelector is there, and its own cluster', () => {
    const own = peerOf({ podSelector: {} });
    assert.ok(selects(own, pod('eu', 'shop')) && !selects(own, pod('eu', 'bank')) && !selects(own, pod('us', 'shop')));
    const team = peerOf({
      podSelector: { matchLabels: { app: 'web' } },
      namespaceSelector: { matchLabels: { team: 'a' } },
    });
    assert.ok(selects(team, pod('eu', 'bank', 'a')) && !selects(team, pod('eu', 'bank', 'b')));
    assert.ok(!selects(team, pod('us', 'bank', 'a')));
  });

  it('takes ports as TCP unless told, all ports of a protocol without number, and ranges', () => {
    const ports = [{ port: 80 }, { protocol: 'UDP' }, { port: 8000, endPort: 8010 }, { port: 'web' }];
    assert.deepEqual(read({ ingress: [{ ports }] }).rules[0]!.layer4, [
      { kind: 'ports', protocol: 'TCP', first: 80, last: 80 },
      { kind: 'ports', protocol: 'UDP', first: 0, last: 65535 },
      { kind: 'ports', protocol: 'TCP', first: 8000, last: 8010 },
      { kind: 'named', protocol: 'TCP', name: 'web' },
    ]);
  });

  it('refuses peers that mix an ipBlock with selectors, and unknown fields', () => {
    const problem = (spec: object) => networkPolicySpec.safeParse({ podSelector: {}, ...spec }).error?.message ?? '';
    const mixed = { ipBlock: { cidr: '10.0.0.0/8' }, podSelector: {} };
    assert.match(problem({ ingress: [{ from: [mixed] }] }), /ipBlock alone/);
    assert.match(problem({ ingress: [{ form: [] }] }), /form/);
  });
});
