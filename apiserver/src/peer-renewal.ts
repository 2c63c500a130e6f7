/**
 * Both ends of the renewal of peers' certificates. What this cluster reads its peers with stays fresh: it asks each of them, over
 * their admin interface, as the user that it is there:
 *
 *   us, as remote-us                          eu
 *     └ GetCluster, the CAs that we hold ─────► its CAs, the one that signs first
 *     └ RenewPeer, request for its key ───────► a certificate by that one
 *
 * A certificate is renewed when it is due, and when another CA signs than its own: so a peer's new CA arrives while the old one is
 * still good. Open connections go on with the old one. The key stays: with it there is one file to replace, in one step, so that a run
 * that is killed anywhere leaves a pair that belongs together. (A new key is what clustermesh connect makes.)
 */
import { readFileSync } from 'node:fs';
import { type AdminMethods, MeshError, messageOf } from '@clustermesh/contract';
import {
  certificateFacts,
  certificatesIn,
  createCsr,
  heldTrust,
  isIssuedBy,
  isKeyOf,
  isRenewalDue,
  issuePeerCertificate,
  remoteUser,
  SERVER_COMMON_NAME,
} from '@clustermesh/pki';
import { type Clock, dialRpc, type Log, type RpcClient, systemClock } from '@clustermesh/runtime';
import type { PeerConfig, PeerDirectory } from './ports.ts';

export interface PeerRenewalPorts {
  /** This cluster's name. */
  readonly own: string;
  readonly directory: PeerDirectory;
  readonly log: Log;
  readonly clock?: Clock;
}

const TIMEOUT_MS = 10_000;
/** Another address of the peer may answer. */
const AWAY: ReadonlySet<string> = new Set(['unreachable', 'timeout']);
const LEAST_INTERVAL_MS = 30_000;

/** `run` asks every peer once; returns what it has done, for the log. One that does not answer is asked again next time. */
export function createPeerRenewal(ports: PeerRenewalPorts): { run(): Promise<string | undefined> } {
  const { directory, own } = ports;
  const clock = ports.clock ?? systemClock;
  const log = ports.log.child({ subsystem: 'peer-renewal' });
  /** Peers that were complained about, with the reason: once per reason. */
  const complained = new Map<string, string>();

  async function renew(peer: PeerConfig): Promise<string | undefined> {
    const caPem = readFileSync(peer.caFile, 'utf8');
    const certPem = readFileSync(peer.certFile, 'utf8');
    const keyPem = readFileSync(peer.keyFile, 'utf8');
    /** On disk first, then told: the peer may wait for nothing else before it goes on. */
    const taken = async (admin: RpcClient<AdminMethods>, held: { caPem: string; certPem: string }) => {
      await directory.renew(peer.name, held);
      await admin.GetCluster(heldTrust(held), { timeoutMs: TIMEOUT_MS });
    };
    return atFirst(peer, { caPem, certPem, keyPem, serverName: SERVER_COMMON_NAME }, async (admin) => {
      const cluster = await admin.GetCluster(heldTrust({ caPem, certPem }), { timeoutMs: TIMEOUT_MS });
      if (cluster.name !== peer.name)
        throw new MeshError({ code: 'conflict', message: `${cluster.name} has answered`, retryable: false });
      const [signing = cluster.caPem] = certificatesIn(cluster.caPem);
      const isDue = isRenewalDue(certificateFacts(certPem), clock.wallMs());
      if (!isDue && isIssuedBy(certPem, signing)) {
        if (cluster.caPem === caPem) return undefined;
        // Kept with the old one before anything is asked of the new one.
        await taken(admin, { caPem: cluster.caPem, certPem });
        return `${peer.name}: its CAs were taken up`;
      }
      const csrPem = createCsr({ keyPem, commonName: remoteUser(own) });
      const answer = await admin.RenewPeer({ csrPem }, { timeoutMs: TIMEOUT_MS });
      if (!isKeyOf(answer.certificatePem, keyPem) || !isIssuedBy(answer.certificatePem, answer.caPem))
        throw new MeshError({ code: 'tls', message: 'the certificate that came is not for our key, or of another CA' });
      await taken(admin, { caPem: answer.caPem, certPem: answer.certificatePem });
      return `${peer.name}: our certificate there was renewed (${isDue ? 'it was due' : 'another CA signs there now'})`;
    });
  }

  async function lookAfter(peer: PeerConfig): Promise<string | undefined> {
    try {
      const done = await renew(peer);
      complained.delete(peer.name);
      return done;
    } catch (error) {
      const reason = messageOf(error);
      if (complained.get(peer.name) !== reason)
        log.warn({ peer: peer.name, reason }, 'certificates of a peer not looked after; tried again');
      complained.set(peer.name, reason);
      return undefined;
    }
  }

  return {
    run: async () => {
      const peers = (await directory.list()).filter((peer) => peer.adminEndpoints !== undefined);
      const done = await Promise.all(peers.map(lookAfter));
      return done.filter((what) => what !== undefined).join('; ') || undefined;
    },
  };
}

/** The other end: signs for a peer that is let in already, at most once in LEAST_INTERVAL_MS, so that none fills the ledger. */
export function createPeerIssuer(options: {
  readonly pkiDir: string;
  /** The CAs, the one that signs first. */
  readonly caPem: () => string;
  readonly clock?: Clock;
}): (peer: string, csrPem: string) => Promise<{ certificatePem: string; caPem: string }> {
  const clock = options.clock ?? systemClock;
  const lastAt = new Map<string, number>();
  return async (peer, csrPem) => {
    const last = lastAt.get(peer);
    if (last !== undefined && clock.nowMs() - last < LEAST_INTERVAL_MS)
      throw new MeshError({
        code: 'locked',
        message: `renewing the certificate of ${peer}: it was renewed less than ${LEAST_INTERVAL_MS / 1000} s ago`,
        retryable: true,
      });
    const certificatePem = await issuePeerCertificate({ pkiDir: options.pkiDir, peer, csrPem });
    lastAt.set(peer, clock.nowMs());
    return { certificatePem, caPem: options.caPem() };
  };
}

/** At the first of the peer's addresses that answers. */
async function atFirst<T>(
  peer: PeerConfig,
  tls: NonNullable<Parameters<typeof dialRpc>[2]>,
  use: (admin: RpcClient<AdminMethods>) => Promise<T>,
): Promise<T> {
  let last: unknown = new MeshError({ code: 'not-found', message: `${peer.name} has named no admin interface` });
  for (const endpoint of peer.adminEndpoints ?? []) {
    const admin = dialRpc<AdminMethods>('admin', endpoint, tls);
    try {
      return await use(admin);
    } catch (error) {
      last = error;
      if (!(error instanceof MeshError) || !AWAY.has(error.code)) throw error;
    } finally {
      admin.close();
    }
  }
  throw last;
}
