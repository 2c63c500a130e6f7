/**
 * What this cluster's agents publish under `clustermesh/nodes/`, and what to believe of it. Pure state, time is passed in.
 *
 * A node's `synced` key says that its list is complete. When it goes missing (the local etcd was wiped), the node's last
 * complete rows stay in force until it is back or the grace period is over, so that a wipe withdraws nothing from peers. A
 * node that was known before a restart is waited for likewise: until then the whole is not `complete`, and no canary says so.
 */
import {
  canonicalIp,
  decodeEndpointRecord,
  decodeNodeRecord,
  type EndpointRecord,
  isDnsSubdomain,
  isIpv4,
  type NodeRecord,
  parseNodesKey,
} from '@clustermesh/contract';

export interface LocatedEndpoint {
  readonly node: string;
  readonly record: EndpointRecord;
  /** Revision of its last change: the lower of two claimants of one address was there first. */
  readonly revision: number;
}

export interface NodesSnapshot {
  readonly nodes: ReadonlyMap<string, NodeRecord>;
  readonly endpoints: readonly LocatedEndpoint[];
  /** Every known node has published its complete list, or its grace period is over. */
  readonly complete: boolean;
  /** Known nodes that are being waited for. */
  readonly waitingFor: readonly string[];
  readonly problems: readonly string[];
}

/** What is in force otherwise than in the delta before, and how far the whole has come. */
export interface NodesDelta extends Pick<NodesSnapshot, 'complete' | 'problems'> {
  /** Node → its record now; undefined: gone. */
  readonly nodes: ReadonlyMap<string, NodeRecord | undefined>;
  readonly endpoints: readonly EndpointChange[];
}

export interface EndpointChange {
  readonly node: string;
  readonly id: string;
  /** Undefined: gone. */
  readonly endpoint: LocatedEndpoint | undefined;
}

interface Rows {
  node: NodeRecord | undefined;
  readonly endpoints: Map<string, LocatedEndpoint>;
}

interface NodeState {
  current: Rows;
  isSynced: boolean;
  /** The rows when `synced` went missing. */
  held: Rows | undefined;
  /** Since when a known node is not synced; undefined while it is. */
  missingSinceMs: number | undefined;
}

/** What is in force otherwise since it was taken last. */
class Touched {
  nodes = new Set<string>();
  /** Node → ids. */
  endpoints = new Map<string, Set<string>>();

  endpoint(node: string, id: string): void {
    const ids = this.endpoints.get(node);
    if (ids === undefined) this.endpoints.set(node, new Set([id]));
    else ids.add(id);
  }

  rows(node: string, rows: Rows): void {
    this.nodes.add(node);
    for (const id of rows.endpoints.keys()) this.endpoint(node, id);
  }

  take() {
    const { nodes, endpoints } = this;
    this.nodes = new Set();
    this.endpoints = new Map();
    return { nodes, endpoints };
  }
}

const emptyRows = (): Rows => ({ node: undefined, endpoints: new Map() });

export class NodeTable {
  readonly #graceMs: number;
  readonly #states = new Map<string, NodeState>();
  readonly #known: Set<string>;
  readonly #bad = new Map<string, string>();
  /** Of the one that follows, if one does. */
  #touched: Touched | undefined;
  #listed = false;

  constructor(options: { readonly graceMs: number; readonly known: Iterable<string> }) {
    this.#graceMs = options.graceMs;
    this.#known = new Set(options.known);
  }

