/** The scheduler: which pods there should be, and on which node each. Pure. */
import type { LabCluster } from '../topology.ts';
import type { LabObject, PodTemplate } from './objects.ts';

export interface DesiredPod {
  readonly namespace: string;
  readonly name: string;
  /** What made it, for spreading: `Deployment default/shop`. */
  readonly owner: string;
  readonly template: PodTemplate;
}

export function desiredPods(objects: Iterable<LabObject>): DesiredPod[] {
  const pods: DesiredPod[] = [];
  for (const object of objects) {
    const { namespace, name } = object;
    if (object.kind === 'Pod')
      pods.push({ namespace, name, owner: `Pod ${namespace}/${name}`, template: object.template });
    if (object.kind === 'Deployment') {
      for (let index = 0; index < object.replicas; index++) {
        pods.push({
          namespace,
          name: `${name}-${index}`,
          owner: `Deployment ${namespace}/${name}`,
          template: object.template,
        });
      }
    }
  }
  return pods;
}

export interface Placed {
  readonly node: string;
  readonly owner: string;
}

/** The node with the fewest pods of the same owner, then the fewest at all, then the first; or why there is none. */
export function placePod(
  pod: DesiredPod,
  cluster: LabCluster,
  placed: readonly Placed[],
): { readonly node: string } | { readonly problem: string } {
  const { nodeName, nodeSelector } = pod.template.spec;
  const candidates = cluster.nodes.filter((node) => {
    const labels: Readonly<Record<string, string>> = {
      'kubernetes.io/hostname': node.name,
      'topology.kubernetes.io/zone': node.zone,
      'topology.kubernetes.io/region': cluster.region,
    };
    return (
      (nodeName === undefined || nodeName === node.name) &&
      Object.entries(nodeSelector).every(([key, value]) => labels[key] === value)
    );
  });
  const count = (node: string, owner?: string) =>
    placed.filter((other) => other.node === node && (owner === undefined || other.owner === owner)).length;
  let best: { readonly node: string; readonly own: number; readonly all: number } | undefined;
  for (const { name } of candidates) {
    const own = count(name, pod.owner);
    const all = count(name);
    if (best === undefined || own < best.own || (own === best.own && all < best.all)) best = { node: name, own, all };
  }
  if (best !== undefined) return { node: best.node };
  const asked = nodeName === undefined ? `nodeSelector ${JSON.stringify(nodeSelector)}` : `nodeName ${nodeName}`;
  return {
    problem: `no node of cluster ${cluster.name} matches ${asked}; its nodes: ${cluster.nodes.map((node) => node.name).join(', ')}`,
  };
}
