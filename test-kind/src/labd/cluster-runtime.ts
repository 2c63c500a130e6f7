/** One cluster as its scheduler, kubelets and endpoint controller see it: objects in; pods, probes and manifests out. */
import { randomBytes } from 'node:crypto';
import { messageOf } from '@clustermesh/contract';
import { type Log, type Runner, startRunner } from '@clustermesh/runtime';
import { clusterPaths, daemonCgroup, nodeNamespace, nodePaths } from '../netns/names.ts';
import { findNode, type LabCluster, podIpv6 } from '../topology.ts';
import { type AgentLink, startAgentLink } from './agent-link.ts';
import type { ObjectResult } from './api.ts';
import { createIpam, type Ipam } from './ipam.ts';
import { createManifests, type Manifests } from './manifests.ts';
import { type LabObject, objectName, parseObjects } from './objects.ts';
import { LabPod } from './pod.ts';
import { type Prober, startProber } from './prober.ts';
import { type DesiredPod, desiredPods, placePod } from './schedule.ts';
import { type SlicePod, targetPortsOf } from './slices.ts';

interface NodeRuntime {
  readonly agent: AgentLink;
  readonly prober: Prober;
  readonly ipam: Ipam;
}

export interface ClusterRuntimeOptions {
  readonly instance: string;
  readonly cluster: LabCluster;
  readonly signal: AbortSignal;
  readonly log: Log;
}

const keyOf = (object: Pick<LabObject, 'kind' | 'namespace' | 'name'>) =>
  `${object.kind}/${object.namespace}/${object.name}`;
const DEFAULT_NAMESPACE = 'apiVersion: v1\nkind: Namespace\nmetadata: { name: default }\n';

export class ClusterRuntime {
  readonly cluster: LabCluster;
  /** `<namespace>/<name>`; a terminating pod stays until it is gone. */
  readonly pods = new Map<string, LabPod>();
  readonly #options: ClusterRuntimeOptions;
  readonly #objects = new Map<string, LabObject>();
  readonly #nodes = new Map<string, NodeRuntime>();
  readonly #manifests: Manifests;
  readonly #scheduler: Runner;
  #refreshing = false;

