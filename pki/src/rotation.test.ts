import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { certificateFacts, certificatesIn, isIssuedBy } from './certificate.ts';
import { ensureClusterPki } from './cluster-pki.ts';
import { readCrl } from './crl.ts';
import { loadCa, loadCaBundle } from './files.ts';
import { crlFile } from './peer-certificates.ts';
import { renewalState, renewInMs, rotationDecision, validityProblem } from './renewal.ts';
import { nextCa, rotateCa, rotationPhase } from './rotation.ts';

const DAY_MS = 86_400_000;
const at = (day: number) => Date.parse('2030-01-01') + day * DAY_MS;
const validity = { notBefore: new Date(at(0)), notAfter: new Date(at(90)) };

describe('renewal', () => {
  it('is due after two thirds of the lifetime, and urgent before the last tenth', () => {
    const states = [-1, 0, 59, 60, 80, 81, 89.9, 90].map((day) => renewalState(validity, at(day)));
    assert.deepEqual(states, ['not-yet-valid', 'fresh', 'fresh', 'due', 'due', 'urgent', 'urgent', 'expired']);
    assert.equal(renewInMs(validity, at(10)), 50 * DAY_MS);
    assert.equal(renewInMs(validity, at(70)), 0);
  });

  it('F18 explains a certificate that is wrong in time with the clock that says so', () => {
    assert.equal(validityProblem(validity, at(1), 'x'), undefined);
    assert.match(
      validityProblem(validity, at(0) - 5 * 60_000, 'the certificate of eu') ?? '',
      /^the certificate of eu is valid only from 2030-01-01T00:00:00.000Z, in 5 min by this machine's clock .*behind\?$/,
    );
    assert.match(validityProblem(validity, at(95), 'x') ?? '', /^x expired at 2030-04-01T.*, 5 days ago by this/);
    assert.match(validityProblem(validity, at(90) + 3_600_000, 'x') ?? '', /60 min ago/);
  });
});

describe('the order of a rotation', () => {
  const ready = { isTrustedByEtcd: true, withoutBundle: [], usersOfOldCa: [], overlapEndsAtMs: 0, nowMs: 1000 };

  it('goes on only when nobody would be locked out', () => {
    assert.deepEqual(rotationDecision({ ...ready, phase: 'idle', isTrustedByEtcd: false }), { next: 'announce' });
    assert.match(
      JSON.stringify(rotationDecision({ ...ready, phase: 'announced', isTrustedByEtcd: false })),
      /restarted once/,
    );
    assert.match(
      JSON.stringify(rotationDecision({ ...ready, phase: 'announced', withoutBundle: ['us', 'asia'] })),
      /us, asia to take up/,
    );
    assert.deepEqual(rotationDecision({ ...ready, phase: 'announced', usersOfOldCa: ['us'] }), { next: 'switch' });
    assert.match(
      JSON.stringify(rotationDecision({ ...ready, phase: 'switched', usersOfOldCa: ['us'] })),
      /us to renew/,
    );
    assert.match(
      JSON.stringify(rotationDecision({ ...ready, phase: 'switched', overlapEndsAtMs: 1001 })),
      /the overlap to end at 1970-01-01T00:00:01.001Z/,
    );
    assert.deepEqual(rotationDecision({ ...ready, phase: 'switched' }), { next: 'retire' });
  });
});

