/**
 * The steps of connect and disconnect. Each may be run again at any point after being killed at any point, and finds out by
 * looking what is left to do.
 */
import { hasApplied, MeshError } from '@clustermesh/contract';
import { isIssuedBy, issuePeerCertificate, remoteUser, revokePeerCertificates } from '@clustermesh/pki';
import { type Clock, systemClock } from '@clustermesh/runtime';
import { TRAFFIC_FAMILIES } from '../mirror/families.ts';
import type { AgentView, MirrorView, PeerDirectory, UserDirectory } from '../ports.ts';
import { checkPeer, type OwnCluster } from '../preflight/agreement.ts';
import { knownPeers } from '../preflight/known-peers.ts';
import { probeEndpoints } from '../preflight/probe.ts';
import { ROTATE_STEPS, type RotationPorts } from '../rotation/index.ts';
import type { ConnectJobData, JobData, StepName, StepResult } from './model.ts';
import type { PendingStore } from './pending.ts';
import type { StepRun } from './queue.ts';

export interface StepTimers {
  /** How long install-credentials waits for the certificate from the peer's CA. Default 5 min. */
  readonly certificateWaitMs: number;
  /** How long await-sync waits for the peer's data. Default 2 min. */
  readonly syncWaitMs: number;
  /** How long await-drained waits; a foreign reader may hold it for 3 min (wire-contract §4.4). Default 5 min. */
  readonly drainWaitMs: number;
  /** How long a drain waits for a peer that does not answer. Default 5 s. */
  readonly awayMs: number;
  /** How often a waiting step looks again. Default 100 ms. */
  readonly pollMs: number;
  readonly probeTimeoutMs: number;
}

export const DEFAULT_TIMERS: StepTimers = {
  certificateWaitMs: 300_000,
  syncWaitMs: 120_000,
  drainWaitMs: 300_000,
  awayMs: 5_000,
  pollMs: 100,
  probeTimeoutMs: 4000,
};

export interface StepPorts {
  readonly own: OwnCluster;
  readonly pkiDir: string;
  readonly peers: PeerDirectory;
  readonly users: UserDirectory;
  readonly mirror: MirrorView;
  readonly agents: AgentView;
  readonly pending: PendingStore;
  readonly timers: StepTimers;
  readonly rotation: RotationPorts;
  readonly clock?: Clock | undefined;
}

type Step<D extends JobData> = (ports: StepPorts, run: StepRun & { readonly data: D }) => Promise<StepResult>;

/** What an operator reads when a running operation is overtaken or its process stops. */
const stopped = () => new MeshError({ code: 'cancelled', message: 'the step was interrupted', retryable: false });

export async function runStep(ports: StepPorts, run: StepRun): Promise<StepResult> {
  if (run.data.kind === 'connect')
    return CONNECT_STEPS[run.step as keyof typeof CONNECT_STEPS](ports, { ...run, data: run.data });
  if (run.data.kind === 'rotate')
    return ROTATE_STEPS[run.step as keyof typeof ROTATE_STEPS](ports.rotation, { ...run, data: run.data });
  if (run.data.kind === 'drain') return DRAIN_STEPS[run.step as keyof typeof DRAIN_STEPS](ports, run);
  return DISCONNECT_STEPS[run.step as keyof typeof DISCONNECT_STEPS](ports, run);
}

const CONNECT_STEPS = {
  'authorize-peer': authorizePeer,
  'install-credentials': installCredentials,
  'await-sync': awaitSync,
} satisfies Partial<Record<StepName, Step<ConnectJobData>>>;

const DISCONNECT_STEPS = {
  'remove-config': removeConfig,
  'revoke-peer': revokePeer,
  'await-drained': awaitDrained,
} satisfies Partial<Record<StepName, Step<JobData>>>;

const DRAIN_STEPS = {
  'withdraw-services': withdrawServices,
  'await-moved': awaitMoved,
} satisfies Partial<Record<StepName, Step<JobData>>>;

