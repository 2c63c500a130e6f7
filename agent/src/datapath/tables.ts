/** The plain tables: one kernel row per row (two maps for the ipcache: hosts and prefixes). */
import type { CmEndpoint, CmNode, CmPrefix, CmRemote } from '@clustermesh/bpf';
import { MeshError } from '@clustermesh/contract';
import type { BpfMap } from './bpf-map.ts';
import * as libbpf from './libbpf.ts';
import { interfaceIndex } from './links.ts';
import { fromMac, fromPrefix, fromRemote, hostPrefix, isHost, toAddr, toMac, toPrefix, toRemote } from './rows.ts';
import type { EndpointRow, IpcacheRow, MapOps, NodeRow, OpResult } from './types.ts';

/** How rows of one kind become kernel rows. `encode` and `encodeKey` throw for what cannot be programmed. */
interface TableShape<Row, K, V> {
  name: string;
  map: BpfMap<K, V>;
  keyOf(row: Row): string;
  encodeKey(key: string): K;
  encode(row: Row): V;
  decode(key: K, value: V): Row;
}

export type ScannedOps<Row> = MapOps<Row> & Required<Pick<MapOps<Row>, 'scan'>>;

export function table<Row, K, V>(t: TableShape<Row, K, V>): ScannedOps<Row> {
  /** Encodes what can be, runs `op` on that, and puts the results back in order. */
  async function each<In, Out>(
    inputs: In[],
    keyOf: (input: In) => string,
    encode: (input: In) => Out,
    op: (encoded: Out[]) => Promise<(MeshError | undefined)[]>,
  ): Promise<OpResult[]> {
    const results: OpResult[] = inputs.map((input) => ({ key: keyOf(input) }));
    const encoded: Out[] = [];
    const positions: number[] = [];
    inputs.forEach((input, i) => {
      try {
        encoded.push(encode(input));
        positions.push(i);
      } catch (error) {
        results[i]!.error = MeshError.from(error, `programming ${t.name} ${keyOf(input)}`);
      }
    });
    (await op(encoded)).forEach((error, i) => {
      if (error === undefined) return;
      const result = results[positions[i]!]!;
      const { code, hint, retryable } = error;
      result.error = new MeshError({
        code,
        hint,
        retryable,
        message: `programming ${t.name} ${result.key}: ${error.message}`,
        cause: error,
      });
    });
    return results;
  }

  const scan = (visit: (key: string, row: Row) => void): Promise<void> =>
    t.map.scan((key, value) => {
      const row = t.decode(key, value);
      visit(t.keyOf(row), row);
    });

  return {
    scan,
    async list() {
      const rows = new Map<string, Row>();
      await scan((key, row) => void rows.set(key, row));
      return rows;
    },
    update: (rows) =>
      each(
        rows,
        t.keyOf,
        (row) => [t.encodeKey(t.keyOf(row)), t.encode(row)] as const,
        (encoded) => t.map.update(encoded),
      ),
    remove: (keys) =>
      each(
        keys,
        (key) => key,
        t.encodeKey,
        (encoded) => t.map.remove(encoded),
      ),
  };
}

export function nodeTable(map: BpfMap<string, CmNode>): MapOps<NodeRow> {
  return table({
    name: 'node',
    map,
    keyOf: (row) => row.ip,
    encodeKey: toAddr,
    encode: ({ nodeId, clusterId }) => ({ nodeId, clusterId }),
    decode: (key, { nodeId, clusterId }) => ({ ip: key, clusterId, nodeId }),
  });
}

/** A veth that is gone while its row is still there reads as interface ''. */
export function endpointTable(map: BpfMap<string, CmEndpoint>): MapOps<EndpointRow> {
  return table({
    name: 'endpoint',
    map,
    keyOf: (row) => row.ip,
    encodeKey: toAddr,
    encode: (row) => ({
      ifindex: interfaceIndex(row.interface),
      identity: row.identity,
      endpointId: row.endpointId,
      podMac: toMac(row.podMac),
      hostMac: toMac(row.hostMac),
    }),
    decode: (key, value) => ({
      ip: key,
      interface: libbpf.interfaceName(value.ifindex) ?? '',
      podMac: fromMac(value.podMac),
      hostMac: fromMac(value.hostMac),
      identity: value.identity,
      endpointId: value.endpointId,
    }),
  });
}

/** Hosts go to the hash, prefixes to the trie; the programs ask the hash first. */
export function ipcacheTable(
  hosts: BpfMap<string, CmRemote>,
  prefixes: BpfMap<CmPrefix, CmRemote>,
): ScannedOps<IpcacheRow> {
  const keyOf = (row: IpcacheRow): string => row.prefix;
  const hostTable = table<IpcacheRow, string, CmRemote>({
    name: 'ipcache row',
    map: hosts,
    keyOf,
    // The whole prefix was read when it was routed here.
    encodeKey: (prefix) => toAddr(prefix.slice(0, prefix.indexOf('/'))),
    encode: toRemote,
    decode: (key, value) => fromRemote(hostPrefix(key), value),
  });
  const prefixTable = table<IpcacheRow, CmPrefix, CmRemote>({
    name: 'ipcache row',
    map: prefixes,
    keyOf,
    encodeKey: toPrefix,
    encode: toRemote,
    decode: (key, value) => fromRemote(fromPrefix(key), value),
  });

  /** Each input to its own table, results in the order of the inputs. */
  async function route<In>(
    inputs: In[],
    prefixOf: (input: In) => string,
    op: (ops: MapOps<IpcacheRow>, part: In[]) => Promise<OpResult[]>,
  ): Promise<OpResult[]> {
    const results: OpResult[] = [];
    const parts = { host: [] as number[], prefix: [] as number[] };
    inputs.forEach((input, i) => {
      try {
        parts[isHost(prefixOf(input)) ? 'host' : 'prefix'].push(i);
      } catch (error) {
        results[i] = { key: prefixOf(input), error: MeshError.from(error, 'programming the ipcache') };
      }
    });
    for (const [ops, indexes] of [
      [hostTable, parts.host],
      [prefixTable, parts.prefix],
    ] as const) {
      const part = await op(
        ops,
        indexes.map((i) => inputs[i]!),
      );
      part.forEach((result, i) => {
        results[indexes[i]!] = result;
      });
    }
    return results;
  }

  async function scan(visit: (prefix: string, row: IpcacheRow) => void): Promise<void> {
    await hostTable.scan(visit);
    await prefixTable.scan(visit);
  }

  return {
    scan,
    async list() {
      const rows = new Map<string, IpcacheRow>();
      await scan((prefix, row) => void rows.set(prefix, row));
      return rows;
    },
    update: (rows) => route(rows, keyOf, (ops, part) => ops.update(part)),
    remove: (keys) =>
      route(
        keys,
        (key) => key,
        (ops, part) => ops.remove(part),
      ),
  };
}
