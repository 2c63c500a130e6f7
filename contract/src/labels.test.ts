import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { CLUSTER_LABEL, formatLabels, NAMESPACE_LABEL, parseLabels, podIdentityLabels } from './labels.ts';

describe('label strings', () => {
  it('are sorted by key in byte order and closed by a semicolon', () => {
    const labels = [
      { source: 'k8s', key: 'zone', value: 'a' },
      { source: 'k8s', key: 'App', value: 'shop' },
      { source: 'k8s', key: 'app', value: '' },
    ];
    assert.equal(formatLabels(labels), 'k8s:App=shop;k8s:app=;k8s:zone=a;');
  });

  it('survive a round trip whatever order they came in', () => {
    const key = fc.stringMatching(/^[a-z][a-z0-9./_-]{0,20}$/);
    const label = fc.record({
      source: fc.constantFrom('k8s', 'reserved', 'cidr'),
      key,
      value: fc.stringMatching(/^[A-Za-z0-9=._:-]{0,20}$/),
    });
    fc.assert(
      fc.property(fc.uniqueArray(label, { selector: (l) => l.key }), (labels) => {
        const text = formatLabels(labels);
        assert.equal(formatLabels([...labels].reverse()), text);
        assert.equal(formatLabels(parseLabels(text) ?? []), text);
        assert.equal(parseLabels(text)?.length, labels.length);
      }),
    );
  });

  it('keep an equals sign in a value, and read a label without one', () => {
    assert.deepEqual(parseLabels('k8s:a=b=c;reserved:host;'), [
      { source: 'k8s', key: 'a', value: 'b=c' },
      { source: 'reserved', key: 'host', value: '' },
    ]);
  });

  for (const malformed of ['app=shop;', ':app=shop;', 'k8s:=shop;', 'k8s:;', 'k8s:a=b;rubbish;']) {
    it(`of the form ${JSON.stringify(malformed)} are refused`, () => assert.equal(parseLabels(malformed), undefined));
  }

  it('of a pod carry its cluster, namespace and service account', () => {
    const labels = podIdentityLabels({ cluster: 'eu', namespace: 'shop', podLabels: { app: 'web' } });
    assert.equal(
      formatLabels(labels),
      'k8s:app=web;k8s:io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name=shop;' +
        'k8s:io.cilium.k8s.policy.cluster=eu;k8s:io.cilium.k8s.policy.serviceaccount=default;' +
        'k8s:io.kubernetes.pod.namespace=shop;',
    );
  });

  for (const key of [
    CLUSTER_LABEL,
    NAMESPACE_LABEL,
    'io.cilium.k8s.policy.serviceaccount',
    'io.cilium.k8s.namespace.labels.kubernetes.io/metadata.name',
    'io.cilium.k8s.namespace.labels.team',
  ]) {
    it(`of a pod that sets ${key} itself are those of a pod that does not`, () => {
      const pod = { cluster: 'eu', namespace: 'shop' };
      assert.deepEqual(
        podIdentityLabels({ ...pod, podLabels: { app: 'web', [key]: 'admin' } }),
        podIdentityLabels({ ...pod, podLabels: { app: 'web' } }),
      );
    });
  }
});
