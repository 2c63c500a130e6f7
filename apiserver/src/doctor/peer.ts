/**
 * The way to one peer, from the file to the freshness of its data, as far as it goes: the first link that is broken is the cause, and
 * what depends on it is not reported as well.
 *
 *   files → names → TCP and TLS → etcd user → cluster config → canaries → sync
 */
import { lookup } from 'node:dns/promises';
import { readFileSync } from 'node:fs';
import { isIP } from 'node:net';
import {
  clusterConfigKey,
  decodeClusterConfig,
  MeshError,
  messageOf,
  type PeerStatus,
  type PreflightCheck,
  publishedFamilies,
  syncedPrefix,
} from '@clustermesh/contract';
import { openEtcd } from '@clustermesh/kvstore';
import { certificateFacts, isIssuedBy, isKeyOf } from '@clustermesh/pki';
import type { Log } from '@clustermesh/runtime';
import type { PeerConfig } from '../ports.ts';
import { doubtful, passed, refused } from '../preflight/check.ts';
import { explain, targetOf } from '../preflight/probe.ts';
import { validityCheck } from './certificates.ts';
import { handshakeWith } from './tls.ts';

export interface PeerDiagnosisOptions {
  readonly own: string;
  readonly peer: PeerConfig;
  /** What the mirror says of it; undefined while it has not been taken up. */
  readonly status: PeerStatus | undefined;
  readonly nowMs: number;
  readonly timeoutMs: number;
  readonly log: Log;
}

interface Files {
  readonly caPem: string;
  readonly certPem: string;
}

const again = (own: string, peer: string) => `clustermesh connect --context ${own} --destination-context ${peer}`;
const isBroken = (checks: readonly PreflightCheck[]) => checks.some((check) => check.state === 'failed');

export async function diagnosePeer(options: PeerDiagnosisOptions): Promise<PreflightCheck[]> {
  const files = readFiles(options);
  const checks = [...files.checks];
  if (files.read === undefined || isBroken(checks)) return checks;
  checks.push(...(await reachChecks(options, files.read)));
  if (isBroken(checks)) return checks;
  checks.push(...(await contentChecks(options)));
  if (isBroken(checks)) return checks;
  return [...checks, syncCheck(options)];
}

/** Ours: the files of the config directory, and whether they belong together. */
function readFiles({ own, peer, nowMs }: PeerDiagnosisOptions): { checks: PreflightCheck[]; read: Files | undefined } {
  const fix = `connect again: ${again(own, peer.name)}`;
  const why = `without them nobody can log in at ${peer.name}`;
  const bad = (what: string) => ({
    checks: [refused('files', { code: 'invalid-config', what, why, fix })],
    read: undefined,
  });
  try {
    const [caPem, certPem, keyPem] = [peer.caFile, peer.certFile, peer.keyFile].map((file) =>
      readFileSync(file, 'utf8'),
    );
    if (!isKeyOf(certPem!, keyPem!)) return bad(`${peer.certFile} and ${peer.keyFile} do not belong together`);
    if (!isIssuedBy(certPem!, caPem!)) return bad(`${peer.certFile} was not signed by the CA in ${peer.caFile}`);
    const ours = certificateFacts(certPem!);
    const check = validityCheck(
      'client-certificate',
      { ...ours, what: `the certificate of ${own} at ${peer.name}`, why: `${peer.name} lets nobody in with it`, fix },
      nowMs,
    );
    return {
      checks: [passed('files', `certificate, key and CA for ${peer.name} are there and belong together`), check],
      read: { caPem: caPem!, certPem: certPem! },
    };
  } catch (error) {
    return bad(`the files for ${peer.name} cannot be used: ${messageOf(error)}`);
  }
}

/** One endpoint that works is enough; when none does, each is told. */
async function reachChecks(options: PeerDiagnosisOptions, files: Files): Promise<PreflightCheck[]> {
  let last: PreflightCheck[] = [];
  for (const endpoint of options.peer.endpoints) {
    last = await reachEndpoint(options, files, endpoint);
    if (!isBroken(last)) return last;
  }
  return last;
}

