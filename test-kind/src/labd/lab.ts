/** The lab daemon's heart: brings an instance up and does what its commands ask. */
import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import { MeshError, messageOf } from '@clustermesh/contract';
import { atomicWrite, type Log, systemClock, waitFor } from '@clustermesh/runtime';
import { makeCgroup } from '../netns/cgroup.ts';
import { run } from '../netns/exec.ts';
import { instancePaths, nodeCgroup } from '../netns/names.ts';
import { add, cut, heal, type Partition } from '../netns/partition.ts';
import { SupervisedProcess } from '../netns/process.ts';
import { applyPartitions, buildUnderlay } from '../netns/underlay.ts';
import { findCluster, type LabCluster, type Topology } from '../topology.ts';
import type { LabMethods, LabStatus, ServiceStatus } from './api.ts';
import { writeClusterFiles } from './cluster-files.ts';
import { ClusterRuntime } from './cluster-runtime.ts';
import { bundle, type DaemonSpec, daemonsOf } from './daemons.ts';
import { restartOnChange } from './restart-on-change.ts';
import { servicesOf } from './services.ts';
import { chooseTargets } from './targets.ts';

type Progress = (text: string) => void;
type Request<K extends keyof LabMethods> = LabMethods[K]['request'];
type Response<K extends keyof LabMethods> = Promise<LabMethods[K]['response']>;

/** Generous: a machine busy with other work may take long to start eight processes. */
const START_TIMEOUT_MS = 90_000;

/** A daemon that ends more often than this while the instance comes up will not come up. */
const CRASHES_ALLOWED = 4;

interface Daemon {
  readonly spec: DaemonSpec;
  readonly process: SupervisedProcess;
}

export class Lab {
  readonly #instance: string;
  readonly #log: Log;
  readonly #signal: AbortSignal;
  readonly #daemons = new Map<string, Daemon>();
  readonly #clusters = new Map<string, ClusterRuntime>();
  readonly #upSince = new Date(systemClock.wallMs()).toISOString();
  #topology: Topology | undefined;
  #phase: LabStatus['phase'] = 'starting';
  #partitions: readonly Partition[] = [];

  constructor(options: { instance: string; log: Log; signal: AbortSignal }) {
    this.#instance = options.instance;
    this.#log = options.log;
    this.#signal = options.signal;
  }

