/**
 * Every name of everything that an instance makes, so that teardown can find it and nothing of another instance. Pure.
 *
 * An instance name holds no "-": with it, the prefix `cm-a-` of instance `a` would match what instance `a-b` made.
 */
import { createHash } from 'node:crypto';
import { MeshError } from '@clustermesh/contract';

const INSTANCE_NAME = /^[a-z][a-z0-9]{0,11}$/;

export function assertInstanceName(name: string): string {
  if (INSTANCE_NAME.test(name)) return name;
  throw new MeshError({
    code: 'invalid-argument',
    message: `taking ${JSON.stringify(name)} as the name of a lab instance: it must be 1 to 12 lower case letters and digits, beginning with a letter`,
    hint: 'a "-" is not allowed: it separates the parts of kernel names, and one instance must not be the prefix of another',
  });
}

export interface InstancePaths {
  readonly run: string;
  readonly lock: string;
  readonly socket: string;
  readonly bpffs: string;
  readonly contexts: string;
  readonly logs: string;
  readonly topology: string;
}

export function instancePaths(instance: string): InstancePaths {
  const run = `/run/cm-${assertInstanceName(instance)}`;
  return {
    run,
    lock: `${run}/lock`,
    socket: `${run}/lab.sock`,
    bpffs: `${run}/bpf`,
    contexts: `${run}/contexts`,
    logs: `${run}/logs`,
    topology: `${run}/topology.json`,
  };
}

export interface ClusterPaths {
  readonly dir: string;
  readonly manifests: string;
  readonly pki: string;
  readonly etcd: string;
  readonly redis: string;
  readonly peers: string;
  readonly state: string;
  readonly users: string;
  readonly config: string;
  readonly gateConfig: string;
  readonly socket: string;
  readonly context: string;
}

export function clusterPaths(instance: string, cluster: string): ClusterPaths {
  const paths = instancePaths(instance);
  const dir = `${paths.run}/${cluster}`;
  return {
    dir,
    manifests: `${dir}/manifests`,
    pki: `${dir}/pki`,
    etcd: `${dir}/etcd`,
    redis: `${dir}/redis`,
    peers: `${dir}/clustermesh`,
    state: `${dir}/state`,
    users: `${dir}/users.yaml`,
    config: `${dir}/apiserver.yaml`,
    gateConfig: `${dir}/gate.yaml`,
    socket: `${dir}/apiserver.sock`,
    context: `${paths.contexts}/${cluster}.yaml`,
  };
}

export interface NodePaths {
  readonly dir: string;
  readonly config: string;
  readonly socket: string;
  readonly state: string;
  readonly pki: string;
}

export function nodePaths(instance: string, cluster: string, node: string): NodePaths {
  const dir = `${instancePaths(instance).run}/${cluster}/nodes/${node}`;
  return {
    dir,
    config: `${dir}/agent.yaml`,
    socket: `${dir}/agent.sock`,
    state: `${dir}/state`,
    pki: `${clusterPaths(instance, cluster).pki}/nodes/${node}`,
  };
}

/** Network namespaces. */
export const namespacePrefix = (instance: string): string => `cm-${assertInstanceName(instance)}-`;
export const wanNamespace = (instance: string): string => `${namespacePrefix(instance)}wan`;
export const controlPlaneNamespace = (instance: string, cluster: string): string =>
  `${namespacePrefix(instance)}${cluster}-cp`;
export const nodeNamespace = (instance: string, cluster: string, node: string): string =>
  `${namespacePrefix(instance)}${cluster}-${node}`;
/** "_" occurs in no name of a cluster, node, namespace or pod, so no two pods, and no pod and node, can be confused. */
export const podNamespace = (instance: string, cluster: string, namespace: string, pod: string): string =>
  `${namespacePrefix(instance)}${cluster}_${namespace}_${pod}`;

/** Cgroups, relative to the cgroup v2 mount. */
export const instanceCgroup = (instance: string): string => `cm-${assertInstanceName(instance)}`;
export const nodeCgroup = (instance: string, cluster: string, node: string): string =>
  `${instanceCgroup(instance)}/${cluster}-${node}`;
export const podCgroup = (instance: string, cluster: string, node: string, namespace: string, pod: string): string =>
  `${nodeCgroup(instance, cluster, node)}/${namespace}_${pod}`;
export const daemonCgroup = (instance: string, what: string): string =>
  `${instanceCgroup(instance)}/daemons/${what.replaceAll('/', '-')}`;

/** Host end of a pod's veth, from the endpoint's id: interface names have at most 15 characters, so it is a hash. */
export function podInterface(endpoint: string): string {
  return `cmp${createHash('sha256').update(endpoint).digest('hex').slice(0, 12)}`;
}

/** Locally administered MACs derived from the pod's address: the same pod gets the same pair again, and no two pods meet. */
export function podMacs(ipv4: string): { readonly pod: string; readonly host: string } {
  const tail = ipv4
    .split('.')
    .map((part) => Number(part).toString(16).padStart(2, '0'))
    .join(':');
  return { pod: `02:01:${tail}`, host: `02:02:${tail}` };
}
