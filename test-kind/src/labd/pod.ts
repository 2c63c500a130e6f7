/** One pod: kubelet and CNI for it. Address and namespace stay as long as the pod does; its process comes and goes. */
import { join } from 'node:path';
import { messageOf } from '@clustermesh/contract';
import { type Log, repoRoot, systemClock } from '@clustermesh/runtime';
import { cgroupMount, removeCgroup } from '../netns/cgroup.ts';
import { instancePaths, nodeNamespace, podCgroup, podNamespace } from '../netns/names.ts';
import { SupervisedProcess } from '../netns/process.ts';
import type { LabCluster, LabNode } from '../topology.ts';
import type { AgentLink } from './agent-link.ts';
import type { PodEnvironment, PodPhase, PodStatus } from './api.ts';
import { daemonEnvironment } from './environment.ts';
import { expandVariables } from './objects.ts';
import { addPodNetwork, type PodNetwork, planPodNetwork, removePodNetwork } from './pod-network.ts';
import type { ProbeResult } from './prober.ts';
import type { DesiredPod } from './schedule.ts';

export interface PodOptions {
  readonly instance: string;
  readonly cluster: LabCluster;
  readonly node: LabNode;
  /** Unique among all pods that ever were: `<namespace>.<name>.<random>`. */
  readonly id: string;
  readonly ip: string;
  readonly ipv6: string | undefined;
  readonly desired: DesiredPod;
  readonly agent: AgentLink;
  readonly onChange: () => void;
  readonly log: Log;
}

const NETWORK_RETRY_MS = 500;

export class LabPod {
  readonly options: PodOptions;
  readonly process: SupervisedProcess;
  readonly #network: PodNetwork;
  readonly #env: Readonly<Record<string, string>>;
  /** The namespace and cable of that name are this pod's: until then they may be its predecessor's. */
  #networkMade = false;
  #created = false;
  #terminating = false;
  #ready = false;
  #reason = '';
  #identity: number | undefined;
  /** Counts starts of the process; part of the probe's key. */
  #starts = 0;
  #wasAlive = false;

