/**
 * What the agents of this cluster publish under `clustermesh/nodes/`. Pure: batches in, changed nodes and endpoints out.
 *
 * Each agent is a source of its own, and `<node>/synced` is its canary. Rows that a complete list no longer has are removed
 * only if their node's canary is there, or if the etcd is the one that had them; else (etcd was wiped, that node has not written
 * again yet) they are *held*, until the node's canary says that its rows are complete.
 */
import {
  decodeEndpointRecord,
  decodeNodeRecord,
  type EndpointRecord,
  isIpv4,
  type NodeRecord,
  parseNodesKey,
} from '@clustermesh/contract';
import type { SinkBatch } from '@clustermesh/kvstore';

export interface NodeState {
  readonly record: NodeRecord | undefined;
  /** Its agent has said that its rows are complete. */
  readonly synced: boolean;
  readonly endpoints: ReadonlyMap<string, EndpointRecord>;
}

export interface NodeChanges {
  /** Nodes whose record or canary changed: all their endpoints are to be looked at again. */
  readonly nodes: ReadonlySet<string>;
  /** Single endpoints of other nodes. */
  readonly endpoints: readonly { readonly node: string; readonly endpoint: string }[];
}

interface MutableNode {
  record: NodeRecord | undefined;
  synced: boolean;
  readonly endpoints: Map<string, EndpointRecord>;
  /** Keys kept although a list of another store did not have them. */
  readonly held: Set<string>;
}

export interface NodeRecords {
  apply(batch: SinkBatch, isSameStore: boolean): NodeChanges;
  get(node: string): NodeState | undefined;
  all(): IterableIterator<[string, NodeState]>;
  quarantined(): ReadonlyMap<string, string>;
  heldCount(): number;
  count(): number;
}

export function createNodeRecords(): NodeRecords {
  const nodes = new Map<string, MutableNode>();
  const quarantine = new Map<string, string>();

  function nodeOf(name: string): MutableNode {
    const node = nodes.get(name) ?? { record: undefined, synced: false, endpoints: new Map(), held: new Set() };
    nodes.set(name, node);
    return node;
  }

  function changes() {
    const touchedNodes = new Set<string>();
    const endpoints: { node: string; endpoint: string }[] = [];

    function upsert(key: string, text: string): void {
      const parsed = parseNodesKey(key);
      if (parsed === undefined) return;
      const node = nodeOf(parsed.node);
      node.held.delete(key);
      switch (parsed.kind) {
        case 'synced':
          if (!node.synced) touchedNodes.add(parsed.node);
          node.synced = true;
          // Complete again: what is still held has no writer any more.
          for (const held of [...node.held]) drop(held);
          return;
        case 'node': {
          const decoded = decodeNodeRecord(text);
          if (!decoded.ok || !isIpv4(decoded.value.internalIp)) {
            quarantine.set(
              key,
              decoded.ok
                ? `node ${parsed.node} has the malformed address ${JSON.stringify(decoded.value.internalIp)}`
                : decoded.reason,
            );
            return;
          }
          quarantine.delete(key);
          node.record = decoded.value;
          touchedNodes.add(parsed.node);
          return;
        }
        case 'endpoint': {
          const decoded = decodeEndpointRecord(text);
          if (!decoded.ok) {
            quarantine.set(key, decoded.reason);
            return;
          }
          quarantine.delete(key);
          node.endpoints.set(parsed.endpoint, decoded.value);
          endpoints.push({ node: parsed.node, endpoint: parsed.endpoint });
        }
      }
    }

    function drop(key: string): void {
      const parsed = parseNodesKey(key);
      if (parsed === undefined) return;
      quarantine.delete(key);
      const node = nodes.get(parsed.node);
      if (node === undefined) return;
      node.held.delete(key);
      if (parsed.kind === 'endpoint') {
        node.endpoints.delete(parsed.endpoint);
        endpoints.push({ node: parsed.node, endpoint: parsed.endpoint });
      } else {
        if (parsed.kind === 'node') node.record = undefined;
        else node.synced = false;
        touchedNodes.add(parsed.node);
      }
      if (node.record === undefined && !node.synced && node.endpoints.size === 0) nodes.delete(parsed.node);
    }

    /** Keys that a list of another store no longer has. The canaries first: they decide about the rest. */
    function hold(keys: readonly string[]): void {
      const isCanary = (key: string) => parseNodesKey(key)?.kind === 'synced';
      for (const key of keys.filter(isCanary)) drop(key);
      for (const key of keys.filter((candidate) => !isCanary(candidate))) {
        const node = nodes.get(parseNodesKey(key)?.node ?? '');
        if (node === undefined || node.synced) drop(key);
        else node.held.add(key);
      }
    }

    return { touchedNodes, endpoints, upsert, drop, hold };
  }

  return {
    apply(batch, isSameStore) {
      const change = changes();
      for (const row of batch.upserts) change.upsert(row.key, row.value.toString('utf8'));
      if (batch.kind === 'watch' || isSameStore) for (const key of batch.removes) change.drop(key);
      else change.hold(batch.removes);
      return { nodes: change.touchedNodes, endpoints: change.endpoints };
    },
    get: (name) => nodes.get(name),
    all: () => nodes.entries(),
    quarantined: () => quarantine,
    heldCount: () => [...nodes.values()].reduce((sum, node) => sum + node.held.size, 0),
    count: () =>
      [...nodes.values()].reduce((sum, node) => sum + node.endpoints.size + (node.record === undefined ? 0 : 1), 0),
  };
}
