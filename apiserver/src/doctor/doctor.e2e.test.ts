import assert from 'node:assert/strict';
import { readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import type { ClusterStatus, Diagnosis, PreflightCheck } from '@clustermesh/contract';
import { certificateFacts, createCa, issueServer, type KeyAndCertificate, loadCa } from '@clustermesh/pki';
import { waitFor } from '@clustermesh/runtime';
import { type CommandResult, runCli, startTestCluster, type TestCluster } from '../testing/apiserver-process.ts';
import { validityCheck } from './certificates.ts';

const DAY_MS = 86_400_000;

it('F15 explains in one line a certificate that expired while its cluster was stopped', () => {
  const seen = {
    ...{ what: 'the server certificate of us', fingerprint: 'ab'.repeat(32), why: 'w', fix: 'f' },
    ...{ notBefore: new Date('2026-01-01T00:00:00Z'), notAfter: new Date('2026-03-01T00:00:00Z') },
  };
  const at = (day: string) => validityCheck('tls', seen, Date.parse(day));
  const expired = at('2026-03-15T12:00:00Z');
  assert.equal(expired.state, 'failed');
  assert.equal(
    expired.what,
    'the server certificate of us (abababababababab…) expired on 2026-03-01, 14 days ago: nobody renewed it, as happens when its cluster was stopped for longer than it was valid',
  );
  assert.equal(at('2026-02-20T00:00:00Z').state, 'warning');
  assert.equal(at('2026-01-20T00:00:00Z').state, 'ok');
  assert.match(at('2025-12-31T00:00:00Z').what, /is valid only from .* one of the two clocks is wrong/);
});

describe('clustermesh doctor', () => {
  let eu: TestCluster;
  let us: TestCluster;
  before(async () => {
    [eu, us] = await Promise.all([startTestCluster('eu', 1), startTestCluster('us', 2)]);
    await Promise.all([eu.startApiserver(), us.startApiserver()]);
    const result = await runCli(['connect', '--context', eu.context, '--destination-context', us.context]);
    assert.equal(result.code, 0, said(result));
  });
  after(() => Promise.all([eu.close(), us.close()]));

  const said = (result: CommandResult) => `exit ${result.code}\n${result.out}\n${result.err}`;
  async function findings(): Promise<{ code: number | null; found: (PreflightCheck & { subject: string })[] }> {
    const result = await runCli(['doctor', '--context', eu.context, '-o', 'json']);
    const diagnoses = JSON.parse(result.out) as Diagnosis[];
    const found = diagnoses.flatMap(({ subject, checks }) => checks.map((check) => ({ subject, ...check })));
    return { code: result.code, found: found.filter((check) => check.state !== 'ok') };
  }
  /** The one thing that is wrong, with what was done about what depends on it: nothing. */
  async function onlyFinding(): Promise<PreflightCheck & { subject: string }> {
    const { code, found } = await findings();
    assert.equal(code, 1);
    assert.equal(found.length, 1, JSON.stringify(found));
    assert.ok(found[0]!.why !== '' && found[0]!.fix !== '');
    return found[0]!;
  }

  it('finds nothing when all is well, and says what it looked at', async () => {
    assert.deepEqual(await findings(), { code: 0, found: [] });
    const table = await runCli(['doctor', '--context', eu.context]);
    for (const check of ['dns', 'tcp', 'tls', 'etcd-auth', 'cluster-config', 'canaries', 'sync'])
      assert.match(table.out, new RegExp(`^us +${check} +ok`, 'm'), said(table));
  });

  /** etcd reads the pair again at every handshake. */
  async function withServer(made: KeyAndCertificate, use: () => Promise<void>): Promise<void> {
    const files = ['crt', 'key'].map((end) => join(us.dir, `pki/server.${end}`));
    const kept = files.map((file) => readFileSync(file));
    writeFileSync(files[0]!, made.certPem);
    writeFileSync(files[1]!, made.keyPem);
    try {
      await use();
    } finally {
      files.forEach((file, index) => {
        writeFileSync(file, kept[index]!);
      });
    }
  }

  it('F41 tells of a typo in an annotation, in doctor and status alike; the service is there with the default', async () => {
    const manifest = join(eu.dir, 'manifests/shop.yaml');
    writeFileSync(
      manifest,
      `apiVersion: v1
kind: Service
metadata: { name: web, namespace: shop, annotations: { service.cilium.io/global: "true", service.cilium.io/affinity: "nearby" } }
spec: { clusterIP: 10.96.0.10, ports: [{ name: http, port: 80 }] }
`,
    );
    const last = await waitFor(
      async () => {
        const now = await findings();
        return now.found.length > 0 ? now : undefined;
      },
      { what: 'the finding', timeoutMs: 20_000 },
    );
    assert.deepEqual([last.code, last.found[0]?.name, last.found[0]?.state], [0, 'objects', 'warning']);
    assert.match(
      last.found[0]?.what ?? '',
      /Service shop\/web: annotation service\.cilium\.io\/affinity has value "nearby"/,
    );
    const status = JSON.parse((await runCli(['status', '--context', eu.context, '-o', 'json'])).out) as ClusterStatus;
    assert.equal(status.globalServices, 1);
    assert.match(status.problems.join(), /"nearby"/);
    rmSync(manifest);
    await waitFor(async () => (await findings()).found.length === 0, { what: 'no finding', timeoutMs: 20_000 });
  });

  it('finds nothing after `rotate leaves`: etcd, apiserver and peer go on with the new certificates', async () => {
    const server = () => readFileSync(join(eu.dir, 'pki/server.crt'), 'utf8');
    const [old, pid] = [server(), eu.pid()];
    const rotated = await runCli(['rotate', 'leaves', '--context', eu.context, '-o', 'json']);
    assert.equal(rotated.code, 0, said(rotated));
    const { issued } = JSON.parse(rotated.out) as { issued: { file: string }[] };
    assert.ok(issued.some(({ file }) => file === join(eu.dir, 'pki/server.crt')));
    assert.notEqual(server(), old);
    for (const side of [eu, us]) {
      const status = await runCli(['status', '--context', side.context, '--wait', '--wait-duration', '30s']);
      assert.equal(status.code, 0, said(status));
    }
    await waitFor(async () => (await findings()).found.length === 0, { what: 'no finding', timeoutMs: 20_000 });
    assert.equal(eu.pid(), pid);
  });

  it('F17 names a server of another CA, with both fingerprints', async () => {
    const made = await issueServer({ ca: await createCa({ cluster: 'mars' }) });
    await withServer(made, async () => {
      const found = await onlyFinding();
      assert.equal(found.name, 'tls', JSON.stringify(found));
      const leaf = certificateFacts(made.certPem).fingerprint.slice(0, 16);
      const ca = certificateFacts(loadCa(join(us.dir, 'pki')).certPem).fingerprint.slice(0, 16);
      assert.match(
        found.what,
        new RegExp(`signed by another CA: .*${leaf}….* by clustermesh CA mars; expected CA ${ca}…`),
      );
    });
  });

  it('names files of ours that do not belong together', async () => {
    const file = join(eu.dir, 'clustermesh/us.etcd-client-ca.crt');
    const kept = readFileSync(file);
    writeFileSync(file, (await createCa({ cluster: 'us' })).certPem);
    const found = await onlyFinding();
    writeFileSync(file, kept);
    assert.equal(found.name, 'files');
    assert.match(found.what, /us\.etcd-client\.crt was not signed by the CA in .*us\.etcd-client-ca\.crt/);
  });

  it('F15 names an expired server certificate as the cause, and nothing that follows from it', async () => {
    const ca = loadCa(join(us.dir, 'pki'));
    const old = await issueServer({ ca, now: new Date(Date.now() - 1100 * DAY_MS) });
    await withServer(old, async () => {
      const found = await onlyFinding();
      assert.equal(found.name, 'tls');
      assert.match(found.what, /the server certificate of us \([0-9a-f]{16}…\) expired on \d{4}-\d\d-\d\d, 5 days ago/);
    });
  });

  it('names a peer that does not know us any more', async () => {
    await runCli(['disconnect', '--context', us.context, '--peer', 'eu']);
    const found = await onlyFinding();
    assert.equal(found.name, 'etcd-auth', JSON.stringify(found));
    assert.match(found.fix, /clustermesh connect --context eu --destination-context us/);
  });

  it('names a peer that does not answer', async () => {
    await us.etcd.kill();
    const found = await onlyFinding();
    assert.equal(found.name, 'tcp');
    assert.match(found.what, /connection refused \(nothing listens there\)/);
    await us.etcd.start();
  });

  it('says what to do when the apiserver itself is gone', async () => {
    await eu.killApiserver();
    const result = await runCli(['doctor', '--context', eu.context]);
    assert.equal(result.code, 1, said(result));
    assert.match(result.out, /^eu +apiserver +failed +it does not answer at unix:/m);
    await eu.startApiserver();
  });
});
