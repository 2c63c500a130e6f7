import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { atomicWrite } from '@clustermesh/runtime';
import { certificateFacts } from './certificate.ts';
import { heldTrust, trustView } from './held-trust.ts';
import { createCa, issueClient } from './issue.ts';

test('a reader tells which CAs it trusts, and which of them has signed its certificate, as soon as its files change', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'cm-held-'));
  t.after(() => rmSync(dir, { recursive: true }));
  const [old, next] = await Promise.all([createCa({ cluster: 'eu' }), createCa({ cluster: 'eu' })]);
  const print = (ca: { readonly certPem: string }) => certificateFacts(ca.certPem).fingerprint;
  const [byOld, byNext] = await Promise.all([old, next].map((ca) => issueClient({ ca, commonName: 'node-n1' })));
  const files = { caFile: join(dir, 'ca.crt'), certFile: join(dir, 'node.crt') };
  const view = trustView(files);
  assert.equal(view(), undefined, 'nothing is there yet');
  writeFileSync(files.caFile, old.certPem);
  writeFileSync(files.certFile, byOld!.certPem);
  assert.deepEqual(view(), { trustedCas: [print(old)], signedBy: print(old) });
  atomicWrite(files.caFile, old.certPem + next.certPem);
  assert.deepEqual(view(), { trustedCas: [print(old), print(next)], signedBy: print(old) });
  atomicWrite(files.certFile, byNext!.certPem);
  assert.deepEqual(view(), { trustedCas: [print(old), print(next)], signedBy: print(next) });
  assert.deepEqual(heldTrust({ caPem: old.certPem, certPem: byNext!.certPem }).signedBy, '');
});
