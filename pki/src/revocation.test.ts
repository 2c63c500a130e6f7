import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { type CertificateAuthority, isIssuedBy } from './certificate.ts';
import { createCrl, readCrl, serialOf } from './crl.ts';
import { createKeyAndCsr } from './csr.ts';
import { createCa } from './issue.ts';
import {
  crlFile,
  EMPTY_LEDGER,
  issuePeerCertificate,
  readLedger,
  revokeAll,
  revokePeerCertificates,
} from './peer-certificates.ts';

const root = mkdtempSync(join(tmpdir(), 'cm-revocation-'));
after(() => rmSync(root, { recursive: true }));
const file = (name: string, content: string): string => {
  writeFileSync(join(root, name), content, { mode: 0o600 });
  return join(root, name);
};
let ca: CertificateAuthority;
let other: CertificateAuthority;
before(async () => {
  [ca, other] = await Promise.all([createCa({ cluster: 'eu' }), createCa({ cluster: 'us' })]);
});

describe('a revocation list', () => {
  const revoked = ['7f00', '80', 'c0ffee', '1'].map((serial) => ({ serial, revokedAtMs: Date.parse('2026-01-02') }));

  it('comes back as it was written, empty or not', () => {
    for (const entries of [[], revoked]) {
      const pem = createCrl({ ca, revoked: entries, number: 3 });
      assert.deepEqual([...readCrl(pem, ca.certPem)].sort(), entries.map((entry) => entry.serial).sort());
    }
  });

  it('is what OpenSSL takes for one, signature, serials and number', () => {
    const list = file('list.pem', createCrl({ ca, revoked, number: 200 }));
    const text = execFileSync('openssl', [
      ...['crl', '-in', list, '-noout', '-text', '-verify', '-CAfile', file('ca.crt', ca.certPem)],
    ]).toString();
    assert.match(text, /CRL Number:\s+200/);
    for (const serial of ['7F00', '80', 'C0FFEE', '01']) assert.match(text, new RegExp(`Serial Number: ${serial}\n`));
  });

  it('is believed only when one of the trusted CAs has signed it', () => {
    const pem = createCrl({ ca, revoked, number: 1 });
    assert.equal(readCrl(pem, other.certPem + ca.certPem).size, 4);
    assert.throws(() => readCrl(pem, other.certPem), /none of the trusted CAs/);
    const lines = pem.split('\n');
    lines[3] = lines[3]!.replace(/^./, (char) => (char === 'A' ? 'B' : 'A'));
    assert.throws(() => readCrl(lines.join('\n'), ca.certPem), { code: 'tls' });
    assert.throws(() => readCrl('', ca.certPem), { code: 'tls' });
  });
});

describe('certificates of peers', () => {
  const pkiDir = join(root, 'pki');
  const issue = async (peer: string) => {
    const { csrPem } = await createKeyAndCsr({ commonName: `remote-${peer}` });
    return issuePeerCertificate({ pkiDir, peer, csrPem });
  };
  const dead = () => readCrl(readFileSync(crlFile(pkiDir), 'utf8'), ca.certPem);
  before(async () => {
    const { writePair } = await import('./files.ts');
    writePair(pkiDir, 'ca', ca);
  });

  it('die with their peer, every one it was given, and stay dead when it is invited again', async () => {
    const [first, second, foreign] = [await issue('us'), await issue('us'), await issue('asia')];
    assert.equal(await revokePeerCertificates({ pkiDir, peer: 'us' }), 2);
    assert.equal(await revokePeerCertificates({ pkiDir, peer: 'us' }), 0);
    const again = await issue('us');
    assert.deepEqual(dead(), new Set([serialOf(first), serialOf(second)]));
    for (const alive of [foreign, again]) assert.ok(!dead().has(serialOf(alive)) && isIssuedBy(alive, ca.certPem));
  });

  it('are all remembered when several are signed at once', async () => {
    const before = readLedger(pkiDir).issued.length;
    await Promise.all(Array.from({ length: 6 }, (_, index) => issue(`peer-${index}`)));
    assert.equal(readLedger(pkiDir).issued.length, before + 6);
  });

  it('are forgotten a day after they expired', () => {
    const entry = (peer: string, notAfterMs: number) => ({ serial: 'ab', peer, notAfterMs });
    const ledger = { ...EMPTY_LEDGER, issued: [entry('us', 5_000), entry('asia', 1_000)] };
    const revoked = revokeAll(ledger, 'us', 10_000);
    assert.deepEqual([revoked.issued.length, revoked.revoked.length, revoked.crlNumber], [1, 1, 1]);
    const later = revokeAll(revoked, 'nobody', 5_000 + 86_400_000);
    assert.deepEqual([later.issued.length, later.revoked.length, later.crlNumber], [0, 0, 1]);
  });
});
