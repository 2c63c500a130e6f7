/** What has to be known before a rotation goes on: who trusts the new CA already, and who needs the old one still. */

import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { type HeldTrust, type HostAlias, MeshError } from '@clustermesh/contract';
import {
  type CertificateAuthority,
  certificateFacts,
  certificatesIn,
  issueClient,
  issuedAtMs,
  type KeyAndCertificate,
  loadCa,
  loadCaBundle,
  localUser,
  nextCa,
  type RotationFacts,
  rotationPhase,
} from '@clustermesh/pki';
import { type Clock, systemClock } from '@clustermesh/runtime';
import { readUsersFile } from '../bootstrap/users.ts';
import type { RotateJobData } from '../operations/model.ts';
import type { RedisConfig } from '../operations/redis-config.ts';
import type { AgentView } from '../ports.ts';
import { probeEndpoints } from '../preflight/probe.ts';
import type { TrustReports } from './trust-reports.ts';

export interface RotationPorts {
  readonly cluster: string;
  readonly pkiDir: string;
  facts(wanted: Pick<RotateJobData, 'overlapMs' | 'without'>, signal: AbortSignal): Promise<RotationFacts>;
  readonly clock: Clock;
}

const REMOTE = /^remote-(.+)$/;

export function createRotationPorts(options: {
  readonly cluster: string;
  readonly pkiDir: string;
  readonly etcd: { readonly endpoints: readonly string[]; readonly hostAliases: readonly HostAlias[] };
  readonly redis: RedisConfig;
  readonly usersFile: string;
  readonly agents: AgentView;
  readonly reports: TrustReports;
  readonly clock?: Clock;
}): RotationPorts {
  const { cluster, pkiDir } = options;
  const clock = options.clock ?? systemClock;
  const isOverTls = options.etcd.endpoints.every((endpoint) => endpoint.startsWith('https:'));
  /** One certificate per new CA is enough to try with. */
  let trial: { readonly ca: string; readonly pair: KeyAndCertificate } | undefined;

  /** By trial: is a certificate that the new CA has signed let in, at every member? */
  async function isTrustedByEtcd(next: CertificateAuthority, signal: AbortSignal): Promise<boolean> {
    if (!isOverTls) return true;
    if (trial?.ca !== next.certPem)
      trial = { ca: next.certPem, pair: await issueClient({ ca: next, commonName: localUser(cluster) }) };
    const { pair } = trial;
    const { hostAliases } = options.etcd;
    const asked = options.etcd.endpoints.map((endpoint) =>
      probeEndpoints({
        ...{ peer: cluster, endpoints: [endpoint], hostAliases, caPem: loadCaBundle(pkiDir), client: pair, signal },
      }),
    );
    // A member that is being restarted just now is asked again soon.
    return (await Promise.allSettled(asked)).every(({ status }) => status === 'fulfilled');
  }

  /** Whether a connection to Redis would be lost with the old CA. Without TLS, or by a CA of its own, it has nothing to do with ours. */
  async function redisNeedsOldCa(newCa: string, signal: AbortSignal): Promise<boolean> {
    const { url, caFile } = options.redis;
    if (url === undefined || !url.startsWith('rediss:') || caFile === undefined) return false;
    const trusted = certificatesIn(readFileSync(caFile, 'utf8')).map((pem) => pem.trim());
    if (!trusted.includes(newCa.trim())) return false;
    const endpoint = url.replace(/^rediss:/, 'https:');
    const asked = probeEndpoints({ peer: cluster, endpoints: [endpoint], hostAliases: [], caPem: newCa, signal });
    return asked.then(
      () => false,
      (error: unknown) => error instanceof MeshError && error.code === 'tls',
    );
  }

  /** Peers that are let in, and nodes whose agents run, but those that are not to be waited for. */
  function readers(without: readonly string[]): ReadonlyMap<string, HeldTrust | undefined> {
    const { users, problems } = readUsersFile(options.usersFile);
    if (users === undefined && problems.length > 0)
      throw new MeshError({
        code: 'invalid-config',
        message: `rotating the CA of ${cluster}: it cannot be told who its peers are: ${problems.join('; ')}`,
      });
    const peers = (users ?? []).flatMap((user) => REMOTE.exec(user)?.[1] ?? []);
    const nodes = isOverTls ? options.agents.agents() : [];
    const all: (readonly [string, HeldTrust | undefined])[] = [
      ...peers.map((peer) => [peer, options.reports.of(peer)] as const),
      ...nodes.map((agent) => [agent.node, agent.trust] as const),
    ];
    return new Map(all.filter(([name]) => !without.includes(name)));
  }

  return {
    cluster,
    pkiDir,
    clock,
    async facts({ overlapMs, without }, signal) {
      const phase = rotationPhase(pkiDir);
      const next = phase === 'announced' ? nextCa(pkiDir) : undefined;
      const newCa = next ?? loadCa(pkiDir);
      const { fingerprint } = certificateFacts(newCa.certPem);
      const held = [...readers(without)];
      const lacking = (has: (trust: HeldTrust) => boolean) =>
        held.filter(([, trust]) => trust === undefined || !has(trust)).map(([name]) => name);
      const server = certificateFacts(readFileSync(join(pkiDir, 'server.crt'), 'utf8'));
      const isRedisBehind = phase === 'switched' && (await redisNeedsOldCa(newCa.certPem, signal));
      return {
        phase,
        isTrustedByEtcd: next === undefined || (await isTrustedByEtcd(next, signal)),
        withoutBundle: lacking((trust) => trust.trustedCas.includes(fingerprint)),
        usersOfOldCa: [...lacking((trust) => trust.signedBy === fingerprint), ...(isRedisBehind ? ['Redis'] : [])],
        // The new CA's first signatures are those of our own leaves.
        overlapEndsAtMs: issuedAtMs(server) + overlapMs,
        nowMs: clock.wallMs(),
      };
    },
  };
}
