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
  /** One result per key, with what became of the rows that `write` could not say in bytes or the kernel did not take. */
  async function outcome(
    keys: readonly string[],
    write: (refused: (index: number, error: unknown) => void) => Promise<(MeshError | undefined)[]>,
  ): Promise<OpResult[]> {
    const results = keys.map((key): OpResult => ({ key }));
    const errors = await write((i, error) => {
      results[i]!.error = MeshError.from(error, `programming ${t.name} ${keys[i]}`);
    });
    errors.forEach((error, i) => {
      if (error === undefined) return;
      const { code, hint, retryable } = error;
      results[i]!.error = new MeshError({
        code,
        hint,
        retryable,
        message: `programming ${t.name} ${keys[i]}: ${error.message}`,
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
      outcome(rows.map(t.keyOf), (refused) =>
        t.map.updateEach(rows, (row) => t.encodeKey(t.keyOf(row)), t.encode, refused),
      ),
    remove: (keys) => outcome(keys, (refused) => t.map.removeEach(keys, t.encodeKey, refused)),
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
    // As with most batches of a large mesh.
    if (inputs.every((input) => isHost(prefixOf(input)))) return op(hostTable, inputs);
    const results: OpResult[] = [];
    const parts = { host: [] as number[], prefix: [] as number[] };
    inputs.forEach((input, i) => void parts[isHost(prefixOf(input)) ? 'host' : 'prefix'].push(i));
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
