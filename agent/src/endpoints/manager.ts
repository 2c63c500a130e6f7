/**
 * The pods of this node. An endpoint goes
 *
 *   EndpointAdd ─► on disk ─► identity ─► rows and programs in the kernel ─► published
 *                     │   (disk, memory, or etcd)      (table + reconciler)      (writer)
 *                     └─ waiting: no identity yet because etcd is away, or the kernel refused; tried again for ever
 *
 * and comes back from disk after a restart. Disk is the truth here: neither etcd nor the kernel can add or remove an endpoint.
 */
import {
  type EndpointAddRequest,
  type EndpointInfo,
  type EndpointRecord,
  MeshError,
  messageOf,
} from '@clustermesh/contract';
import type { Clock, Log } from '@clustermesh/runtime';
import type { EndpointRow } from '../datapath/types.ts';
import type { OwnEndpoint } from '../desired.ts';
import type { IdentityAllocator } from '../identity/allocator.ts';
import { startIdentityKeeper } from '../identity/keeper.ts';
import type { EndpointPolicyInfo } from '../policy/engine.ts';
import type { Table } from '../reconcile/table.ts';
import type { EndpointPublisher } from './publisher.ts';
import { checkEndpointRequest, type EndpointFacts, type OwnAddresses } from './request.ts';
import type { EndpointStore, StoredEndpoint } from './store.ts';

/** How the kernel side of an endpoint stands. */
export type Programmed = 'done' | 'pending' | MeshError;

export interface EndpointManagerOptions {
  readonly own: OwnAddresses;
  readonly store: EndpointStore;
  readonly allocator: IdentityAllocator;
  readonly publisher: EndpointPublisher;
  /** Desired rows of the endpoints table, by address. */
  readonly rows: Pick<Table<EndpointRow>, 'set' | 'delete' | 'touch'>;
  readonly ipcache: (id: string, endpoint: OwnEndpoint | undefined) => void;
  readonly policyOf: (endpointId: number) => EndpointPolicyInfo;
  /** What the kernel held when the agent started. */
  readonly kernelEndpoints: readonly EndpointRow[];
  /** An endpoint of the kernel that the disk does not know. */
  readonly unknown: (ip: string, endpoint: Pick<EndpointRow, 'identity' | 'endpointId'> | undefined) => void;
  readonly requestPass: () => void;
  /** Of the rows of one address of an endpoint as they are desired now. */
  readonly programmed: (ip: string) => Programmed;
  /** No row of this address is left to be removed. */
  readonly isRemoved: (ip: string) => boolean;
  /** Network interfaces of the agent's namespace; undefined when that cannot be told. */
  readonly interfaces: () => ReadonlySet<string> | undefined;
  readonly addTimeoutMs: number;
  readonly clock: Clock;
  readonly log: Log;
  readonly signal: AbortSignal;
}

export interface EndpointManager {
  add(request: EndpointAddRequest): Promise<EndpointInfo>;
  remove(id: string): Promise<void>;
  list(): EndpointInfo[];
  /** To be called after each pass over the kernel's tables. */
  onPass(): void;
  /** etcd is there again, perhaps another one: make sure that it has our identities. */
  onEtcdConnected(): void;
  /** Drops endpoints whose interface has been gone for two sweeps: their pod ended and nobody said so. */
  sweep(): void;
  problems(): string[];
}

const MAX_ENDPOINT_ID = 0xffff;

const addressesOf = ({ ipv4, ipv6 }: { readonly ipv4: string; readonly ipv6?: string | undefined }): string[] =>
  ipv6 === undefined ? [ipv4] : [ipv4, ipv6];

