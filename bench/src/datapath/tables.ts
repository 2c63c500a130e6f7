/** Datapaths without a mesh, of this process's own network namespace, for what is measured in tables and single programs. */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { type Datapath, type OpResult, openDatapath } from '@clustermesh/agent';
import type { Sandbox } from '@clustermesh/agent/testing/sandbox';
import { silentLog } from '@clustermesh/runtime';

export async function openTables(sandbox: Sandbox, name: string): Promise<Datapath> {
  const bpffs = join(sandbox.bpffs, name);
  mkdirSync(bpffs);
  const config = {
    clusterId: 1,
    clusterName: 'c1',
    identityShift: 16 as const,
    nodeName: name,
    nodeIp: '172.31.0.1',
    gatewayIp: '10.1.1.1',
    podCidr: '10.1.1.0/24',
    bpffs,
    cgroup: sandbox.cgroup(name),
    vxlanDevice: 'cm_vxlan',
  };
  const datapath = await openDatapath(config, { log: silentLog() });
  await datapath.attached;
  return datapath;
}

/** Every row must have been taken. */
export async function taken(results: Promise<readonly OpResult[]>): Promise<void> {
  const failed = (await results).find(({ error }) => error !== undefined);
  if (failed?.error !== undefined) throw failed.error;
}
