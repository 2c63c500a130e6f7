/**
 * The certificates that peers were given, so that they can be taken back: `<pki dir>/peers.json` says who holds which serial
 * numbers, `<pki dir>/crl.pem` which of them are dead. A peer that is invited again gets new ones; its old ones stay dead.
 */
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { MeshError, messageOf } from '@clustermesh/contract';
import { atomicWrite, systemClock, tryLock } from '@clustermesh/runtime';
import { z } from 'zod';
import { certificateFacts } from './certificate.ts';
import { createCrl, serialOf } from './crl.ts';
import { signCsr } from './csr.ts';
import { loadCa } from './files.ts';
import { remoteUser } from './names.ts';

const serial = z.string().regex(/^[0-9a-f]+$/);
const ledgerSchema = z.strictObject({
  crlNumber: z.number().int(),
  issued: z.array(z.strictObject({ serial, peer: z.string(), notAfterMs: z.number() })),
  revoked: z.array(z.strictObject({ serial, peer: z.string(), notAfterMs: z.number(), revokedAtMs: z.number() })),
});
export type PeerLedger = Readonly<z.infer<typeof ledgerSchema>>;

export const EMPTY_LEDGER: PeerLedger = { crlNumber: 0, issued: [], revoked: [] };
/** Expired certificates are kept in the list a little longer: clocks of readers may be behind. */
const EXPIRY_SLACK_MS = 86_400_000;

/** Pure: all that `peer` holds is revoked; what has long expired is forgotten. */
export function revokeAll(ledger: PeerLedger, peer: string, nowMs: number): PeerLedger {
  const isKept = (entry: { readonly notAfterMs: number }) => entry.notAfterMs + EXPIRY_SLACK_MS > nowMs;
  const taken = ledger.issued.filter((entry) => entry.peer === peer);
  return {
    crlNumber: ledger.crlNumber + (taken.length > 0 ? 1 : 0),
    issued: ledger.issued.filter((entry) => entry.peer !== peer && isKept(entry)),
    revoked: [...ledger.revoked, ...taken.map((entry) => ({ ...entry, revokedAtMs: nowMs }))].filter(isKept),
  };
}

/** `<pki dir>/crl.pem`: for etcd's --client-crl-file and for the gate. */
export const crlFile = (pkiDir: string): string => join(pkiDir, 'crl.pem');

/** Signs a peer's request and remembers it. Same refusals as `signCsr`. */
export async function issuePeerCertificate(options: {
  readonly pkiDir: string;
  readonly peer: string;
  readonly csrPem: string;
  readonly now?: Date;
}): Promise<string> {
  const { pkiDir, peer, csrPem } = options;
  const ca = loadCa(pkiDir);
  const certPem = signCsr({
    csrPem,
    ca,
    expectedCommonName: remoteUser(peer),
    ...(options.now === undefined ? {} : { now: options.now }),
  });
  await changeLedger(pkiDir, (ledger) => ({
    ...ledger,
    issued: [
      ...ledger.issued,
      { serial: serialOf(certPem), peer, notAfterMs: certificateFacts(certPem).notAfter.getTime() },
    ],
  }));
  // Only now: a certificate that is out but not in the ledger could not be revoked.
  return certPem;
}

/** Every certificate that the peer was ever given is dead from now on. Idempotent; returns how many were alive. */
export async function revokePeerCertificates(options: {
  readonly pkiDir: string;
  readonly peer: string;
  readonly now?: Date;
}): Promise<number> {
  const nowMs = (options.now ?? new Date()).getTime();
  let count = 0;
  await changeLedger(options.pkiDir, (ledger) => {
    count = ledger.issued.filter((entry) => entry.peer === options.peer).length;
    return revokeAll(ledger, options.peer, nowMs);
  });
  return count;
}

/** Makes crl.pem what the ledger says, signed by the CA there is now. */
export function writeCrl(pkiDir: string): void {
  const ledger = readLedger(pkiDir);
  atomicWrite(
    crlFile(pkiDir),
    createCrl({ ca: loadCa(pkiDir), revoked: ledger.revoked, number: ledger.crlNumber }),
    0o644,
  );
}

export function readLedger(pkiDir: string): PeerLedger {
  const file = join(pkiDir, 'peers.json');
  if (!existsSync(file)) return EMPTY_LEDGER;
  try {
    return ledgerSchema.parse(JSON.parse(readFileSync(file, 'utf8')));
  } catch (error) {
    throw new MeshError({
      code: 'invalid-config',
      message: `reading the peers' certificates in ${file}: ${messageOf(error)}`,
      hint: 'put the file back from a backup; without it no certificate of a peer can be revoked one by one',
      cause: error,
    });
  }
}

/** Replicas may share the directory: one changes it at a time. The list is written last, and again by whoever finds it behind. */
async function changeLedger(pkiDir: string, change: (ledger: PeerLedger) => PeerLedger): Promise<void> {
  for (;;) {
    const lock = tryLock(join(pkiDir, 'peers.lock'), String(process.pid));
    if ('heldBy' in lock) {
      await systemClock.sleep(20);
      continue;
    }
    try {
      const before = readLedger(pkiDir);
      atomicWrite(join(pkiDir, 'peers.json'), `${JSON.stringify(change(before), undefined, 1)}\n`, 0o600);
      writeCrl(pkiDir);
      return;
    } finally {
      lock.release();
    }
  }
}
