import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, describe, it } from 'node:test';
import type { MeshError } from '@clustermesh/contract';
import { type ContextPlaces, listContexts, resolveContext } from './contexts.ts';
import { UsageError } from './exit-codes.ts';

describe('contexts', () => {
  const root = mkdtempSync(join(tmpdir(), 'cm-contexts-'));
  after(() => rmSync(root, { recursive: true }));
  const handle = (path: string, cluster: string, apiserver = `unix:///run/${path}.sock`): string => {
    const file = join(root, path);
    mkdirSync(dirname(file), { recursive: true });
    writeFileSync(file, `name: ${cluster}\nid: 1\napiserver: ${apiserver}\n`);
    return file;
  };
  const places = (more: Partial<ContextPlaces> = {}): ContextPlaces => ({
    env: { CLUSTERMESH_CONTEXTS: `${join(root, 'mine')}:${join(root, 'shared')}` },
    etcDir: join(root, 'etc'),
    runDir: join(root, 'run'),
    home: join(root, 'home'),
    ...more,
  });
  const refusal = (name: string, where: ContextPlaces = places()): MeshError => {
    try {
      resolveContext(name, where);
    } catch (error) {
      assert.ok(error instanceof UsageError, String(error));
      return error;
    }
    return assert.fail(`${name} was found`);
  };

  handle('mine/eu.yaml', 'eu');
  handle('shared/eu.yaml', 'other-eu');
  handle('shared/us.yaml', 'us');
  handle('etc/us.yaml', 'etc-us');
  handle('etc/edge.yml', 'edge');
  handle('run/cm-demo/contexts/eu.yaml', 'demo-eu');
  handle('run/cm-demo/contexts/ap.yaml', 'ap');
  handle('run/cm-test/contexts/ap.yaml', 'test-ap');
  handle('run/cm-test/contexts/sa.yaml', 'sa');

  it('are found by the path of their file', () => {
    const file = handle('anywhere/x.yaml', 'x', 'unix:///x.sock');
    assert.deepEqual(resolveContext(file, places()), {
      name: file,
      file,
      cluster: 'x',
      id: 1,
      apiserver: 'unix:///x.sock',
      agents: {},
    });
    assert.match(refusal(join(root, 'nowhere.yaml')).message, /there is no such file/);
  });

  it('are found by name, the first place wins', () => {
    assert.equal(resolveContext('eu', places()).cluster, 'eu');
    assert.equal(resolveContext('us', places()).cluster, 'us');
    assert.equal(resolveContext('us', places({ env: {} })).cluster, 'etc-us');
    assert.equal(resolveContext('edge', places()).cluster, 'edge');
    assert.equal(resolveContext('eu', places({ env: {} })).cluster, 'demo-eu');
    assert.equal(resolveContext('sa', places()).cluster, 'sa');
  });

  it('are named with their lab when several labs have them', () => {
    const error = refusal('ap');
    assert.match(error.message, /the context ap is ambiguous: 2 labs/);
    assert.equal(error.hint, 'name one of: demo/ap, test/ap');
    assert.equal(resolveContext('test/ap', places()).cluster, 'test-ap');
    assert.equal(resolveContext('demo/eu', places()).cluster, 'demo-eu');
  });

  it('are listed under the name that resolves to them', () => {
    const listed = listContexts(places());
    assert.deepEqual(
      listed.map((context) => context.name),
      ['demo/ap', 'demo/eu', 'edge', 'eu', 'sa', 'test/ap', 'us'],
    );
    for (const context of listed) assert.equal(resolveContext(context.name, places()).file, context.file);
  });

  it('are named in the hint when one is not known', () => {
    assert.match(refusal('mars').hint ?? '', /known contexts: demo\/ap, demo\/eu, edge, eu/);
    assert.match(
      refusal('mars', { env: {}, etcDir: '/nonexistent', runDir: '/nonexistent', home: '/nonexistent' }).hint ?? '',
      /start a lab/,
    );
    assert.match(refusal('../mine/eu').message, /there is no context/);
  });

  it('of Kubernetes are recognised and refused', () => {
    mkdirSync(join(root, 'home/.kube'), { recursive: true });
    writeFileSync(
      join(root, 'home/.kube/config'),
      'contexts:\n- name: kind-eu\n  context: {cluster: kind-eu, user: me}\n',
    );
    const error = refusal('kind-eu');
    assert.equal(error.code, 'unsupported');
    assert.match(error.message, /kind-eu is a Kubernetes context: this release manages standalone clusters only/);
    assert.match(error.hint ?? '', /handle file/);
    const elsewhere = join(root, 'kubeconfig');
    writeFileSync(elsewhere, 'contexts:\n- name: gke\n');
    assert.equal(refusal('gke', places({ env: { KUBECONFIG: elsewhere } })).code, 'unsupported');
  });

  it('that are malformed are an error naming the file', () => {
    const file = join(root, 'bad.yaml');
    writeFileSync(file, 'name: eu\n');
    assert.throws(
      () => resolveContext(file, places()),
      (error: MeshError) =>
        error.code === 'invalid-config' && error.message.includes(file) && /id: .*; apiserver: /.test(error.message),
    );
    writeFileSync(file, '{');
    assert.throws(() => resolveContext(file, places()), /reading the handle file .*bad\.yaml/);
  });
});
