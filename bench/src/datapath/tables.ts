/** Datapaths without a mesh, of this process's own network namespace, for what is measured in tables and single programs. */
import { mkdirSync } from 'node:fs';
import { join } from 'node:path';
import { type Datapath, type DatapathConfig, type OpResult, openDatapath } from '@clustermesh/agent';
import type { Sandbox } from '@clustermesh/agent/testing/sandbox';
import { silentLog } from '@clustermesh/runtime';

export const configOf = (sandbox: Sandbox, name: string): DatapathConfig => ({
  clusterId: 1,
  clusterName: 'c1',
  identityShift: 16,
  nodeName: name,
  nodeIp: '172.31.0.1',
  gatewayIp: '10.1.1.1',
  podCidr: '10.1.1.0/24',
  bpffs: join(sandbox.bpffs, name),
  cgroup: sandbox.cgroup(name),
  vxlanDevice: 'cm_vxlan',
});

export async function openTables(sandbox: Sandbox, name: string): Promise<Datapath> {
  const config = configOf(sandbox, name);
  mkdirSync(config.bpffs);
  const datapath = await openDatapath(config, { log: silentLog() });
  await datapath.attached;
  return datapath;
}

/** Every row must have been taken. */
export async function taken(results: Promise<readonly OpResult[]>): Promise<void> {
  const failed = (await results).find(({ error }) => error !== undefined);
  if (failed?.error !== undefined) throw failed.error;
}