  /** Nodes whose complete list has been seen and that are not gone: to be persisted. */
  get known(): readonly string[] {
    return [...this.#known].sort();
  }

  /** Applies one batch of the reflector: all of one revision range at once, so that a wipe is one step. */
  apply(
    batch: {
      readonly upserts: readonly { readonly key: string; readonly value: Buffer; readonly modRevision: number }[];
      readonly removes: readonly string[];
    },
    nowMs: number,
  ): void {
    // Losing `synced` freezes the rows as they were before the batch, so removals of `synced` are applied first.
    for (const key of batch.removes) if (parseNodesKey(key)?.kind === 'synced') this.#lostSynced(key, nowMs);
    for (const key of batch.removes) this.#remove(key);
    for (const { key, value, modRevision } of batch.upserts) this.#upsert(key, value.toString('utf8'), modRevision);
    for (const { key } of batch.upserts) {
      const parsed = parseNodesKey(key);
      if (parsed?.kind === 'synced') this.#gotSynced(parsed.node);
    }
  }

  /** A complete list has been applied: from here on, absence means absence. */
  listed(nowMs: number): void {
    this.#listed = true;
    for (const name of this.#known) {
      const state = this.#state(name);
      if (!state.isSynced) state.missingSinceMs ??= nowMs;
    }
  }

  /** When the answer of `snapshot` may change by time alone; undefined if it cannot. */
  nextDeadlineMs(): number | undefined {
    const deadlines = [...this.#known].flatMap((name) => {
      const since = this.#states.get(name)?.missingSinceMs;
      return since === undefined ? [] : [since + this.#graceMs];
    });
    return deadlines.length === 0 ? undefined : Math.min(...deadlines);
  }

  /** Known nodes that have no complete list now. */
  waitingFor(): readonly string[] {
    return this.known.filter((name) => this.#states.get(name)?.isSynced !== true);
  }

  /**
   * The first delta is all that is in force, each later one what has changed since, at a cost of that. One follower at a time: who
   * follows next takes over.
   */
  follow(): { take(nowMs: number): NodesDelta; end(): void } {
    const touched = new Touched();
    this.#touched = touched;
    for (const [name, state] of this.#states) touched.rows(name, state.held ?? state.current);
    const take = (nowMs: number): NodesDelta => {
      this.expire(nowMs);
      const taken = touched.take();
      const nodes = new Map([...taken.nodes].map((name) => [name, this.#inForce(name)?.node]));
      const endpoints: EndpointChange[] = [];
      for (const [node, ids] of taken.endpoints) {
        const rows = this.#inForce(node)?.endpoints;
        for (const id of ids) endpoints.push({ node, id, endpoint: rows?.get(id) });
      }
      return { nodes, endpoints, complete: this.#isComplete(this.waitingFor()), problems: [...this.#bad.values()] };
    };
    const end = () => {
      if (this.#touched === touched) this.#touched = undefined;
    };
    return { take, end };
  }

  /** All of it, sorted. */
  snapshot(nowMs: number): NodesSnapshot {
    this.expire(nowMs);
    const nodes = new Map<string, NodeRecord>();
    const endpoints: LocatedEndpoint[] = [];
    for (const [name, state] of [...this.#states].sort(([a], [b]) => (a < b ? -1 : 1))) {
      const rows = state.held ?? state.current;
      if (rows.node !== undefined) nodes.set(name, rows.node);
      for (const endpoint of [...rows.endpoints.values()].sort((a, b) => (a.record.id < b.record.id ? -1 : 1)))
        endpoints.push(endpoint);
    }
    const waitingFor = this.waitingFor();
    const complete = this.#isComplete(waitingFor);
    return { nodes, endpoints, complete, waitingFor, problems: [...this.#bad.values()] };
  }

  /** Held rows are a complete statement too; only nodes that are known by name alone keep the whole incomplete. */
  #isComplete(waitingFor: readonly string[]): boolean {
    return this.#listed && waitingFor.every((name) => this.#states.get(name)?.held !== undefined);
  }

  #inForce(name: string): Rows | undefined {
    const state = this.#states.get(name);
    return state?.held ?? state?.current;
  }

  /** From here on what the node publishes is in force again, not what was held of it. */
  #letGo(name: string, state: NodeState): void {
    if (state.held === undefined) return;
    this.#touched?.rows(name, state.held);
    this.#touched?.rows(name, state.current);
    state.held = undefined;
  }

  /** Gives up on nodes whose grace period is over. */
  expire(nowMs: number): void {
    for (const name of [...this.#known]) {
      const state = this.#states.get(name);
      if (state?.missingSinceMs === undefined || nowMs - state.missingSinceMs < this.#graceMs) continue;
      this.#known.delete(name);
      this.#letGo(name, state);
      state.missingSinceMs = undefined;
      if (state.current.node === undefined && state.current.endpoints.size === 0) this.#states.delete(name);
    }
  }

  #state(name: string): NodeState {
    let state = this.#states.get(name);
    if (state === undefined) {
      state = { current: emptyRows(), isSynced: false, held: undefined, missingSinceMs: undefined };
      this.#states.set(name, state);
    }
    return state;
  }

  #gotSynced(name: string): void {
    const state = this.#state(name);
    state.isSynced = true;
    this.#letGo(name, state);
    state.missingSinceMs = undefined;
    this.#known.add(name);
  }

  #lostSynced(key: string, nowMs: number): void {
    const name = parseNodesKey(key)?.node;
    const state = name === undefined ? undefined : this.#states.get(name);
    if (state === undefined || !state.isSynced) return;
    state.isSynced = false;
    state.held = { node: state.current.node, endpoints: new Map(state.current.endpoints) };
    state.missingSinceMs = nowMs;
  }

  #remove(key: string): void {
    this.#bad.delete(key);
    const parsed = parseNodesKey(key);
    const rows = parsed === undefined ? undefined : this.#states.get(parsed.node)?.current;
    if (parsed === undefined || rows === undefined) return;
    if (parsed.kind === 'node') {
      rows.node = undefined;
      this.#touched?.nodes.add(parsed.node);
    }
    if (parsed.kind === 'endpoint' && rows.endpoints.delete(parsed.endpoint))
      this.#touched?.endpoint(parsed.node, parsed.endpoint);
  }

  #upsert(key: string, text: string, revision: number): void {
    const parsed = parseNodesKey(key);
    if (parsed === undefined || parsed.kind === 'synced') return;
    const rows = this.#state(parsed.node).current;
    const problem =
      parsed.kind === 'endpoint'
        ? this.#putEndpoint(rows, parsed, text, revision)
        : this.#putNode(rows, parsed.node, text);
    if (problem === undefined) this.#bad.delete(key);
    else this.#bad.set(key, `${key}: ${problem}`);
  }

  #putNode(rows: Rows, name: string, text: string): string | undefined {
    const decoded = decodeNodeRecord(text);
    if (!decoded.ok) return decoded.reason;
    if (decoded.value.name !== name || !isDnsSubdomain(name))
      return `the record says node ${JSON.stringify(decoded.value.name)}`;
    if (!isIpv4(decoded.value.internalIp))
      return `internalIp ${JSON.stringify(decoded.value.internalIp)} is no IPv4 address`;
    rows.node = decoded.value;
    this.#touched?.nodes.add(name);
    return undefined;
  }

  #putEndpoint(
    rows: Rows,
    at: { readonly node: string; readonly endpoint: string },
    text: string,
    revision: number,
  ): string | undefined {
    const decoded = decodeEndpointRecord(text);
    if (!decoded.ok) return decoded.reason;
    if (decoded.value.id !== at.endpoint) return `the record says endpoint ${JSON.stringify(decoded.value.id)}`;
    const { ipv4, ipv6 } = decoded.value;
    if (!isIpv4(ipv4)) return `ipv4 ${JSON.stringify(ipv4)} is no IPv4 address`;
    // In its one form: it becomes a key, and equal addresses must be equal keys.
    if (ipv6 !== undefined && (isIpv4(ipv6) || canonicalIp(ipv6) !== ipv6))
      return `ipv6 ${JSON.stringify(ipv6)} is no IPv6 address in its short form`;
    rows.endpoints.set(at.endpoint, { node: at.node, record: decoded.value, revision });
    this.#touched?.endpoint(at.node, at.endpoint);
    return undefined;
  }
}
