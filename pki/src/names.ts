/**
 * Common names of certificates. etcd maps the CN of a client certificate to the user of that name (wire-contract §1.12), so
 * these are user names as well.
 */
export const SERVER_COMMON_NAME = 'clustermesh-apiserver.cilium.io';

export const adminUser = (cluster: string): string => `admin-${cluster}`;
export const localUser = (cluster: string): string => `local-${cluster}`;
export const nodeUser = (node: string): string => `node-${node}`;
/** The user by which the gate reads etcd for peers (apiserver/src/gate). */
export const gateUser = (cluster: string): string => `gate-${cluster}`;
/** The user of cluster `peer` in another cluster's etcd. */
export const remoteUser = (peer: string): string => `remote-${peer}`;

/**
 * The names every server certificate carries (wire-contract §7). The wildcard is why one certificate serves under any
 * `<cluster>.mesh.cilium.io`, and why a TLS name never tells two peers apart: only the cluster-config does.
 */
export function serverDnsNames(namespace = 'kube-system'): readonly string[] {
  return [SERVER_COMMON_NAME, '*.mesh.cilium.io', `clustermesh-apiserver.${namespace}.svc`, 'localhost'];
}

export const SERVER_IPS: readonly string[] = ['127.0.0.1', '::1'];
