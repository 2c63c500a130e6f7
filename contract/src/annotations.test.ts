import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { readNamespaceGlobal, readServiceAnnotations, readWeight } from './annotations.ts';

function read(annotations: Record<string, string>) {
  const { problems, lbAlgorithm, ...settings } = readServiceAnnotations(annotations);
  return { ...settings, problems: problems.length };
}

describe('service annotations', () => {
  it('are all off by default', () => {
    assert.deepEqual(read({}), { global: false, shared: false, affinity: 'none', problems: 0 });
    assert.equal(readServiceAnnotations(undefined).global, false);
  });

  it('make a service global, and then shared unless told otherwise', () => {
    assert.deepEqual(read({ 'service.cilium.io/global': 'True' }), {
      global: true,
      shared: true,
      affinity: 'none',
      problems: 0,
    });
    assert.equal(read({ 'service.cilium.io/global': 'true', 'service.cilium.io/shared': 'FALSE' }).shared, false);
    assert.equal(read({ 'service.cilium.io/shared': 'true' }).shared, false, 'shared means nothing without global');
  });

  it('have older names that mean the same, and the newer name wins', () => {
    const old = {
      'io.cilium/global-service': 'true',
      'io.cilium/shared-service': 'false',
      'io.cilium/service-affinity': 'remote',
    };
    assert.deepEqual(read(old), { global: true, shared: false, affinity: 'remote', problems: 0 });
    assert.equal(read({ ...old, 'service.cilium.io/affinity': 'local' }).affinity, 'local');
  });

  it('with unknown values take the default and say so, naming annotation and value', () => {
    const { affinity, problems } = readServiceAnnotations({ 'service.cilium.io/affinity': 'nearest' });
    assert.equal(affinity, 'none');
    assert.match(problems.join(), /service\.cilium\.io\/affinity.*"nearest"/);
    assert.deepEqual(read({ 'service.cilium.io/global': 'yes' }), {
      global: false,
      shared: false,
      affinity: 'none',
      problems: 1,
    });
  });
});

describe('how connections are spread', () => {
  it('is at random, or by Maglev tables', () => {
    const algorithmOf = (value: string) => readServiceAnnotations({ 'service.cilium.io/lb-algorithm': value });
    assert.equal(readServiceAnnotations({}).lbAlgorithm, 'random');
    assert.deepEqual([algorithmOf('Maglev').lbAlgorithm, algorithmOf('Maglev').problems], ['maglev', []]);
    assert.equal(algorithmOf('hash').lbAlgorithm, 'random');
    assert.match(algorithmOf('hash').problems.join(), /lb-algorithm has value "hash", expected "random" or "maglev"/);
  });

  it('has weights, by slice: integers, 1 unless said otherwise', () => {
    const weightOf = (value: string) => readWeight({ 'service.cilium.io/weight': value });
    assert.equal(readWeight(undefined).weight, 1);
    for (const weight of [0, 1, 65_535]) assert.deepEqual(weightOf(String(weight)), { weight, problems: [] });
    for (const bad of ['', '-1', '1.5', '65536', '1e3', 'heavy']) {
      assert.equal(weightOf(bad).weight, 1);
      assert.match(weightOf(bad).problems.join(), /weight has value .*, expected an integer of 0 … 65535; taken as 1$/);
    }
  });
});

describe('the namespace annotation', () => {
  it('overrides the default of the cluster, either way', () => {
    const key = 'clustermesh.cilium.io/global';
    assert.equal(readNamespaceGlobal({}, true).global, true);
    assert.equal(readNamespaceGlobal(undefined, false).global, false);
    assert.equal(readNamespaceGlobal({ [key]: 'false' }, true).global, false);
    assert.equal(readNamespaceGlobal({ [key]: 'true' }, false).global, true);
    assert.equal(readNamespaceGlobal({ [key]: 'perhaps' }, true).problems.length, 1);
  });
});
