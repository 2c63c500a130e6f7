/** The endpoints table as ops of the reconciler: a row is only there together with the programs on its veth. */
import { MeshError } from '@clustermesh/contract';
import type { Datapath, EndpointRow, MapOps, OpResult } from '../datapath/types.ts';

export function endpointOps(
  datapath: Pick<Datapath, 'endpoints' | 'attachEndpoint' | 'detachEndpoint'>,
): MapOps<EndpointRow> {
  /** Where each address was attached last. */
  const interfaces = new Map<string, string>();

  async function each(keys: readonly string[], what: string, op: (key: string) => Promise<void>): Promise<OpResult[]> {
    const results: OpResult[] = [];
    for (const key of keys) {
      try {
        await op(key);
        results.push({ key });
      } catch (error) {
        results.push({ key, error: MeshError.from(error, `${what} endpoint ${key}`, 'kernel') });
      }
    }
    return results;
  }

  return {
    async list() {
      const rows = await datapath.endpoints.list();
      for (const row of rows.values()) if (row.interface !== '') interfaces.set(row.ip, row.interface);
      return rows;
    },
    update(rows) {
      const byIp = new Map(rows.map((row) => [row.ip, row]));
      return each([...byIp.keys()], 'attaching', async (ip) => {
        const row = byIp.get(ip) as EndpointRow;
        const before = interfaces.get(ip);
        if (before !== undefined && before !== row.interface) await datapath.detachEndpoint(before);
        await datapath.attachEndpoint(row);
        interfaces.set(ip, row.interface);
      });
    },
    remove(keys) {
      return each(keys, 'detaching', async (ip) => {
        const held = interfaces.get(ip);
        // An interface that serves another address by now keeps its programs; only the row goes.
        const isShared = held !== undefined && [...interfaces].some(([other, name]) => other !== ip && name === held);
        if (held !== undefined && !isShared) await datapath.detachEndpoint(held);
        const [result] = await datapath.endpoints.remove([ip]);
        if (result?.error !== undefined) throw result.error;
        interfaces.delete(ip);
      });
    },
  };
}
