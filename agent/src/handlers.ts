/** The agent's interface on its unix socket: see contract/proto/agent.proto. */
import { type AgentMethods, type Json, MAP_NAMES, type MapName } from '@clustermesh/contract';
import type { serveRpc } from '@clustermesh/runtime';
import type { Agent } from './agent.ts';
import { probePath } from './path-probe.ts';

/** Rows in one message of ReadMap and ReadPolicy: far below gRPC's 4 MiB, whatever the rows are. */
const PORTION = 1_000;

const json = (value: unknown): Json => ({ json: JSON.stringify(value) });

export function handlers(agent: Agent): Parameters<typeof serveRpc<AgentMethods>>[2] {
  const readMap = (map: string): Promise<object[]> => (isMapName(map) ? agent.dump(map) : agent.dumpRaw(map));
  return {
    EndpointAdd: (request) => agent.addEndpoint(request),
    async EndpointDelete({ id }) {
      await agent.removeEndpoint(id);
      return {};
    },
    EndpointList: async () => ({ endpoints: agent.endpoints() }),
    GetStatus: async () => agent.status(),
    DumpMap: async ({ map }) => json(await readMap(map)),
    async *ReadMap({ map }) {
      const rows = await readMap(map);
      for (let at = 0; at < rows.length; at += PORTION) yield json(rows.slice(at, at + PORTION));
    },
    ListMaps: async () => json(await agent.maps()),
    async *ReadPolicy({ endpoint }) {
      for (const { rows, ...view } of await agent.policies(endpoint)) {
        for (let at = 0; at === 0 || at < rows.length; at += PORTION)
          yield json({ ...view, rows: rows.slice(at, at + PORTION) });
      }
    },
    ProbePaths: async ({ paths }) => ({
      paths: await Promise.all(paths.map(({ address, mtu }) => probePath(address, mtu))),
    }),
    Verify: async () => json(await agent.verify()),
    async *WatchFlows(request, { signal }) {
      const { last, sampleEvery, noFollow, ...filter } = request;
      const events = agent.flows.watch({ filter, last, sampleEvery, follow: !noFollow }, signal);
      for await (const event of events) yield json(event);
    },
  };
}

function isMapName(name: string): name is MapName {
  return (MAP_NAMES as readonly string[]).includes(name);
}