async function reachEndpoint(
  { peer, nowMs, timeoutMs }: PeerDiagnosisOptions,
  { caPem }: Files,
  endpoint: string,
): Promise<PreflightCheck[]> {
  const why = `this cluster reads the services of ${peer.name} from there`;
  const target = targetOf(endpoint, peer.hostAliases);
  if (target === undefined) {
    const what = `${endpoint} is no https://host:port address`;
    return [
      refused('dns', { code: 'invalid-config', what, why, fix: `correct endpoints in the file of ${peer.name}` }),
    ];
  }
  const checks: PreflightCheck[] = [];
  let addresses = target.addresses;
  if (addresses.every((address) => isIP(address) === 0)) {
    try {
      addresses = (await lookup(target.hostname, { all: true })).map(({ address }) => address);
    } catch (error) {
      return [
        refused('dns', {
          code: 'unreachable',
          what: `${target.hostname} cannot be resolved (${(error as NodeJS.ErrnoException).code})`,
          why,
          fix: `add the name to DNS, or to advertise.hostAliases of ${peer.name} and connect again`,
        }),
      ];
    }
  }
  checks.push(passed('dns', `${target.hostname} is ${addresses.join(', ')}`));
  const caFingerprint = certificateFacts(caPem).fingerprint;
  for (const host of addresses) {
    try {
      const seen = await handshakeWith({ host, port: target.port, servername: target.hostname, caPem, timeoutMs });
      const tcp = passed('tcp', `${host}:${target.port} answers`);
      const certificate = {
        ...seen,
        what: `the server certificate of ${peer.name}`,
        why,
        fix: `start ${peer.name}, whose control plane renews it; without one: clustermesh pki init on its host, which issues what has expired`,
      };
      const validity = validityCheck('tls', certificate, nowMs);
      // Expiry first: it explains OpenSSL's refusal.
      if (validity.state === 'failed') return [...checks, tcp, validity];
      if (seen.untrusted === undefined)
        return [
          ...checks,
          tcp,
          { ...validity, what: `${validity.what}, ${seen.protocol}, CA ${caFingerprint.slice(0, 16)}…` },
        ];
      const { text } = explain(Object.assign(new Error(seen.untrusted), { code: seen.untrusted }));
      const finding = {
        code: 'tls' as const,
        what: `${endpoint}: ${text}: ${seen.subject} (${seen.fingerprint.slice(0, 16)}…, ${seen.names}) by ${seen.issuer}; expected CA ${caFingerprint.slice(0, 16)}…`,
        why,
        fix: `was the CA of ${peer.name} replaced, or ${peer.name} rebuilt? disconnect it and connect it anew; otherwise correct advertise.endpoints of ${peer.name}`,
      };
      return [...checks, tcp, refused('tls', finding)];
    } catch (error) {
      const finding = {
        code: 'unreachable' as const,
        what: `${endpoint} (${host}): ${explain(error).text}`,
        why,
        fix: `check that etcd (and its gate) of ${peer.name} runs, and that no firewall is between`,
      };
      checks.push(refused('tcp', finding));
    }
  }
  return checks;
}

