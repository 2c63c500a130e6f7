/** The lab daemon's heart: brings an instance up and does what its commands ask. */
import { existsSync, mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { decodeLocalService, keyName, localPrefix, MeshError, messageOf } from '@clustermesh/contract';
import { atomicWrite, type Log, systemClock, waitFor } from '@clustermesh/runtime';
import { makeCgroup } from '../netns/cgroup.ts';
import { capture, inNamespace, run } from '../netns/exec.ts';
import { clusterPaths, controlPlaneNamespace, instancePaths, nodeCgroup } from '../netns/names.ts';
import { add, cut, heal, type Partition } from '../netns/partition.ts';
import { SupervisedProcess } from '../netns/process.ts';
import { applyPartitions, buildUnderlay } from '../netns/underlay.ts';
import { findCluster, type LabCluster, type Topology } from '../topology.ts';
import type { LabMethods, LabStatus, ServiceStatus } from './api.ts';
import { writeClusterFiles } from './cluster-files.ts';
import { ClusterRuntime } from './cluster-runtime.ts';
import { bundle, type DaemonSpec, daemonsOf } from './daemons.ts';

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
    for (const name of ['clustermesh-apiserver', 'clustermesh-agent']) {
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
    const perCluster = await Promise.all(
      [...this.#clusters.values()].map((cluster) =>
        this.#servicesOf(cluster).catch((error): ServiceStatus[] => {
          problems.push(`${cluster.cluster.name}: ${messageOf(error)}`);
          return [];
        }),
      ),
    );
    return { services: perCluster.flat(), problems };
  }

  /** From the cluster's own etcd, where its agents read them: ClusterIPs are allocated by the apiserver. */
  async #servicesOf(runtime: ClusterRuntime): Promise<ServiceStatus[]> {
    const { name } = runtime.cluster;
    const [rows, slices] = await Promise.all([
      this.#etcdRows(name, localPrefix('services')),
      this.#etcdRows(name, localPrefix('endpointslices')),
    ]);
    const endpoints = new Map<string, { ready: string[]; notReady: number }>();
    for (const [, text] of slices) {
      const slice = JSON.parse(text) as {
        namespace: string;
        service: string;
        ports: { port: number }[];
        endpoints: { addresses: string[]; ready: boolean }[];
      };
      const key = `${slice.namespace}/${slice.service}`;
      const entry = endpoints.get(key) ?? { ready: [], notReady: 0 };
      endpoints.set(key, entry);
      for (const endpoint of slice.endpoints) {
        if (!endpoint.ready) entry.notReady++;
        else
          for (const { port } of slice.ports)
            entry.ready.push(...endpoint.addresses.map((address) => `${address}:${port}`));
      }
    }
    return rows.flatMap(([, text]) => {
      const decoded = decodeLocalService(text);
      if (!decoded.ok) return [];
      const service = decoded.value;
      const own = endpoints.get(`${service.namespace}/${service.name}`);
      return [
        {
          cluster: name,
          namespace: service.namespace,
          name: service.name,
          clusterIP: service.clusterIPs[0] ?? '',
          ports: service.ports,
          global: service.global,
          shared: service.shared,
          affinity: service.affinity,
          endpoints: own?.ready.sort() ?? [],
          notReady: own?.notReady ?? 0,
        },
      ];
    });
  }

  async #etcdRows(cluster: string, prefix: string): Promise<[string, string][]> {
    const paths = clusterPaths(this.#instance, cluster);
    const [command, ...args] = inNamespace(controlPlaneNamespace(this.#instance, cluster), [
      'env',
      'ETCDCTL_API=3',
      'etcdctl',
      '--endpoints=https://127.0.0.1:2379',
      `--cacert=${join(paths.pki, 'ca.crt')}`,
      `--cert=${join(paths.pki, 'admin.crt')}`,
      `--key=${join(paths.pki, 'admin.key')}`,
      '--command-timeout=3s',
      'get',
      '--prefix',
      prefix,
      '--write-out=json',
    ]);
    const output = await capture(command!, args, { timeoutMs: 10_000 });
    if (output.code !== 0) {
      throw new MeshError({
        code: 'etcd-unreachable',
        message: `reading ${prefix} from the etcd of ${cluster}: ${output.stderr.trim().split('\n').at(-1)}`,
      });
    }
    const { kvs = [] } = JSON.parse(output.stdout) as { kvs?: { key: string; value: string }[] };
    const decode = (text: string) => Buffer.from(text, 'base64').toString();
    return kvs.map((row) => [keyName(decode(row.key), prefix) ?? '', decode(row.value)]);
  }

  async control({ action, targets }: Request<'control'>): Response<'control'> {
    const chosen = this.#targets(action, targets);
    await Promise.all(chosen.map((process) => process[action]()));
    return { done: chosen.map((process) => process.spec.name) };
  }

  /** `eu/agent/n1`, `eu/pod/default/shop-*`: every target has to mean something, before anything is done to any. */
  #targets(action: string, patterns: readonly string[]): SupervisedProcess[] {
    const pods = [...this.#clusters.values()].flatMap((cluster) =>
      [...cluster.pods.values()].map((pod) => pod.process),
    );
    const all = [...[...this.#daemons.values()].map((daemon) => daemon.process), ...pods];
    const chosen = new Set<SupervisedProcess>();
    for (const pattern of patterns) {
      const regex = new RegExp(
        `^${pattern
          .split('*')
          .map((part) => part.replace(/[.+?^${}()|[\]\\]/g, '\\$&'))
          .join('[^/]*')}$`,
      );
      const found = all.filter((process) => regex.test(process.spec.name));
      if (found.length === 0) {
        throw new MeshError({
          code: 'not-found',
          message: `${action} ${pattern}: instance ${this.#instance} has nothing of that name`,
          hint: `there are: ${all.map((process) => process.spec.name).join(', ')}`,
        });
      }
      for (const process of found) chosen.add(process);
    }
    return [...chosen];
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
