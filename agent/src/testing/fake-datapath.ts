/**
 * A datapath whose kernel is a few maps in memory, for tests of the agent core. The kernel is a value of its own, so that it can
 * outlive an agent as pinned maps do.
 */
import { MeshError } from '@clustermesh/contract';
import {
  type Datapath,
  type EndpointRow,
  type IpcacheRow,
  type NodeRow,
  type ServiceRow,
  serviceKey,
} from '../datapath/types.ts';
import { type PolicyRow, type PolicyStateRow, policyRowKey } from '../policy/types.ts';
import { type FakeOps, fakeOps } from '../reconcile/testing.ts';

export interface FakeKernel {
  readonly ipcache: FakeOps<IpcacheRow>;
  readonly services: FakeOps<ServiceRow>;
  readonly endpoints: FakeOps<EndpointRow>;
  readonly nodes: FakeOps<NodeRow>;
  readonly policies: FakeOps<PolicyRow>;
  readonly policyStates: FakeOps<PolicyStateRow>;
  /** Interfaces of the node; attaching to another one fails. */
  readonly interfaces: Set<string>;
  readonly attached: Set<string>;
  /** When the programs are in place; absent: at once. */
  attachedGate?: Promise<void> | undefined;
  /** Attaching waits for it. */
  attachGate?: Promise<void> | undefined;
  /** What happened, in order: `attach cmp1`, `detach cmp1`. */
  readonly history: string[];
}

export function createFakeKernel(): FakeKernel {
  return {
    ipcache: fakeOps((row) => row.prefix),
    services: fakeOps((row) => serviceKey(row.frontend)),
    endpoints: fakeOps((row) => row.ip),
    nodes: fakeOps((row) => row.ip),
    policies: fakeOps(policyRowKey),
    policyStates: fakeOps(({ endpointId }) => String(endpointId)),
    interfaces: new Set(['eth0', 'cmp1', 'cmp2', 'cmp3']),
    attached: new Set(),
    history: [],
  };
}

export function fakeDatapath(kernel: FakeKernel): Datapath {
  return {
    ipcache: kernel.ipcache,
    services: kernel.services,
    endpoints: kernel.endpoints,
    nodes: kernel.nodes,
    policies: kernel.policies,
    policyStates: kernel.policyStates,
    attached: kernel.attachedGate ?? Promise.resolve(),
    async attachEndpoint(row) {
      await kernel.attachedGate;
      await kernel.attachGate;
      if (!kernel.interfaces.has(row.interface)) {
        throw new MeshError({
          code: 'not-found',
          message: `attaching to ${row.interface}: there is no such interface`,
        });
      }
      await kernel.endpoints.update([row]);
      kernel.attached.add(row.interface);
      kernel.history.push(`attach ${row.interface}`);
    },
    async detachEndpoint(name) {
      kernel.attached.delete(name);
      kernel.history.push(`detach ${name}`);
      for (const row of [...kernel.endpoints.rows.values()])
        if (row.interface === name) kernel.endpoints.rows.delete(row.ip);
    },
    events: {
      configure: async () => {},
      read: () => 0,
      stats: () => ({ sent: 0, lost: 0 }),
      close: () => {},
    },
    identityOf: (ip) => kernel.endpoints.rows.get(ip)?.identity,
    interfaceName: () => undefined,
    problems: () => [],
    dump: async (map) => (map === 'ipcache' ? [...kernel.ipcache.rows.values()] : []),
    dumpRaw: async () => [],
    maps: () => [],
    usage: async () => [],
    collectGarbage: async () => ({ flows: { alive: 0, removed: 0 }, affinity: { alive: 0, removed: 0 } }),
    destroyedSockets: () => ({
      ...{ tcp: 0, udp: 0, passes: 0, failedPasses: 0, namespaces: 0, lastPassMs: 0, lost: 0 },
      isPossible: false,
    }),
    close: async () => {},
  };
}