  constructor(options: PodOptions) {
    const { instance, cluster, node, desired, ip } = options;
    this.options = options;
    this.#network = planPodNetwork({
      id: options.id,
      ip,
      ipv6: options.ipv6,
      podNamespace: podNamespace(instance, cluster.name, desired.namespace, desired.name),
      nodeNamespace: nodeNamespace(instance, cluster.name, node.name),
    });
    const container = desired.template.spec.containers[0]!;
    const identity = {
      POD_NAME: desired.name,
      POD_NAMESPACE: desired.namespace,
      POD_IP: ip,
      NODE_NAME: node.name,
      CLUSTER_NAME: cluster.name,
      CLUSTER_REGION: cluster.region,
      NODE_ZONE: node.zone,
    };
    const env: Record<string, string> = { ...identity };
    for (const { name, value } of container.env) env[name] = expandVariables(value, env);
    this.#env = env;
    const { restartPolicy } = desired.template.spec;
    this.process = new SupervisedProcess(
      {
        name: `${cluster.name}/pod/${desired.namespace}/${desired.name}`,
        cgroup: podCgroup(instance, cluster.name, node.name, desired.namespace, desired.name),
        namespace: this.#network.podNamespace,
        command: [...container.command, ...container.args].map((part) => expandVariables(part, env)),
        env: daemonEnvironment(env),
        cwd: repoRoot(),
        logFile: podLogFile(instance, cluster.name, desired.namespace, desired.name),
        restart: (code) => restartPolicy === 'Always' || (restartPolicy === 'OnFailure' && code !== 0),
      },
      () => this.#processChanged(),
    );
  }

  /** Makes the pod; retries what the kernel refuses, waits for the agent as long as it takes. */
  async create(): Promise<void> {
    const { desired, log, id } = this.options;
    while (!this.#terminating) {
      try {
        await addPodNetwork(this.#network);
        this.#networkMade = true;
        break;
      } catch (error) {
        log.warn({ err: error, pod: id }, 'pod network not made, trying again');
        this.setReason(messageOf(error));
        await systemClock.sleep(NETWORK_RETRY_MS);
      }
    }
    if (this.#terminating) return this.#removeNetwork();
    // The agent first: the pod's first socket must already meet the datapath.
    const endpoint = await this.options.agent.ensure({
      id,
      namespace: desired.namespace,
      pod: desired.name,
      labels: desired.template.labels,
      serviceAccount: desired.template.spec.serviceAccountName,
      interface: this.#network.interface,
      hostMac: this.#network.hostMac,
      podMac: this.#network.podMac,
      ipv4: this.#network.ip,
      ...(this.#network.ipv6 === undefined ? {} : { ipv6: this.#network.ipv6 }),
      namedPorts: desired.template.spec.containers[0]!.ports.flatMap(({ name, containerPort: port, protocol }) =>
        name === undefined ? [] : [{ name, port, protocol }],
      ),
    });
    if (this.#terminating) return;
    this.#identity = endpoint.identity || undefined;
    this.#created = true;
    this.#reason = '';
    this.process.start();
  }

  /** As Kubernetes: endpoints see it terminating, then SIGTERM, then the end of its network. */
  async remove(): Promise<void> {
    this.#terminating = true;
    this.options.onChange();
    await this.process.terminate(this.options.desired.template.spec.terminationGracePeriodSeconds * 1000);
    this.options.agent.drop(this.options.id);
    await this.#removeNetwork();
    await removeCgroup(join(cgroupMount(), this.process.spec.cgroup));
  }

  async #removeNetwork(): Promise<void> {
    if (this.#networkMade) await removePodNetwork(this.#network);
  }

  get probeKey(): string {
    return `${this.options.id}#${this.#starts}`;
  }

  /** Whether there is a process whose ports may be asked. */
  get isProbed(): boolean {
    return this.process.isAlive();
  }

  probed(result: ProbeResult): void {
    if (result.key !== this.probeKey || !this.process.isAlive()) return;
    this.#ready = result.ready;
    this.#reason = result.reason;
    this.options.onChange();
  }

  /** For pods without a TCP port: alive is ready. */
  setReadyWithoutPorts(): void {
    if (this.#ready) return;
    this.#ready = true;
    this.options.onChange();
  }

  setReason(reason: string): void {
    this.#reason = reason;
  }

  get isReady(): boolean {
    return this.#ready;
  }

  get isTerminating(): boolean {
    return this.#terminating;
  }

  environment(): PodEnvironment {
    return { cgroup: this.process.cgroupPath, namespace: this.#network.podNamespace, env: this.#env };
  }

  status(): PodStatus {
    const { cluster, node, desired, ip, ipv6 } = this.options;
    const { pid, restarts, lastExit } = this.process.status();
    return {
      cluster: cluster.name,
      namespace: desired.namespace,
      name: desired.name,
      node: node.name,
      ip,
      ...(ipv6 === undefined ? {} : { ipv6 }),
      phase: this.#phase(),
      ready: this.#ready,
      reason: this.#reason || (this.process.isAlive() || lastExit === undefined ? '' : `ended: ${lastExit}`),
      identity: this.#identity,
      restarts,
      pid,
      labels: desired.template.labels,
    };
  }

  #phase(): PodPhase {
    if (this.#terminating) return 'terminating';
    if (!this.#created) return 'creating';
    const { state } = this.process.status();
    return state === 'waiting' ? 'restarting' : state;
  }

  #processChanged(): void {
    const alive = this.process.isAlive();
    if (alive && !this.#wasAlive) {
      this.#starts++;
      this.#reason = '';
    }
    // Whatever the ports answered before, nobody is behind them now.
    if (!alive) this.#ready = false;
    this.#wasAlive = alive;
    this.options.onChange();
  }
}

export function podLogFile(instance: string, cluster: string, namespace: string, pod: string): string {
  return `${instancePaths(instance).logs}/${cluster}-pod-${namespace}_${pod}.log`;
}
