/** The datapath of one node in a process of its own, as an agent would run it: node-process.ts CONFIG_JSON */
import { silentLog } from '@clustermesh/runtime';
import { type DatapathConfig, type EndpointRow, openDatapath } from '../index.ts';
import type { DumpName, MapOps } from '../types.ts';
import { serve } from './remote.ts';

const config = JSON.parse(process.argv[2]!) as DatapathConfig;
const datapath = await openDatapath(config, { log: silentLog() });
await datapath.attached;

type Table = 'ipcache' | 'services' | 'endpoints' | 'nodes' | 'policies' | 'policyStates';
const ops = (table: Table): MapOps<object> => datapath[table] as unknown as MapOps<object>;

/** Any row that failed fails the call: the tests that expect errors of rows are elsewhere. */
async function all(results: Promise<{ key: string; error?: Error }[]>): Promise<void> {
  const failed = (await results).find((result) => result.error !== undefined);
  if (failed?.error !== undefined) throw failed.error;
}

serve({
  update: ({ table, rows }: { table: Table; rows: object[] }) => all(ops(table).update(rows)),
  remove: ({ table, keys }: { table: Table; keys: string[] }) => all(ops(table).remove(keys)),
  list: async (table: Table) => Object.fromEntries(await ops(table).list()),
  read: async (table: Table) => Object.fromEntries((await ops(table).read?.()) ?? (await ops(table).list())),
  attach: (row: EndpointRow) => datapath.attachEndpoint(row),
  detach: (interfaceName: string) => datapath.detachEndpoint(interfaceName),
  dump: (map: DumpName) => datapath.dump(map),
  maps: () => datapath.maps(),
  destroyedSockets: () => datapath.destroyedSockets(),
  problems: () => datapath.problems(),
});
