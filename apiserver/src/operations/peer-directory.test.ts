import assert from 'node:assert/strict';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  watch,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, it } from 'node:test';
import type { MeshError } from '@clustermesh/contract';
import { silentLog, waitFor } from '@clustermesh/runtime';
import { parse } from 'yaml';
import { createPeerDirectory } from './peer-directory.ts';

const us = {
  name: 'us',
  endpoints: ['https://us.mesh.cilium.io:2379'],
  hostAliases: [{ hostname: 'us.mesh.cilium.io', ips: ['172.31.2.2'] }],
  caPem: 'CA',
  certPem: 'CERT',
  keyPem: 'KEY',
  agreed: { id: 2, podCidr: '10.2.0.0/16', podCidrV6: 'fd00:2::/32' },
};

describe('the config directory', () => {
  let dir: string;
  const open = (warnings: string[] = []) => {
    const log = silentLog();
    log.error = ((fields: { reason: string }) => warnings.push(fields.reason)) as typeof log.error;
    return createPeerDirectory({ dir, ownName: 'eu', log });
  };
  beforeEach(() => {
    dir = join(mkdtempSync(join(tmpdir(), 'cm-peers-')), 'clustermesh');
  });
  afterEach(() => rmSync(join(dir, '..'), { recursive: true }));

  it('is laid out as Cilium reads it', async () => {
    await open().write(us);
    assert.deepEqual(readdirSync(dir).sort(), [
      'us',
      'us.etcd-client-ca.crt',
      'us.etcd-client.crt',
      'us.etcd-client.key',
    ]);
    assert.deepEqual(parse(readFileSync(join(dir, 'us'), 'utf8')), {
      endpoints: ['https://us.mesh.cilium.io:2379'],
      'trusted-ca-file': join(dir, 'us.etcd-client-ca.crt'),
      'cert-file': join(dir, 'us.etcd-client.crt'),
      'key-file': join(dir, 'us.etcd-client.key'),
      'cilium-host-aliases': [{ hostname: 'us.mesh.cilium.io', ips: ['172.31.2.2'] }],
      'x-clustermesh': { id: 2, podCIDR: '10.2.0.0/16', podCIDRv6: 'fd00:2::/32' },
    });
    assert.equal(readFileSync(join(dir, 'us.etcd-client.key'), 'utf8'), 'KEY');
    for (const file of readdirSync(dir)) assert.equal(statSync(join(dir, file)).mode & 0o777, 0o600, file);
    assert.equal(statSync(dir).mode & 0o777, 0o700);
  });

  it('gives back what was written, until it is removed', async () => {
    const directory = open();
    assert.deepEqual(await directory.list(), []);
    await directory.write(us);
    await directory.write({ ...us, name: 'ap', hostAliases: [], agreed: { id: 3, podCidr: '', podCidrV6: '' } });
    const [ap, back] = await directory.list();
    assert.deepEqual([ap?.name, ap?.hostAliases, ap?.agreed], ['ap', [], { id: 3, podCidr: '', podCidrV6: '' }]);
    assert.deepEqual(back, {
      name: 'us',
      endpoints: us.endpoints,
      hostAliases: us.hostAliases,
      caFile: join(dir, 'us.etcd-client-ca.crt'),
      certFile: join(dir, 'us.etcd-client.crt'),
      keyFile: join(dir, 'us.etcd-client.key'),
      agreed: us.agreed,
    });
    await directory.remove('us');
    await directory.remove('us');
    assert.deepEqual(
      (await directory.list()).map((peer) => peer.name),
      ['ap'],
    );
    assert.deepEqual(
      readdirSync(dir).filter((file) => file.startsWith('us')),
      [],
    );
  });

  it('shows a watcher a peer only when all its files are there', async () => {
    mkdirSync(dir);
    const seen: string[] = [];
    let early = 0;
    const watcher = watch(dir, () => {
      for (const file of readdirSync(dir)) if (!seen.includes(file)) seen.push(file);
      if (seen.includes('us') && !existsSync(join(dir, 'us.etcd-client.key'))) early++;
    });
    await open().write(us);
    await waitFor(() => seen.includes('us'), { what: 'the notification', timeoutMs: 2000 });
    watcher.close();
    assert.equal(early, 0);
    // Anything else that showed up for a moment has a name that readers skip.
    for (const file of seen.filter((name) => !name.startsWith('us'))) assert.match(file, /^\.\./);
  });

  it('reads what Cilium wrote: no aliases, no agreement, other keys', async () => {
    mkdirSync(dir);
    writeFileSync(
      join(dir, 'us'),
      'endpoints:\n- https://us:2379\ntrusted-ca-file: /a\ncert-file: /b\nkey-file: /c\ndial-timeout: 5\n',
    );
    const [peer] = await open().list();
    assert.deepEqual(peer, {
      name: 'us',
      endpoints: ['https://us:2379'],
      hostAliases: [],
      caFile: '/a',
      certFile: '/b',
      keyFile: '/c',
      agreed: undefined,
    });
  });

  it('ignores itself, plumbing and files that are no peers', async () => {
    mkdirSync(dir);
    const content = 'endpoints: [https://x:1]\ntrusted-ca-file: /a\ncert-file: /b\nkey-file: /c\n';
    for (const name of ['eu', '..data', '..us.1.2.tmp']) writeFileSync(join(dir, name), content);
    writeFileSync(join(dir, 'us.etcd-client.crt'), 'PEM');
    mkdirSync(join(dir, 'endpoints:'));
    assert.deepEqual(await open().list(), []);
  });

  it('goes on with the good files beside a bad one, and complains once', async () => {
    const warnings: string[] = [];
    const directory = open(warnings);
    await directory.write(us);
    writeFileSync(join(dir, 'ap'), 'endpoints: []\n');
    writeFileSync(join(dir, 'sa'), 'endpoints: [\n');
    writeFileSync(join(dir, 'us2'), 'endpoints: [http://127.0.0.1:2379]\n');
    for (let pass = 0; pass < 3; pass++) {
      assert.deepEqual(
        (await directory.list()).map((peer) => peer.name),
        ['us'],
      );
    }
    assert.equal(warnings.length, 3, warnings.join('\n'));
    assert.match(warnings[2] ?? '', /peers are read over TLS only/);
    assert.match(warnings[0] ?? '', /endpoints: .*; trusted-ca-file: /);
  });

  it('gone, is neither taken for empty nor made again with one peer in it', async () => {
    const directory = open();
    await directory.write(us);
    rmSync(dir, { recursive: true });
    await assert.rejects(directory.list(), /clustermesh is gone/);
    await assert.rejects(directory.write(us), /configuring us: the directory .*clustermesh is gone/);
    assert.equal(existsSync(dir), false);
  });

  it('takes no name that leads out of it', async () => {
    const directory = open();
    for (const name of ['../us', 'us/..', '', 'eu', 'US']) {
      await assert.rejects(directory.write({ ...us, name }), (error: MeshError) => error.code === 'invalid-argument');
      await assert.rejects(directory.remove(name), (error: MeshError) => error.code === 'invalid-argument');
    }
  });
});