/** What is there once we are in. */
async function contentChecks({ own, peer, timeoutMs, log }: PeerDiagnosisOptions): Promise<PreflightCheck[]> {
  const etcd = openEtcd({ ...peer, log, requestTimeoutMs: timeoutMs, connectTimeoutMs: timeoutMs });
  try {
    const kv = await etcd.get(clusterConfigKey(peer.name), { timeoutMs });
    const login = passed('etcd-auth', `${peer.name} lets this cluster in`);
    if (kv === undefined) {
      return [
        login,
        refused('cluster-config', {
          code: 'not-found',
          what: `there is no ${clusterConfigKey(peer.name)}`,
          why: 'it is the handshake: without it nothing is read',
          fix: `start the apiserver of ${peer.name}; if that cluster has another name now, disconnect ${peer.name} and connect it anew`,
        }),
      ];
    }
    const config = decodeClusterConfig(kv.value.toString('utf8'));
    const why = 'it is the handshake: what it says decides what is read';
    if (!config.ok) {
      const fix = `look at the logs of ${peer.name}'s apiserver`;
      return [login, refused('cluster-config', { code: 'invalid-object', what: config.reason, why, fix })];
    }
    const { id } = config.value;
    if (peer.agreed !== undefined && peer.agreed.id !== 0 && peer.agreed.id !== id) {
      const what = `${peer.name} has cluster id ${id}, ${peer.agreed.id} was agreed`;
      const fix = `if ${peer.name} was rebuilt, disconnect it and connect it anew`;
      return [login, refused('cluster-config', { code: 'conflict', what, why, fix })];
    }
    const found = passed('cluster-config', `id ${id}`);
    const present = (await etcd.range(syncedPrefix(peer.name), { timeoutMs })).kvs.map(({ key }) => key);
    const missing = publishedFamilies(config.value).filter(
      (family) => !present.some((key) => key.split('/').includes(family)),
    );
    if (config.value.capabilities.syncedCanaries === true && missing.length > 0) {
      return [
        ...[login, found],
        refused('canaries', {
          code: 'conflict',
          what: `${peer.name} has not finished writing: ${missing.join(', ')}`,
          why: 'an incomplete list is never taken for a whole one: nothing is removed until it is complete',
          fix: `look at the status of ${peer.name}: its apiserver waits for its own nodes or manifests`,
        }),
      ];
    }
    return [login, found, passed('canaries', `${present.length} lists are complete`)];
  } catch (error) {
    const { code, message } = MeshError.from(error, `reading the etcd of ${peer.name}`);
    const isDoor = code === 'etcd-auth' || code === 'etcd-permission' || code === 'tls' || code === 'etcd-unreachable';
    return [
      refused('etcd-auth', {
        code,
        what: message,
        why: `${peer.name} answers, but this cluster may read nothing there`,
        fix: isDoor
          ? `${peer.name} does not know this cluster's certificate (any more): was it disconnected over there? connect again: ${again(own, peer.name)}`
          : `look at the etcd of ${peer.name}`,
      }),
    ];
  } finally {
    await etcd.close();
  }
}

/** Longer than a heartbeat and its lateness: readers reconnect after 120 s of silence (wire-contract §12). */
const STALE_MS = 120_000;

function syncCheck({ own, peer, status }: PeerDiagnosisOptions): PreflightCheck {
  const why = 'what is decided here is decided on its last known state';
  const fix = `look at clustermesh status and at the log of ${own}'s apiserver`;
  if (status === undefined) return doubtful('sync', { what: `${peer.name} is not mirrored yet`, why, fix });
  const open = Object.entries(status.families).flatMap(([family, { synced }]) => (synced ? [] : [family]));
  const problem = status.error ?? (open.length > 0 ? `not complete: ${open.join(', ')}` : undefined);
  if (problem !== undefined || !status.ready)
    return refused('sync', { code: 'conflict', what: problem ?? `${peer.name} is not ready`, why, fix });
  const age = status.lastProofAgeMs;
  const shown = age === null ? 'never seen alive' : `last seen ${(age / 1000).toFixed(1)} s ago`;
  if (age === null || age > STALE_MS) return doubtful('sync', { what: shown, why, fix });
  const refusedObjects = Object.entries(status.families).filter(([, family]) => family.quarantined > 0);
  if (refusedObjects.length > 0) {
    const [name, family] = refusedObjects[0]!;
    return doubtful('sync', {
      what: `${family.quarantined} of ${name} are refused, the last: ${family.lastQuarantineReason ?? ''}`,
      why: `a stranger's objects are held against what was agreed at connect`,
      fix: `correct them in ${peer.name}`,
    });
  }
  return passed('sync', `all lists are here, ${shown}`);
}
