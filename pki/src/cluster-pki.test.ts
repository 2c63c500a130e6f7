import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import type { MeshError } from '@clustermesh/contract';
import { certificateFacts, isIssuedBy } from './certificate.ts';
import { ensureClusterPki, whyIssue } from './cluster-pki.ts';
import { loadCa } from './files.ts';
import { issueClient } from './issue.ts';

const mode = (path: string): string => (statSync(path).mode & 0o777).toString(8);

describe('the PKI directory of a cluster', () => {
  const root = mkdtempSync(join(tmpdir(), 'cm-pki-'));
  const dir = join(root, 'pki');
  const node = { name: 'n1', dir: join(root, 'nodes', 'n1', 'pki') };
  const options = {
    dir,
    cluster: 'eu',
    serverIps: ['172.31.1.2', 'fd00::2'],
    serverDnsNames: ['eu.example.com'],
    nodes: [node],
  };
  const snapshot = () => new Map(readdirSync(dir).map((file) => [file, readFileSync(join(dir, file), 'utf8')]));
  after(() => rmSync(root, { recursive: true }));

  before(async () => {
    const pki = await ensureClusterPki(options);
    assert.deepEqual(
      pki.issued.map(({ file }) => file).sort(),
      [
        ...['admin', 'ca', 'gate', 'local', 'server'].map((name) => join(dir, `${name}.crt`)),
        join(dir, 'crl.pem'),
        join(node.dir, 'node.crt'),
      ].sort(),
    );
  });

  it('holds a CA, a server and the fixed users, all of one CA', () => {
    assert.deepEqual(readdirSync(dir).sort(), [
      'admin.crt',
      'admin.key',
      'ca.crt',
      'ca.key',
      'crl.pem',
      'gate.crt',
      'gate.key',
      'local.crt',
      'local.key',
      'server.crt',
      'server.key',
    ]);
    assert.deepEqual(readdirSync(node.dir).sort(), ['ca.crt', 'node.crt', 'node.key']);
    const ca = loadCa(dir);
    const names = new Map<string, string>();
    for (const path of [
      join(dir, 'server.crt'),
      join(dir, 'admin.crt'),
      join(dir, 'local.crt'),
      join(dir, 'gate.crt'),
      join(node.dir, 'node.crt'),
    ]) {
      const pem = readFileSync(path, 'utf8');
      assert.ok(isIssuedBy(pem, ca.certPem), path);
      names.set(path.slice(root.length + 1), certificateFacts(pem).commonName);
    }
    assert.deepEqual(Object.fromEntries(names), {
      'pki/server.crt': 'clustermesh-apiserver.cilium.io',
      'pki/admin.crt': 'admin-eu',
      'pki/local.crt': 'local-eu',
      'pki/gate.crt': 'gate-eu',
      'nodes/n1/pki/node.crt': 'node-n1',
    });
    assert.equal(readFileSync(join(node.dir, 'ca.crt'), 'utf8'), ca.certPem);
  });

  it('lets nobody but the owner read keys', () => {
    assert.equal(mode(dir), '700');
    assert.equal(mode(node.dir), '700');
    for (const file of readdirSync(dir).filter((name) => name.endsWith('.key')))
      assert.equal(mode(join(dir, file)), '600', file);
    assert.equal(mode(join(node.dir, 'node.key')), '600');
  });

  it('is left alone when it is complete', async () => {
    const earlier = snapshot();
    const pki = await ensureClusterPki(options);
    assert.deepEqual(pki.issued, []);
    assert.deepEqual(snapshot(), earlier);
  });

  it('gets back exactly what was lost', async () => {
    const earlier = snapshot();
    rmSync(join(dir, 'admin.crt'));
    const pki = await ensureClusterPki(options);
    assert.deepEqual(pki.issued, [{ file: join(dir, 'admin.crt'), reason: 'missing' }]);
    const later = snapshot();
    const changed = [...later.keys()].filter((file) => later.get(file) !== earlier.get(file)).sort();
    assert.deepEqual(changed, ['admin.crt', 'admin.key']);
  });

  it('is not made over for another cluster', async () => {
    const earlier = snapshot();
    await assert.rejects(ensureClusterPki({ ...options, cluster: 'us' }), {
      code: 'conflict',
      message: /another cluster's \(admin-eu/,
    });
    assert.deepEqual(snapshot(), earlier);
  });

  it('gets a new server certificate when an address is added', async () => {
    const pki = await ensureClusterPki({ ...options, serverIps: [...options.serverIps, '172.31.9.2'] });
    assert.deepEqual(pki.issued, [{ file: join(dir, 'server.crt'), reason: 'does not cover 172.31.9.2' }]);
    assert.ok(certificateFacts(readFileSync(join(dir, 'server.crt'), 'utf8')).ips.includes('172.31.9.2'));
  });

  it('replaces a leaf that cannot be read, has expired or is of another CA', async () => {
    const ca = loadCa(dir);
    const wanted = { commonName: 'admin-eu', dnsNames: [], ips: [] };
    const long = new Date('2031-01-01T00:00:00Z');
    const good = await issueClient({ ca, commonName: 'admin-eu' });
    assert.equal(whyIssue(good, ca.certPem, wanted, new Date()), undefined);
    assert.match(whyIssue(good, ca.certPem, wanted, long) ?? '', /^expired at /);
    assert.match(
      whyIssue(good, ca.certPem, { ...wanted, commonName: 'admin-us' }, new Date()) ?? '',
      /common name is admin-eu/,
    );
    assert.match(whyIssue({ ...good, certPem: 'x' }, ca.certPem, wanted, new Date()) ?? '', /reading the certificate/);
    const other = await issueClient({ ca, commonName: 'admin-eu' });
    assert.match(
      whyIssue({ ...good, keyPem: other.keyPem }, ca.certPem, wanted, new Date()) ?? '',
      /do not belong together/,
    );

    writeFileSync(join(dir, 'local.crt'), 'torn');
    assert.deepEqual(
      (await ensureClusterPki({ ...options, serverIps: [] })).issued.map(({ file }) => file),
      [join(dir, 'local.crt')],
    );
  });

  it('says what is missing when there is no CA to sign with', () => {
    assert.throws(
      () => loadCa(join(root, 'nowhere')),
      (error: MeshError) => error.code === 'not-found' && /nowhere/.test(error.message),
    );
  });
});
