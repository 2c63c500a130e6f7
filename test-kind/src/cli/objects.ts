/** apply, delete, pods, services. */
import { readFileSync } from 'node:fs';
import { MeshError, messageOf } from '@clustermesh/contract';
import { LabClient } from '../client.ts';
import type { PodStatus } from '../labd/api.ts';
import { type Format, printJson, tableText, withProgress } from './output.ts';

function readManifest(file: string): string {
  try {
    return readFileSync(file === '-' ? 0 : file, 'utf8');
  } catch (error) {
    throw new MeshError({ code: 'not-found', message: `reading manifest ${file}: ${messageOf(error)}` });
  }
}

export interface ApplyOptions {
  readonly cluster: string;
  readonly file: readonly string[];
  readonly wait?: boolean;
  readonly output: Format;
}

export async function applyOrDelete(
  instance: string,
  action: 'apply' | 'delete',
  options: ApplyOptions,
): Promise<void> {
  const lab = new LabClient(instance);
  const results = [];
  for (const file of options.file) {
    const text = readManifest(file);
    const answer = await withProgress(`${action} ${file}`, () =>
      lab.call(action, { cluster: options.cluster, text, source: file === '-' ? 'stdin' : file }),
    );
    results.push(...answer.results);
  }
  if (options.output === 'json') printJson({ results });
  else
    for (const { object, action: done, message } of results)
      process[done === 'failed' ? 'stderr' : 'stdout'].write(
        `${object}: ${done}${message === '' ? '' : `: ${message}`}\n`,
      );
  if (results.some((result) => result.action === 'failed')) process.exitCode = 1;
  else if (options.wait === true && action === 'apply') await waitForPods(lab, options.cluster);
}

async function waitForPods(lab: LabClient, cluster: string): Promise<void> {
  const ofCluster = (pod: PodStatus) => pod.cluster === cluster;
  if (!(await lab.pods()).some(ofCluster)) return;
  const pods = await withProgress('waiting for pods', () => lab.podsReady(ofCluster, 60_000));
  process.stdout.write(`${pods.length} pods of ${cluster} are ready\n`);
}

export async function pods(instance: string, output: Format): Promise<void> {
  const answer = await new LabClient(instance).pods();
  if (output === 'json') return printJson(answer);
  const rows = answer.map((pod) => [
    pod.cluster,
    pod.namespace,
    pod.name,
    pod.ip,
    pod.node,
    pod.phase,
    pod.ready ? 'yes' : 'no',
    pod.identity === undefined ? '-' : String(pod.identity),
    String(pod.restarts),
    pod.reason,
  ]);
  process.stdout.write(
    tableText(['CLUSTER', 'NAMESPACE', 'POD', 'IP', 'NODE', 'PHASE', 'READY', 'IDENTITY', 'RESTARTS', ''], rows),
  );
}

export async function services(instance: string, output: Format): Promise<void> {
  const { services: answer, problems } = await new LabClient(instance).call('services', {});
  for (const problem of problems) process.stderr.write(`warning: ${problem}\n`);
  if (problems.length > 0) process.exitCode = 1;
  if (output === 'json') return printJson(answer);
  const rows = answer.map((service) => [
    service.cluster,
    service.namespace,
    service.name,
    service.clusterIP || 'none',
    service.ports.map((port) => `${port.port}/${port.protocol}`).join(','),
    service.global ? (service.shared ? 'shared' : 'not shared') : 'no',
    service.affinity,
    `${service.endpoints.join(',') || '-'}${service.notReady > 0 ? ` (+${service.notReady} not ready)` : ''}`,
  ]);
  process.stdout.write(
    tableText(['CLUSTER', 'NAMESPACE', 'SERVICE', 'CLUSTER-IP', 'PORTS', 'GLOBAL', 'AFFINITY', 'OWN ENDPOINTS'], rows),
  );
}