/** Lets the peer in: checks who it is, that it can be reached, signs its request, makes its etcd user. */
async function authorizePeer(
  ports: StepPorts,
  { data, report, signal }: StepRun & { readonly data: ConnectJobData },
): Promise<StepResult> {
  const peer = data.info;
  checkPeer(ports.own, peer, await knownPeers(ports.peers, ports.mirror));
  report(`checking that the etcd of ${peer.name} can be reached`);
  await probeEndpoints({
    peer: peer.name,
    endpoints: peer.endpoints,
    hostAliases: peer.hostAliases,
    caPem: peer.caPem,
    timeoutMs: ports.timers.probeTimeoutMs,
    signal,
  });
  if (data.direction === 'read') return { message: `${peer.name} is not let in: this cluster reads, and is not read` };
  const user = remoteUser(peer.name);
  report(`signing the certificate of ${user} and making its read-only user`);
  const certificatePem = await issuePeerCertificate({ pkiDir: ports.pkiDir, peer: peer.name, csrPem: data.csrPem });
  await ports.users.addPeer(peer.name);
  return { message: `${peer.name} may read this cluster as ${user}`, certificatePem };
}

/** Gets this cluster in at the peer: waits for the certificate, tries it, writes the config directory. */
async function installCredentials(
  ports: StepPorts,
  { data, report, signal }: StepRun & { readonly data: ConnectJobData },
): Promise<StepResult> {
  const peer = data.info;
  if (data.direction === 'serve') {
    ports.pending.clear(peer.name);
    return { message: `${peer.name} is not read by this cluster` };
  }
  const credentials = await until(ports, signal, ports.timers.certificateWaitMs, () => {
    const found = ports.pending.credentials(peer.name);
    if (found === undefined) report(`waiting for the certificate that ${peer.name} signs for this cluster`);
    else if (isIssuedBy(found.certPem, peer.caPem)) return found;
    else report(`waiting for the certificate from ${peer.name}: the one at hand is signed by another CA`);
    return undefined;
  });
  if (credentials === undefined) {
    throw new MeshError({
      code: 'timeout',
      message: `connecting ${peer.name}: no certificate from ${peer.name} came within ${ports.timers.certificateWaitMs / 1000} s`,
      hint: 'run clustermesh connect again: it carries the certificates between the clusters',
      retryable: false,
    });
  }
  report(`logging in at the etcd of ${peer.name}`);
  const endpoint = await probeEndpoints({
    peer: peer.name,
    endpoints: peer.endpoints,
    hostAliases: peer.hostAliases,
    caPem: peer.caPem,
    client: credentials,
    timeoutMs: ports.timers.probeTimeoutMs,
    signal,
  });
  await ports.peers.write({
    name: peer.name,
    endpoints: peer.endpoints,
    hostAliases: peer.hostAliases,
    caPem: peer.caPem,
    certPem: credentials.certPem,
    keyPem: credentials.keyPem,
    // A job of an older release says nothing of IPv6.
    agreed: { id: peer.id, podCidr: peer.podCidr, podCidrV6: peer.podCidrV6 ?? '' },
    adminEndpoints: peer.adminEndpoints,
  });
  ports.mirror.refresh();
  return { message: `${peer.name} is configured at ${endpoint}` };
}

async function awaitSync(
  ports: StepPorts,
  { data, report, signal }: StepRun & { readonly data: ConnectJobData },
): Promise<StepResult> {
  const peer = data.info.name;
  if (data.direction === 'serve') return { message: `nothing to wait for: ${peer} is not read by this cluster` };
  let last = '';
  ports.mirror.refresh();
  const status = await until(ports, signal, ports.timers.syncWaitMs, () => {
    const seen = ports.mirror.peers().find((candidate) => candidate.cluster === peer);
    if (seen?.ready && seen.connected) return seen;
    const missing = Object.entries(seen?.families ?? {}).flatMap(([family, state]) => (state.synced ? [] : [family]));
    const now =
      seen === undefined
        ? 'not taken up yet'
        : seen.error
          ? seen.error
          : !seen.connected
            ? 'not connected yet'
            : `not synced yet: ${missing.join(', ')}`;
    if (now !== last) report(`waiting for the data of ${peer}: ${now}`);
    last = now;
    return undefined;
  });
  if (status === undefined) {
    throw new MeshError({
      code: 'timeout',
      message: `waiting for the data of ${peer}: after ${ports.timers.syncWaitMs / 1000} s ${last}`,
      hint: `${peer} stays configured and is tried again for ever; look with: clustermesh status`,
      retryable: false,
    });
  }
  // Only now: until the peer is known to work the same key serves every repetition.
  ports.pending.clear(peer);
  const counts = Object.entries(status.families).map(([family, state]) => `${state.count} ${family}`);
  return { message: `the data of ${peer} is here: ${counts.join(', ')}` };
}

/** The mark is in the peer's file, so that it outlives this process; the mirror acts on it (mirror/families.ts). */
async function withdrawServices(ports: StepPorts, { data }: StepRun): Promise<StepResult> {
  if (!(await ports.peers.drain(data.peer)))
    return { message: `${data.peer} is not read by this cluster: nothing to withdraw` };
  ports.mirror.refresh();
  return { message: `the services of ${data.peer} are not used here any more; open connections go on` };
}

