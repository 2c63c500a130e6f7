/** Cluster names: at most 32 characters, wire-contract §2.4. */
const CLUSTER_NAME = /^([a-z0-9][-a-z0-9]*)?[a-z0-9]$/;
/** RFC 1123 subdomain, as Kubernetes names nodes, namespaces (a label there) and services. */
const DNS_SUBDOMAIN = /^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$/;

export type MaxConnectedClusters = 255 | 511;

/** Why `name` is no cluster name, or undefined when it is one. */
export function clusterNameProblem(name: string): string | undefined {
  if (name.length === 0) return 'a cluster name must not be empty';
  if (name.length > 32)
    return `cluster name ${JSON.stringify(name)} has ${name.length} characters, at most 32 are allowed`;
  if (!CLUSTER_NAME.test(name)) {
    return `cluster name ${JSON.stringify(name)} must consist of lower case letters, digits and "-", and begin and end with a letter or digit`;
  }
  if (name === 'default') return 'cluster name "default" cannot be part of a mesh';
  return undefined;
}

export function clusterIdProblem(id: number, max: MaxConnectedClusters): string | undefined {
  if (!Number.isInteger(id) || id < 1 || id > max) return `cluster id ${id} is not in 1…${max}`;
  return undefined;
}

export function isDnsSubdomain(name: string): boolean {
  return name.length <= 253 && DNS_SUBDOMAIN.test(name);
}