  async up({ topology }: Request<'up'>, progress: Progress): Response<'up'> {
    if (this.#topology !== undefined)
      throw new MeshError({
        code: 'already-exists',
        message: `bringing up instance ${this.#instance}: it is ${this.#phase} already`,
      });
    const startedAt = systemClock.nowMs();
    this.#topology = topology;
    try {
      await this.#build(topology, progress);
      this.#phase = 'up';
    } catch (error) {
      this.#phase = 'failed';
      throw error;
    }
    return { ms: Math.round(systemClock.nowMs() - startedAt) };
  }

  async #build(topology: Topology, progress: Progress): Promise<void> {
    const instance = this.#instance;
    const paths = instancePaths(instance);
    for (const name of ['clustermesh-apiserver', 'clustermesh-gate', 'clustermesh-agent']) {
      if (!existsSync(bundle(name)))
        throw new MeshError({
          code: 'not-found',
          message: `starting the daemons: ${bundle(name)} is not there`,
          hint: 'npm run build',
        });
    }
    atomicWrite(paths.topology, `${JSON.stringify(topology, null, 2)}\n`);
    mkdirSync(paths.bpffs, { recursive: true });
    progress('network, certificates');
    await Promise.all([
      buildUnderlay(instance, topology),
      run(`mounting a BPF file system at ${paths.bpffs}`, 'mount', ['-t', 'bpf', 'bpf', paths.bpffs]),
      ...topology.clusters.map((cluster) => writeClusterFiles(instance, cluster)),
    ]);
    for (const cluster of topology.clusters) this.#startCluster(cluster);
    await this.#waitForDaemons(progress);
    for (const runtime of this.#clusters.values()) runtime.startNodes();
  }

  #startCluster(cluster: LabCluster): void {
    const runtime = new ClusterRuntime({ instance: this.#instance, cluster, signal: this.#signal, log: this.#log });
    this.#clusters.set(cluster.name, runtime);
    for (const node of cluster.nodes) makeCgroup(nodeCgroup(this.#instance, cluster.name, node.name));
    for (const spec of daemonsOf(this.#instance, cluster)) {
      const { name } = spec.process;
      const node = /\/agent\/(.+)$/.exec(name)?.[1];
      const process = new SupervisedProcess(spec.process, () => {
        this.#log.info({ daemon: name, ...process.status() }, 'daemon changed state');
        if (node !== undefined) runtime.agentChanged(node);
      });
      this.#daemons.set(name, { spec, process });
      process.start();
      restartOnChange({ process, files: spec.readAtStart, signal: this.#signal, log: this.#log });
    }
  }

  async #waitForDaemons(progress: Progress): Promise<void> {
    let missing = new Map<string, string>();
    let shown = '';
    let crashing = false;
    const check = async () => {
      const answers = await Promise.all(
        [...this.#daemons].map(async ([name, daemon]): Promise<[string, string | undefined]> => {
          if (!daemon.process.isAlive())
            return [name, `not running (${daemon.process.status().lastExit ?? 'never started'})`];
          return [name, await daemon.spec.notReady().catch((error) => messageOf(error))];
        }),
      );
      missing = new Map(answers.flatMap(([name, why]) => (why === undefined ? [] : [[name, why]])));
      const text = `daemons; still waiting for ${[...missing.keys()].join(', ')}`;
      if (missing.size > 0 && text !== shown) progress(text);
      shown = text;
      crashing = [...this.#daemons.values()].some(({ process }) => process.status().restarts > CRASHES_ALLOWED);
      return missing.size === 0 || crashing;
    };
    const timedOut = await waitFor(check, {
      what: 'the daemons',
      timeoutMs: START_TIMEOUT_MS,
      intervalMs: 100,
      signal: this.#signal,
    }).then(
      () => undefined,
      (error: unknown) => error,
    );
    if (missing.size === 0) return;
    const details = [...missing].map(([name, why]) => `  ${name}: ${why}${this.#lastLines(name)}`);
    throw new MeshError({
      code: 'timeout',
      message: `starting the daemons of instance ${this.#instance}: not all came up${crashing ? ', one ends again and again' : ''}:\n${details.join('\n')}`,
      cause: timedOut,
    });
  }

  /** What a daemon said last: of its own JSON lines the message and the error's, of others the line. */
  #lastLines(name: string): string {
    const file = this.#daemons.get(name)?.spec.process.logFile;
    if (file === undefined || !existsSync(file)) return '';
    const readable = (line: string) => {
      try {
        const { msg, err, error } = JSON.parse(line) as { msg?: string; err?: { message?: string }; error?: string };
        return [...new Set([msg, err?.message, error])].filter((part) => part !== undefined).join(': ');
      } catch {
        return line;
      }
    };
    const lines = readFileSync(file, 'utf8').trimEnd().split('\n').slice(-3).map(readable);
    return lines.map((line) => `\n      ${line.slice(0, 300)}`).join('');
  }

  async status(): Response<'status'> {
    const pods = [...this.#clusters.values()].flatMap((cluster) => [...cluster.pods.values()]);
    return {
      instance: this.#instance,
      pid: process.pid,
      phase: this.#phase,
      topology: this.#topology,
      daemons: [...this.#daemons.values()].map(({ process }) => process.status()),
      pods: { total: pods.length, ready: pods.filter((pod) => pod.isReady).length },
      partitions: this.#partitions,
      upSince: this.#upSince,
    };
  }

  async apply({ cluster, text, source }: Request<'apply'>): Response<'apply'> {
    return { results: await this.#cluster(cluster).apply(text, source) };
  }

  async delete({ cluster, text, source }: Request<'delete'>): Response<'delete'> {
    return { results: await this.#cluster(cluster).delete(text, source) };
  }

  async pods(): Response<'pods'> {
    return {
      pods: [...this.#clusters.values()].flatMap((cluster) => [...cluster.pods.values()].map((pod) => pod.status())),
    };
  }

  async services(): Response<'services'> {
    const problems: string[] = [];
    const topology = this.#topology ?? { clusters: [] };
    const perCluster = await Promise.all(
      topology.clusters.map(({ name }) =>
        servicesOf({ instance: this.#instance, topology, cluster: name }).catch((error): ServiceStatus[] => {
          problems.push(`${name}: ${messageOf(error)}`);
          return [];
        }),
      ),
    );
    return { services: perCluster.flat(), problems };
  }

  async control({ action, targets }: Request<'control'>): Response<'control'> {
    const daemons = [...this.#daemons.values()].map((daemon) => daemon.process);
    const pods = [...this.#clusters.values()].flatMap((cluster) =>
      [...cluster.pods.values()].map((pod) => pod.process),
    );
    const named = [...daemons, ...pods].map((process) => ({ name: process.spec.name, process }));
    const chosen = chooseTargets(named, targets, `${action} in instance ${this.#instance}`).map(
      ({ process }) => process,
    );
    await Promise.all(chosen.map((process) => process[action]()));
    return { done: chosen.map((process) => process.spec.name) };
  }

  async partition({ from, to, planes, oneWay }: Request<'partition'>): Response<'partition'> {
    return this.#setPartitions(from, to, (present) => add(present, cut(from, to, planes, oneWay)));
  }

  async heal({ a, b }: Request<'heal'>): Response<'heal'> {
    return this.#setPartitions(a, b, (present) => heal(present, a, b));
  }

  async #setPartitions(
    a: string,
    b: string,
    change: (present: readonly Partition[]) => readonly Partition[],
  ): Promise<{ partitions: readonly Partition[] }> {
    const topology = this.#topology ?? { clusters: [] };
    for (const name of [a, b]) findCluster(topology, name);
    if (a === b)
      throw new MeshError({
        code: 'invalid-argument',
        message: `cutting ${a} from ${b}: it takes two different clusters`,
      });
    const partitions = change(this.#partitions);
    await applyPartitions(this.#instance, topology, partitions);
    this.#partitions = partitions;
    return { partitions };
  }

  async podEnvironment({ pod: path }: Request<'podEnvironment'>): Response<'podEnvironment'> {
    const [clusterName, namespace, name, ...more] = path.split('/');
    if (clusterName === undefined || namespace === undefined || name === undefined || more.length > 0) {
      throw new MeshError({
        code: 'invalid-argument',
        message: `entering pod ${path}: expected CLUSTER/NAMESPACE/POD, for example eu/default/client-0`,
      });
    }
    const pod = this.#cluster(clusterName).pods.get(`${namespace}/${name}`);
    if (pod === undefined) {
      const known = [...this.#cluster(clusterName).pods.keys()].map((key) => `${clusterName}/${key}`).join(', ');
      throw new MeshError({
        code: 'not-found',
        message: `entering pod ${path}: there is none of that name`,
        hint: `pods: ${known || 'none'}`,
      });
    }
    if (!pod.process.isAlive()) {
      const { phase, reason } = pod.status();
      throw new MeshError({
        code: 'conflict',
        message: `entering pod ${path}: it is ${phase}${reason === '' ? '' : ` (${reason})`}`,
      });
    }
    return pod.environment();
  }

  #cluster(name: string): ClusterRuntime {
    findCluster(this.#topology ?? { clusters: [] }, name);
    const runtime = this.#clusters.get(name);
    if (runtime === undefined || this.#phase !== 'up') {
      throw new MeshError({
        code: 'conflict',
        message: `using cluster ${name}: instance ${this.#instance} is not up, it is ${this.#phase}`,
      });
    }
    return runtime;
  }
}