describe('a CA on disk', () => {
  let dir: string;
  const file = (name: string) => readFileSync(join(dir, name), 'utf8');
  const rotate = (step: 'announce' | 'switch' | 'retire') => rotateCa({ pkiDir: dir, cluster: 'eu', step });
  const ensure = (now?: Date) => ensureClusterPki({ dir, cluster: 'eu', nodes: ['n1'], ...(now && { now }) });
  beforeEach(async () => {
    dir = mkdtempSync(join(tmpdir(), 'cm-rotation-'));
    await ensure();
  });
  afterEach(() => rmSync(dir, { recursive: true }));

  it('is replaced with an overlap in which both are trusted and one signs', async () => {
    const before = { ca: loadCa(dir).certPem, server: file('server.crt') };
    assert.equal(await rotate('announce'), 'announced');
    assert.equal(loadCa(dir).certPem, before.ca, 'the old one signs');
    const next = nextCa(dir)?.certPem ?? '';
    assert.deepEqual(certificatesIn(loadCaBundle(dir)), [before.ca, next]);
    await ensure();
    assert.equal(file('server.crt'), before.server, 'nothing is issued anew yet');
    assert.equal(file('nodes/n1/ca.crt'), file('ca.crt'), 'nodes trust both');

    assert.equal(await rotate('switch'), 'switched');
    assert.equal(loadCa(dir).certPem, next, 'the new one signs');
    const { issued } = await ensure();
    assert.equal(issued.filter(({ reason }) => reason === 'signed by another CA').length, 5, JSON.stringify(issued));
    for (const name of ['server', 'admin', 'local', 'gate', 'nodes/n1/node'])
      assert.ok(isIssuedBy(file(`${name}.crt`), next), name);
    assert.ok(isIssuedBy(before.server, loadCaBundle(dir)), 'what the old one has signed is still good');
    readCrl(readFileSync(crlFile(dir), 'utf8'), next);

    assert.equal(await rotate('retire'), 'idle');
    assert.equal(loadCaBundle(dir), next);
    assert.ok(!isIssuedBy(before.server, loadCaBundle(dir)));
    assert.deepEqual((await ensure()).issued, []);
    assert.equal(file('nodes/n1/ca.crt'), next);
  });

  it('takes each step in its turn, and goes on from wherever it was killed', async () => {
    await assert.rejects(rotate('switch'), { code: 'conflict', message: /announce is/ });
    await rotate('announce');
    await assert.rejects(rotate('announce'), { code: 'conflict' });
    // Killed between the key and the certificate of the new CA.
    const { writeFileSync } = await import('node:fs');
    writeFileSync(join(dir, 'ca.crt'), certificatesIn(loadCaBundle(dir))[0]!);
    assert.equal(rotationPhase(dir), 'idle');
    const key = file('ca-next.key');
    await rotate('announce');
    assert.equal(file('ca-next.key'), key, 'with the key that was made');
    await rotate('switch');
    assert.equal(file('ca.key'), key);
  });

  it('keeps the names of the server and renews the nodes it has, without being told again', async () => {
    await ensureClusterPki({ dir, cluster: 'eu', serverIps: ['192.0.2.7'], serverDnsNames: ['eu.example'] });
    const later = new Date(Date.now() + 0.7 * 1095 * DAY_MS);
    const { issued } = await ensureClusterPki({ dir, cluster: 'eu', now: later });
    assert.ok(issued.some(({ file: path }) => path === join(dir, 'nodes/n1/node.crt')));
    const facts = certificateFacts(file('server.crt'));
    assert.ok(facts.ips.includes('192.0.2.7') && facts.dnsNames.includes('eu.example'));
  });

  it('renews leaves that are due by itself, and no others', async () => {
    const server = file('server.crt');
    const almost = new Date(Date.now() + 0.6 * 1095 * DAY_MS);
    assert.deepEqual((await ensure(almost)).issued, []);
    const later = new Date(Date.now() + 0.7 * 1095 * DAY_MS);
    const { issued } = await ensure(later);
    assert.equal(issued.length, 5);
    for (const { reason } of issued) assert.match(reason, /^due for renewal, it expires at/);
    assert.notEqual(file('server.crt'), server);
    // Under a clock that is right again, what was issued in the future is of no use, and is issued again.
    const again = await ensure();
    assert.equal(again.issued.length, 5);
    for (const { reason } of again.issued) assert.match(reason, /issued under a wrong clock/);
  });
});