async function awaitMoved(ports: StepPorts, { data, report, signal }: StepRun): Promise<StepResult> {
  if (!(await ports.peers.list()).some((peer) => peer.name === data.peer)) return { message: 'nothing to wait for' };
  let waiting = '';
  let awaySince: number | undefined;
  const clock = ports.clock ?? systemClock;
  const moved = await until(ports, signal, ports.timers.drainWaitMs, () => {
    const seen = ports.mirror.peers().find((candidate) => candidate.cluster === data.peer);
    // It connects anew for the changed file; one that stays away has nothing that could be moved in order.
    awaySince = seen?.connected === true ? undefined : (awaySince ?? clock.nowMs());
    if (awaySince !== undefined && clock.nowMs() - awaySince > ports.timers.awayMs) return 'away';
    const left = TRAFFIC_FAMILIES.filter(
      (family) => !(seen?.families[family]?.synced && seen.families[family].count === 0),
    );
    const behind = ports.agents
      .agents()
      .filter((agent) => !hasApplied(agent, data.peer, 'services', seen?.families['services']?.revision ?? 0));
    waiting = left.length > 0 ? left.join(', ') : behind.map((agent) => agent.node).join(', ');
    report(`waiting for ${waiting}`);
    return left.length === 0 && behind.length === 0 ? 'moved' : undefined;
  });
  if (moved === undefined) {
    throw new MeshError({
      code: 'timeout',
      message: `draining ${data.peer}: after ${ports.timers.drainWaitMs / 1000} s still waiting for ${waiting}`,
      hint: 'look at clustermesh status; a disconnect without --drain does not wait',
      retryable: false,
    });
  }
  if (moved === 'away') return { message: `${data.peer} does not answer: what it has here goes with the disconnect` };
  return { message: `no node of this cluster sends to services of ${data.peer} any more` };
}

/** What the first two steps of a connect do, undone. Idempotent. */
export async function takeBackConnect(ports: StepPorts, peer: string): Promise<void> {
  await ports.peers.remove(peer);
  ports.pending.clear(peer);
  await ports.users.removePeer(peer);
  ports.mirror.refresh();
}

async function removeConfig(ports: StepPorts, { data }: StepRun): Promise<StepResult> {
  await ports.peers.remove(data.peer);
  ports.pending.clear(data.peer);
  ports.mirror.refresh();
  return { message: `${data.peer} is no longer configured` };
}

async function revokePeer(ports: StepPorts, { data }: StepRun): Promise<StepResult> {
  await ports.users.removePeer(data.peer);
  // Also when the peer is invited again under the same name, what it holds now stays dead.
  await revokePeerCertificates({ pkiDir: ports.pkiDir, peer: data.peer });
  return { message: `${remoteUser(data.peer)} may no longer read this cluster` };
}

async function awaitDrained(ports: StepPorts, { data, report, signal }: StepRun): Promise<StepResult> {
  ports.mirror.refresh();
  report(`waiting until the data of ${data.peer} is drained from this cluster`);
  const gone = await until(ports, signal, ports.timers.drainWaitMs, () => {
    const left = ports.mirror.peers().find((peer) => peer.cluster === data.peer);
    if (left === undefined) return true;
    // What the drain itself waits for, which may take minutes.
    if (left.error !== undefined) report(`waiting for the end of ${data.peer}: ${left.error}`);
    return undefined;
  });
  if (gone === undefined) {
    throw new MeshError({
      code: 'timeout',
      message: `disconnecting ${data.peer}: its data is not drained after ${ports.timers.drainWaitMs / 1000} s`,
      hint: 'draining goes on; look with: clustermesh status',
      retryable: false,
    });
  }
  return { message: `the data of ${data.peer} is gone from this cluster` };
}

/** Looks again and again until there is something; undefined when the time is over. */
async function until<T>(
  ports: StepPorts,
  signal: AbortSignal,
  limitMs: number,
  look: () => T | undefined,
): Promise<T | undefined> {
  const clock = ports.clock ?? systemClock;
  const end = clock.nowMs() + limitMs;
  for (;;) {
    if (signal.aborted) throw stopped();
    const found = look();
    if (found !== undefined) return found;
    if (clock.nowMs() >= end) return undefined;
    await clock.sleep(ports.timers.pollMs, signal);
  }
}
