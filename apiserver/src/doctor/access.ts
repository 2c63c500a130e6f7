/** Whether those whom this cluster let in once, and lets in no more, are kept out: users.yaml, peers.json and crl.pem agree. */
import { readFileSync } from 'node:fs';
import { messageOf, type PreflightCheck } from '@clustermesh/contract';
import { crlFile, loadCaBundle, normalSerial, readCrl, readLedger } from '@clustermesh/pki';
import { passed, refused } from '../preflight/check.ts';

export interface AccessFacts {
  readonly cluster: string;
  readonly pkiDir: string;
  /** Clusters that users.yaml lets in. */
  readonly admitted: readonly string[];
  readonly nowMs: number;
}

/** etcd's own users are compared with users.yaml by bootstrap, every minute. */
export function accessCheck({ cluster, pkiDir, admitted, nowMs }: AccessFacts): PreflightCheck {
  try {
    const ledger = readLedger(pkiDir);
    const valid = ledger.issued.filter(({ notAfterMs }) => notAfterMs > nowMs);
    const strangers = [...new Set(valid.map(({ peer }) => peer))].filter((peer) => !admitted.includes(peer)).sort();
    if (strangers.length > 0)
      return refused('access', {
        code: 'conflict',
        what: `${strangers.join(', ')}: not let in any more (users.yaml), but the certificates are not revoked`,
        why: 'let in again under that name, the old certificates would be good again',
        fix: strangers.map((peer) => `clustermesh disconnect --context ${cluster} --peer ${peer}`).join('; '),
      });
    const dead = ledger.revoked.filter(({ notAfterMs }) => notAfterMs > nowMs);
    const listed = readCrl(readFileSync(crlFile(pkiDir), 'utf8'), loadCaBundle(pkiDir));
    const missing = [
      ...new Set(dead.filter(({ serial }) => !listed.has(normalSerial(serial))).map(({ peer }) => peer)),
    ];
    if (missing.length > 0)
      return refused('access', {
        code: 'conflict',
        what: `${crlFile(pkiDir)} lacks revoked certificates of ${missing.sort().join(', ')}: it is older than peers.json`,
        why: 'etcd and the gate take certificates that were revoked',
        fix: `write it anew: clustermesh pki init --cluster ${cluster} --dir ${pkiDir}`,
      });
    return passed('access', `${admitted.length} peers are let in, ${dead.length} certificates are revoked`);
  } catch (error) {
    return refused('access', {
      code: 'tls',
      what: messageOf(error),
      why: 'who is kept out cannot be told, and etcd refuses everybody without a revocation list',
      fix: `put the file back from a backup; crl.pem: clustermesh pki init --cluster ${cluster} --dir ${pkiDir}`,
    });
  }
}