export function startEndpointManager(options: EndpointManagerOptions): EndpointManager {
  const { store, publisher, rows, clock, log } = options;
  const endpoints = new Map<string, StoredEndpoint>();
  const published = new Set<string>();
  const missingInterface = new Set<string>();
  /** Addresses of endpoints that only the kernel knows. */
  const unknown = new Set<string>();
  let isRestored = false;
  /** Calls that wait for something to happen to their endpoint. */
  let waiters: (() => void)[] = [];

  const save = () => store.save(endpoints.values());

  function announce(): void {
    const woken = waiters;
    waiters = [];
    for (const wake of woken) wake();
  }

  // Whoever waits does so on a signal of its own: AbortSignal.any would keep each of them reachable from this long-lived one.
  options.signal.addEventListener('abort', announce, { once: true });

  /** Until something happened, the agent stops, or `maxMs` passed. */
  async function news(maxMs: number): Promise<void> {
    const woken = new AbortController();
    const wake = () => woken.abort();
    waiters.push(wake);
    await clock.sleep(maxMs, woken.signal);
    waiters = waiters.filter((waiter) => waiter !== wake);
  }

  function put(endpoint: StoredEndpoint): void {
    endpoints.set(endpoint.id, endpoint);
    if (endpoint.identity === null) return;
    const { podMac, hostMac, identity, endpointId } = endpoint;
    const ips = addressesOf(endpoint);
    for (const ip of ips) {
      if (unknown.delete(ip)) {
        options.unknown(ip, undefined);
        completeIfKnown();
      }
      rows.set(ip, { ip, interface: endpoint.interface, podMac, hostMac, identity, endpointId });
    }
    const { labels, namedPorts } = endpoint;
    options.ipcache(endpoint.id, { ips, identity, endpointId, labels, namedPorts });
    options.requestPass();
  }

  /** While there are endpoints whose labels are lost, what was published of them before must stay. */
  function completeIfKnown(): void {
    if (isRestored && unknown.size === 0) publisher.complete();
  }

  function drop(endpoint: StoredEndpoint): void {
    endpoints.delete(endpoint.id);
    published.delete(endpoint.id);
    missingInterface.delete(endpoint.id);
    for (const ip of addressesOf(endpoint)) rows.delete(ip);
    options.ipcache(endpoint.id, undefined);
    publisher.delete(endpoint.id);
    options.requestPass();
  }

  function freeEndpointId(): number {
    const used = new Set([...endpoints.values()].map((endpoint) => endpoint.endpointId));
    for (let id = 1; id <= MAX_ENDPOINT_ID; id++) if (!used.has(id)) return id;
    throw new MeshError({
      code: 'exhausted',
      message: `adding an endpoint: all ${MAX_ENDPOINT_ID} endpoint numbers of this node are in use`,
    });
  }

  /** Of all its addresses: the first that is not done says how far it is. */
  function programmedOf(endpoint: StoredEndpoint): Programmed {
    const all = addressesOf(endpoint).map(options.programmed);
    return all.find((one) => one instanceof MeshError) ?? all.find((one) => one !== 'done') ?? 'done';
  }

  function reasonFor(endpoint: StoredEndpoint): string {
    if (endpoint.identity === null) return `no identity yet: ${identities.waitingFor()}`;
    const programmed = programmedOf(endpoint);
    if (programmed === 'done') return options.policyOf(endpoint.endpointId).locked ?? '';
    return programmed === 'pending' ? 'being programmed' : messageOf(programmed);
  }

  function infoOf(endpoint: StoredEndpoint): EndpointInfo {
    const { id, namespace, pod, labels, ipv4, ipv6 = '' } = endpoint;
    const reason = reasonFor(endpoint);
    const policy = options.policyOf(endpoint.endpointId);
    const enforced = [...(policy.ingress ? ['ingress'] : []), ...(policy.egress ? ['egress'] : [])];
    return {
      id,
      namespace,
      pod,
      labels,
      identity: endpoint.identity ?? 0,
      interface: endpoint.interface,
      ipv4,
      ipv6,
      state: reason === '' ? 'ready' : 'waiting',
      reason,
      policy: enforced.join(', ') || 'none',
      policyRevision: policy.revision,
      policies: policy.policies,
      endpointId: endpoint.endpointId,
    };
  }

  const recordOf = (endpoint: StoredEndpoint & { identity: number }): EndpointRecord => {
    const { id, namespace, pod, labels, identity, ipv4, ipv6, serviceAccount, namedPorts } = endpoint;
    const own = { ...(ipv6 === undefined ? {} : { ipv6 }), ...(namedPorts === undefined ? {} : { namedPorts }) };
    return { id, namespace, pod, labels, identity, ipv4, serviceAccount, ...own };
  };

  function publish(endpoint: StoredEndpoint): void {
    if (endpoint.identity === null) return;
    published.add(endpoint.id);
    publisher.set(recordOf({ ...endpoint, identity: endpoint.identity }));
  }

  function setIdentity(labels: string, identity: number): void {
    let changed = false;
    for (const endpoint of [...endpoints.values()]) {
      if (endpoint.labels !== labels || endpoint.identity === identity) continue;
      const next = { ...endpoint, identity };
      put(next);
      if (published.has(next.id)) publish(next);
      changed = true;
    }
    if (!changed) return;
    save();
    announce();
  }

  const identities = startIdentityKeeper({
    allocator: options.allocator,
    *inUse() {
      for (const endpoint of endpoints.values()) yield endpoint.labels;
    },
    onIdentity: setIdentity,
    onWaiting: announce,
    clock,
    log,
    signal: options.signal,
  });

  // ---- life

  function evictRivals(facts: Pick<EndpointFacts, 'id' | 'ipv4' | 'ipv6' | 'interface'>): void {
    const wanted = addressesOf(facts);
    for (const other of [...endpoints.values()]) {
      const isRival = other.interface === facts.interface || addressesOf(other).some((ip) => wanted.includes(ip));
      if (other.id === facts.id || !isRival) continue;
      // An address and an interface have one owner; whoever was told of last is alive, the other's removal got lost.
      log.warn(
        { id: other.id, by: facts.id, ipv4: other.ipv4, interface: other.interface },
        'endpoint replaced by a newer one',
      );
      drop(other);
    }
  }

  async function awaitReady(id: string): Promise<EndpointInfo> {
    const deadline = clock.nowMs() + options.addTimeoutMs;
    for (;;) {
      const endpoint = endpoints.get(id);
      if (endpoint === undefined)
        throw new MeshError({ code: 'cancelled', message: `adding endpoint ${id}: it was deleted meanwhile` });
      const info = infoOf(endpoint);
      if (info.state === 'ready') return info;
      const programmed = endpoint.identity === null ? 'pending' : programmedOf(endpoint);
      if (programmed instanceof MeshError) {
        throw new MeshError({
          code: programmed.code,
          message: `adding endpoint ${id}: ${programmed.message}`,
          hint: 'the endpoint is kept and tried again; EndpointDelete gives it up',
          cause: programmed,
        });
      }
      const left = deadline - clock.nowMs();
      if (left <= 0 || options.signal.aborted) return info;
      await news(left);
    }
  }

  function sweep(): void {
    const present = options.interfaces();
    if (present === undefined) return;
    let dropped = false;
    for (const endpoint of [...endpoints.values()]) {
      if (present.has(endpoint.interface)) missingInterface.delete(endpoint.id);
      else if (!missingInterface.has(endpoint.id)) missingInterface.add(endpoint.id);
      else {
        log.warn({ id: endpoint.id, interface: endpoint.interface }, 'endpoint removed: its interface is gone');
        drop(endpoint);
        dropped = true;
      }
    }
    if (dropped) save();
  }

  /** Without its file this node has lost the labels of its pods, but their traffic shall not notice: the kernel's rows stay. */
  function keepUnknown(): void {
    const present = options.interfaces();
    for (const row of options.kernelEndpoints) {
      if (present?.has(row.interface) === false) continue;
      rows.set(row.ip, row);
      unknown.add(row.ip);
      options.unknown(row.ip, row);
    }
  }

  function restore(): void {
    const { endpoints: stored, complete } = store.load();
    const present = options.interfaces();
    if (!complete) keepUnknown();
    for (const endpoint of stored) {
      if (endpoint.identity !== null) identities.restore(endpoint.labels, endpoint.identity);
      if (present !== undefined && !present.has(endpoint.interface)) {
        log.warn(
          { id: endpoint.id, interface: endpoint.interface },
          'endpoint not restored: its pod ended while the agent was away',
        );
        continue;
      }
      put(endpoint);
      publish(endpoint);
    }
    if (complete && endpoints.size < stored.length) save();
    isRestored = true;
    completeIfKnown();
    log.info({ endpoints: endpoints.size, complete }, 'endpoints restored from disk');
  }

  restore();

  return {
    async add(request) {
      const { ignoredLabels, ...facts } = checkEndpointRequest(request, options.own);
      if (ignoredLabels.length > 0)
        log.warn(
          { id: facts.id, labels: ignoredLabels },
          'reserved labels of a pod are ignored: they are not its to set',
        );
      const before = endpoints.get(facts.id);
      evictRivals(facts);
      if (before !== undefined && (before.ipv4 !== facts.ipv4 || before.ipv6 !== facts.ipv6)) drop(before);
      put({
        ...facts,
        endpointId: before?.endpointId ?? freeEndpointId(),
        identity: identities.known(facts.labels) ?? null,
      });
      // What was published of it may say something else: onPass does it again once the kernel has the new facts.
      published.delete(facts.id);
      // Perhaps only the programs on its veth are missing: the caller wants them now, not at the next check.
      for (const ip of addressesOf(facts)) rows.touch(ip);
      save();
      identities.want(facts.labels);
      log.info({ id: facts.id, pod: `${facts.namespace}/${facts.pod}`, ips: addressesOf(facts) }, 'endpoint added');
      return awaitReady(facts.id);
    },

    async remove(id) {
      const endpoint = endpoints.get(id);
      if (endpoint === undefined) return;
      drop(endpoint);
      save();
      const ips = addressesOf(endpoint);
      log.info({ id, ips }, 'endpoint removed');
      // The caller takes the interface away next: by then the kernel should have let go of it.
      const deadline = clock.nowMs() + options.addTimeoutMs;
      while (!ips.every(options.isRemoved) && clock.nowMs() < deadline && !options.signal.aborted)
        await news(deadline - clock.nowMs());
    },

    list: () => [...endpoints.values()].map(infoOf),

    onPass() {
      for (const endpoint of endpoints.values()) {
        // Peers learn of an endpoint when it can be reached, not before.
        if (!published.has(endpoint.id) && reasonFor(endpoint) === '') publish(endpoint);
      }
      announce();
    },

    onEtcdConnected: identities.onEtcdConnected,

    sweep,

    problems() {
      const waiting = [...endpoints.values()].map(infoOf).filter((info) => info.state === 'waiting');
      return [
        ...(unknown.size === 0
          ? []
          : [
              `${unknown.size} endpoints are known only to the kernel (endpoints file lost): kept until they are added again`,
            ]),
        ...waiting.map((info) => `endpoint ${info.id} is waiting: ${info.reason}`),
        ...identities.notices(),
        ...publisher.problems(),
      ];
    },
  };
}