  constructor(options: ClusterRuntimeOptions) {
    const { instance, cluster, signal, log } = options;
    this.#options = options;
    this.cluster = cluster;
    this.#manifests = createManifests(clusterPaths(instance, cluster.name).manifests);
    this.#scheduler = startRunner({
      run: () => this.#schedule(),
      minIntervalMs: 5,
      retryMs: 500,
      maxIntervalMs: Number.POSITIVE_INFINITY,
      onError: (error) => log.warn({ err: error, cluster: cluster.name }, 'scheduling failed, trying again'),
      signal,
    });
    for (const [, object] of [...this.#parse(DEFAULT_NAMESPACE, 'built-in')])
      if (object !== undefined) this.#objects.set(keyOf(object), object);
    this.#refresh();
  }

  /** Once the nodes' namespaces are there. */
  startNodes(): void {
    const { instance, cluster, signal, log } = this.#options;
    for (const node of cluster.nodes) {
      this.#nodes.set(node.name, {
        ipam: createIpam(node.podCIDR),
        agent: startAgentLink({
          socket: nodePaths(instance, cluster.name, node.name).socket,
          signal,
          log,
          onWaiting: (id, reason) => [...this.pods.values()].find((pod) => pod.options.id === id)?.setReason(reason),
        }),
        prober: startProber({
          name: `${cluster.name}/${node.name}`,
          namespace: nodeNamespace(instance, cluster.name, node.name),
          cgroup: daemonCgroup(instance, `${cluster.name}/prober/${node.name}`),
          onResult: (result) => {
            for (const pod of this.pods.values()) pod.probed(result);
          },
          log,
        }),
      });
    }
  }

  agentChanged(node: string): void {
    this.#nodes.get(node)?.agent.trigger();
  }

  objects(): LabObject[] {
    return [...this.#objects.values()];
  }

  async apply(text: string, source: string): Promise<ObjectResult[]> {
    const results: ObjectResult[] = [];
    for (const [result, object] of this.#parse(text, source)) {
      if (object === undefined) {
        results.push(result);
        continue;
      }
      results.push(this.#applyOne(object));
    }
    this.#refresh();
    await this.#scheduler.settled();
    return results;
  }

  #applyOne(object: LabObject): ObjectResult {
    const name = objectName(object);
    if (object.kind !== 'Namespace' && !this.#objects.has(`Namespace/${object.namespace}/${object.namespace}`)) {
      return {
        object: name,
        action: 'failed',
        message: `namespace ${object.namespace} does not exist; apply a Namespace of that name first`,
      };
    }
    const placement =
      object.kind === 'Pod' || object.kind === 'Deployment' ? this.#placementProblem(object) : undefined;
    if (placement !== undefined) return { object: name, action: 'failed', message: placement };
    const previous = this.#objects.get(keyOf(object));
    this.#objects.set(keyOf(object), object);
    const same = previous !== undefined && JSON.stringify(previous) === JSON.stringify(object);
    return {
      object: name,
      action: same ? 'unchanged' : previous === undefined ? 'created' : 'configured',
      message: '',
    };
  }

  #placementProblem(object: LabObject): string | undefined {
    const [first] = desiredPods([object]);
    const placed = first === undefined ? undefined : placePod(first, this.cluster, []);
    return placed !== undefined && 'problem' in placed ? placed.problem : undefined;
  }

  /** Resolves when the pods that went with it are gone. */
  async delete(text: string, source: string): Promise<ObjectResult[]> {
    const results: ObjectResult[] = [];
    for (const [result, object] of this.#parse(text, source)) {
      if (object === undefined) {
        results.push(result);
        continue;
      }
      const found = this.#objects.delete(keyOf(object));
      if (object.kind === 'Namespace') {
        for (const [key, other] of this.#objects) if (other.namespace === object.name) this.#objects.delete(key);
      }
      results.push({
        object: objectName(object),
        action: found ? 'deleted' : 'absent',
        message: found ? '' : 'there was none',
      });
    }
    this.#refresh();
    await this.#scheduler.settled();
    return results;
  }

  #parse(text: string, source: string): (readonly [ObjectResult, LabObject | undefined])[] {
    return parseObjects(text, source).map((document) =>
      'object' in document
        ? [{ object: objectName(document.object), action: 'unchanged', message: '' }, document.object]
        : [{ object: document.at, action: 'failed', message: document.problem }, undefined],
    );
  }

  /** Removes what should not be (any more), then makes what is missing. */
  async #schedule(): Promise<void> {
    const desired = new Map(desiredPods(this.#objects.values()).map((pod) => [`${pod.namespace}/${pod.name}`, pod]));
    const outdated = [...this.pods].filter(([key, pod]) => !sameTemplate(desired.get(key), pod.options.desired));
    await Promise.all(
      outdated.map(async ([key, pod]) => {
        await pod.remove();
        this.#nodes.get(pod.options.node.name)?.ipam.release(pod.options.ip);
        this.pods.delete(key);
      }),
    );
    for (const [key, pod] of desired) if (!this.pods.has(key)) this.#createPod(key, pod);
    this.#refresh();
  }

  #createPod(key: string, desired: DesiredPod): void {
    const { instance, cluster, log } = this.#options;
    const placed = placePod(
      desired,
      cluster,
      [...this.pods.values()].map((pod) => ({ node: pod.options.node.name, owner: pod.options.desired.owner })),
    );
    if ('problem' in placed) throw new Error(placed.problem);
    const node = findNode(cluster, placed.node);
    const { ipam, agent } = this.#nodes.get(node.name)!;
    const ip = ipam.allocate();
    const pod = new LabPod({
      instance,
      cluster,
      node,
      id: `${desired.namespace}.${desired.name}.${randomBytes(3).toString('hex')}`,
      ip,
      ipv6: podIpv6(node, ip),
      desired,
      agent,
      onChange: () => this.#refreshSoon(),
      log,
    });
    this.pods.set(key, pod);
    pod.create().catch((error) => {
      log.error({ err: error, pod: key }, 'pod not made');
      pod.setReason(messageOf(error));
    });
  }

  #refreshSoon(): void {
    if (this.#refreshing) return;
    this.#refreshing = true;
    setImmediate(() => this.#refresh());
  }

  /** Probe targets and manifests follow from objects and pods; called after every change of either. */
  #refresh(): void {
    this.#refreshing = false;
    const services = this.objects().filter((object) => object.kind === 'Service');
    for (const [name, node] of this.#nodes) {
      const targets = [...this.pods.values()].flatMap((pod) => {
        if (pod.options.node.name !== name || !pod.isProbed) return [];
        const ports = probedPorts(pod, services);
        if (ports.length === 0) pod.setReadyWithoutPorts();
        return ports.length === 0 ? [] : [{ key: pod.probeKey, ip: pod.options.ip, ports }];
      });
      node.prober.setTargets(targets);
    }
    this.#manifests.sync(this.#objects.values(), [...this.pods.values()].map(slicePod));
  }
}

function sameTemplate(desired: DesiredPod | undefined, present: DesiredPod): boolean {
  return desired !== undefined && JSON.stringify(desired) === JSON.stringify(present);
}

/** The TCP ports that the pod declares, else those that services expect of it. */
function probedPorts(pod: LabPod, services: readonly LabObject[]): number[] {
  const { namespace, template } = pod.options.desired;
  const declared = template.spec.containers[0]!.ports;
  if (declared.length > 0) return declared.filter((port) => port.protocol === 'TCP').map((port) => port.containerPort);
  return targetPortsOf(services, { namespace, labels: template.labels, spec: template.spec });
}

function slicePod(pod: LabPod): SlicePod {
  const { desired, node, ip, ipv6 } = pod.options;
  return {
    namespace: desired.namespace,
    name: desired.name,
    node: node.name,
    zone: node.zone,
    ip,
    ...(ipv6 === undefined ? {} : { ipv6 }),
    labels: desired.template.labels,
    spec: desired.template.spec,
    ready: pod.isReady,
    serving: pod.isReady,
    terminating: pod.isTerminating,
  };
}
