import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { it } from 'node:test';
import type { PreflightCheck } from '@clustermesh/contract';
import {
  createCrl,
  createKeyAndCsr,
  crlFile,
  ensureClusterPki,
  issuePeerCertificate,
  loadCa,
  revokePeerCertificates,
  writeCrl,
} from '@clustermesh/pki';
import { createLog, type Log } from '@clustermesh/runtime';
import { accessCheck } from './access.ts';
import { createSelfAudit } from './audit.ts';

it('finds whoever is let in no more and holds certificates that are good still, and a revocation list that is too old', async (t) => {
  const pkiDir = mkdtempSync(join(tmpdir(), 'cm-access-'));
  t.after(() => rmSync(pkiDir, { recursive: true }));
  await ensureClusterPki({ dir: pkiDir, cluster: 'eu' });
  const check = (admitted: readonly string[]): PreflightCheck =>
    accessCheck({ cluster: 'eu', pkiDir, admitted, nowMs: Date.now() });
  assert.equal(check([]).state, 'ok');
  for (const peer of ['us', 'ap'])
    await issuePeerCertificate({
      ...{ pkiDir, peer },
      csrPem: (await createKeyAndCsr({ commonName: `remote-${peer}` })).csrPem,
    });
  assert.equal(check(['us', 'ap']).state, 'ok');
  const stranger = check(['us']);
  assert.equal(stranger.state, 'failed');
  assert.match(stranger.what, /^ap: not let in any more/);
  assert.equal(stranger.fix, 'clustermesh disconnect --context eu --peer ap');

  await revokePeerCertificates({ pkiDir, peer: 'ap' });
  assert.deepEqual([check(['us']).state, check(['us']).what], ['ok', '1 peers are let in, 1 certificates are revoked']);
  writeFileSync(crlFile(pkiDir), createCrl({ ca: loadCa(pkiDir), revoked: [], number: 0 }));
  assert.match(check(['us']).what, /lacks revoked certificates of ap: it is older than peers.json/);
  writeCrl(pkiDir);
  assert.equal(check(['us']).state, 'ok');
  rmSync(crlFile(pkiDir));
  assert.match(check(['us']).what, /ENOENT/);
});

it('says what it finds once, counts it each time, and says when it is mended', async () => {
  const warnings: unknown[] = [];
  const log = createLog('test');
  log.warn = ((fields: unknown) => warnings.push(fields)) as Log['warn'];
  const check = (name: string, state: PreflightCheck['state']): PreflightCheck => ({
    ...{ name, state, what: `${name} it is`, why: 'w', fix: 'f', code: '' },
  });
  let checks = [check('etcd', 'ok'), check('redis', 'warning'), check('access', 'failed')];
  const audit = createSelfAudit(async () => [{ subject: 'eu', checks }], log);
  assert.equal(audit.findings(), undefined);
  assert.equal(await audit.run(), undefined);
  assert.equal(await audit.run(), undefined);
  assert.deepEqual(audit.findings(), { failed: 1, warning: 1 });
  assert.deepEqual(warnings, [
    { subject: 'eu', check: 'redis', state: 'warning', what: 'redis it is', fix: 'f' },
    { subject: 'eu', check: 'access', state: 'failed', what: 'access it is', fix: 'f' },
  ]);
  checks = [check('etcd', 'ok'), check('redis', 'ok'), check('access', 'failed')];
  assert.equal(await audit.run(), 'mended since the last audit: eu redis');
  assert.deepEqual(audit.findings(), { failed: 1, warning: 0 });
  assert.equal(warnings.length, 2);
});
