/** up, down, status. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { MeshError, messageOf } from '@clustermesh/contract';
import { repoRoot } from '@clustermesh/runtime';
import { holderOf, LabClient, startLab } from '../client.ts';
import type { LabStatus } from '../labd/api.ts';
import { remains, teardown } from '../netns/instance.ts';
import { parseTopology, type Topology } from '../topology.ts';
import { type Format, printJson, table, withProgress } from './output.ts';

export const defaultTopologyFile = () => join(repoRoot(), 'test-kind', 'topologies', 'two-regions.yaml');

export function readTopology(file: string): Topology {
  let text: string;
  try {
    text = readFileSync(file, 'utf8');
  } catch (error) {
    throw new MeshError({ code: 'not-found', message: `reading topology ${file}: ${messageOf(error)}` });
  }
  return parseTopology(text, file);
}

export async function up(instance: string, options: { file?: string; output: Format }): Promise<void> {
  const topology = readTopology(options.file ?? defaultTopologyFile());
  const holder = holderOf(instance);
  if (holder !== undefined) {
    const status = await new LabClient(instance).status().catch(() => undefined);
    if (status === undefined) {
      throw new MeshError({
        code: 'locked',
        message: `bringing up instance ${instance}: it is in use by ${holder}, which does not answer`,
        hint: `npm run lab -- --instance ${instance} down ends it`,
      });
    }
    if (options.output === 'json') return printJson(status);
    process.stdout.write(`instance ${instance} is already ${status.phase}, since ${status.upSince} (${holder})\n`);
    if (JSON.stringify(status.topology) !== JSON.stringify(topology))
      process.stdout.write('note: its topology differs from the one asked for; `down` first to change it\n');
    return;
  }
  const startedAt = performance.now();
  const interrupt = () => {
    process.stderr.write('\ninterrupted, taking the instance down\n');
    void teardown(instance).finally(() => process.exit(130));
  };
  process.once('SIGINT', interrupt);
  const lab = await withProgress(`bringing up instance ${instance}`, (progress) =>
    startLab({ instance, topology, tied: false, progress }),
  );
  process.off('SIGINT', interrupt);
  if (options.output === 'json') return printJson(await lab.status());
  const seconds = ((performance.now() - startedAt) / 1000).toFixed(1);
  const flag = instance === 'lab' ? '' : `--instance ${instance} `;
  process.stdout.write(`instance ${instance} is up (${seconds} s)\n${clusterTable(topology)}\n`);
  const [first, second] = topology.clusters;
  process.stdout.write('next:\n');
  if (first !== undefined && second !== undefined)
    process.stdout.write(
      `  npm run clustermesh -- connect --context ${instance}/${first.name} --destination-context ${instance}/${second.name}\n`,
    );
  process.stdout.write(
    `  npm run lab -- ${flag}apply --cluster ${first?.name} -f app.yaml\n  npm run lab -- ${flag}down\n`,
  );
}

export async function down(instance: string, onlyOf?: number): Promise<void> {
  const removed = await withProgress(`taking down instance ${instance}`, async (progress) => {
    progress('ending its processes, removing its namespaces');
    return teardown(instance, onlyOf);
  });
  const left = onlyOf === undefined ? remains(instance) : [];
  if (left.length > 0)
    throw new MeshError({
      code: 'kernel',
      message: `taking down instance ${instance}: still there: ${left.join(', ')}`,
      hint: 'run the command again',
    });
  process.stdout.write(
    removed
      ? `instance ${instance} is down, nothing of it is left\n`
      : `instance ${instance} was not up, nothing of it is there\n`,
  );
}

export async function status(instance: string, output: Format): Promise<void> {
  const left = remains(instance);
  if (left.length > 0 && holderOf(instance) === undefined) {
    throw new MeshError({
      code: 'not-found',
      message: `reading the status of instance ${instance}: its daemon is gone, leftovers are there: ${left.join(', ')}`,
      hint: `npm run lab -- --instance ${instance} down removes them; up does so too`,
    });
  }
  const answer = await new LabClient(instance).status();
  if (output === 'json') printJson(answer);
  else process.stdout.write(statusText(answer));
  if (answer.phase === 'failed') process.exitCode = 1;
}

function clusterTable(topology: Topology): string {
  const rows = topology.clusters.map((cluster) => [
    cluster.name,
    String(cluster.id),
    cluster.region,
    cluster.nodes.map((node) => `${node.name} (${node.zone})`).join(', '),
    cluster.podCIDR,
    cluster.serviceCIDR,
  ]);
  return table(['CLUSTER', 'ID', 'REGION', 'NODES', 'PODS', 'SERVICES'], rows);
}

function statusText(answer: LabStatus): string {
  const daemons = answer.daemons.map((daemon) => [
    daemon.name,
    daemon.state,
    daemon.pid === undefined ? '-' : String(daemon.pid),
    String(daemon.restarts),
    daemon.lastExit ?? '-',
  ]);
  const cuts = answer.partitions
    .map((partition) => `  ${partition.from} → ${partition.to}: ${partition.plane} plane cut\n`)
    .join('');
  return [
    `instance ${answer.instance}: ${answer.phase}, since ${answer.upSince}\n\n`,
    answer.topology === undefined ? '' : `${clusterTable(answer.topology)}\n`,
    `${table(['DAEMON', 'STATE', 'PID', 'RESTARTS', 'LAST EXIT'], daemons)}\n`,
    `pods: ${answer.pods.ready} of ${answer.pods.total} ready\n`,
    cuts === '' ? 'partitions: none\n' : `partitions:\n${cuts}`,
  ].join('');
}
