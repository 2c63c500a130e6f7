/** The files a standalone cluster runs from: certificates, daemon configs, the handle file that the CLI finds it by. */
import { createHash, randomBytes } from 'node:crypto';
import { mkdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { crlFile, ensureClusterPki } from '@clustermesh/pki';
import { atomicWrite, repoRoot } from '@clustermesh/runtime';
import { stringify } from 'yaml';
import { cgroupMount } from '../netns/cgroup.ts';
import { clusterPaths, instancePaths, nodeCgroup, nodePaths } from '../netns/names.ts';
import type { LabCluster, LabNode } from '../topology.ts';

export const ETCD_PORT = 2379;
/** Where peers come in: the port of Cilium's NodePort for them. */
export const GATE_PORT = 32379;
const ADMIN_PORT = 9882;
export const REDIS_PORT = 6379;

/** Peers and agents reach etcd by this name; the server certificate covers it and host aliases resolve it. */
const etcdName = (cluster: LabCluster) => `${cluster.name}.mesh.cilium.io`;

function etcdByName(cluster: LabCluster, port = ETCD_PORT) {
  return {
    endpoints: [`https://${etcdName(cluster)}:${port}`],
    hostAliases: [{ hostname: etcdName(cluster), ips: [cluster.controlPlaneIP] }],
  };
}

export const redisFiles = (dir: string) => ({
  password: join(dir, 'password'),
  acl: join(dir, 'users.acl'),
});

/** The one user that gets in. */
function writeRedisFiles(dir: string, cluster: string): void {
  const files = redisFiles(dir);
  const password = randomBytes(24).toString('base64url');
  const acl = readFileSync(join(repoRoot(), 'deploy/redis/users.acl'), 'utf8')
    .replace('CLUSTER', cluster)
    .replace('PREFIX', cluster)
    .replace('PASSWORD_SHA256', createHash('sha256').update(password).digest('hex'));
  atomicWrite(files.password, password, 0o600);
  atomicWrite(files.acl, acl, 0o600);
}

function apiserverConfig(instance: string, cluster: LabCluster) {
  const paths = clusterPaths(instance, cluster.name);
  return {
    cluster: {
      name: cluster.name,
      id: cluster.id,
      maxConnectedClusters: 255,
      region: cluster.region,
      serviceCIDR: cluster.serviceCIDR,
      serviceCIDRv6: cluster.ipv6?.serviceCIDR,
      podCIDR: cluster.podCIDR,
      podCIDRv6: cluster.ipv6?.podCIDR,
      defaultGlobalNamespace: cluster.defaultGlobalNamespace,
    },
    etcd: {
      endpoints: [`https://127.0.0.1:${ETCD_PORT}`],
      caFile: join(paths.pki, 'ca.crt'),
      certFile: join(paths.pki, 'admin.crt'),
      keyFile: join(paths.pki, 'admin.key'),
    },
    advertise: { ...etcdByName(cluster, GATE_PORT), admin: [`${cluster.controlPlaneIP}:${ADMIN_PORT}`] },
    pki: { dir: paths.pki },
    manifestsDir: paths.manifests,
    peersDir: paths.peers,
    usersFile: paths.users,
    peerAccess: 'gate',
    stateDir: paths.state,
    redis: {
      url: `rediss://127.0.0.1:${REDIS_PORT}`,
      username: `clustermesh-${cluster.name}`,
      passwordFile: redisFiles(paths.redis).password,
      caFile: join(paths.pki, 'ca.crt'),
      prefix: cluster.name,
    },
    admin: { socket: paths.socket, listen: { host: '0.0.0.0', port: ADMIN_PORT } },
    http: { host: '127.0.0.1', port: 9880 },
    nodes: cluster.nodes.map((node) => node.name),
    export: { endpointSlices: cluster.endpointSlices, leaseTtlSeconds: cluster.exportLeaseSeconds },
    timers: {
      heartbeatMs: 2_000,
      peerStatusMs: 2_000,
      nodeGraceMs: cluster.timers.nodeGraceMs,
      peerRenewalMs: 2_000,
    },
  };
}

function gateConfig(instance: string, cluster: LabCluster) {
  const { pki, users } = clusterPaths(instance, cluster.name);
  const tls = (name: string) => ({
    caFile: join(pki, 'ca.crt'),
    certFile: join(pki, `${name}.crt`),
    keyFile: join(pki, `${name}.key`),
  });
  return {
    cluster: cluster.name,
    listen: { host: '0.0.0.0', port: GATE_PORT },
    tls: tls('server'),
    etcd: { port: ETCD_PORT, ...tls('gate') },
    usersFile: users,
    crlFile: crlFile(pki),
    http: { port: 9881 },
  };
}

function agentConfig(instance: string, cluster: LabCluster, node: LabNode) {
  const paths = nodePaths(instance, cluster.name, node.name);
  return {
    cluster: { name: cluster.name, id: cluster.id, maxConnectedClusters: 255 },
    node: {
      name: node.name,
      ip: node.ip,
      zone: node.zone,
      region: cluster.region,
      podCIDR: node.podCIDR,
      gatewayIP: node.gatewayIP,
      ipv6: node.ipv6,
    },
    etcd: {
      ...etcdByName(cluster),
      caFile: join(paths.pki, 'ca.crt'),
      certFile: join(paths.pki, 'node.crt'),
      keyFile: join(paths.pki, 'node.key'),
    },
    socket: paths.socket,
    stateDir: paths.state,
    datapath: {
      bpffs: instancePaths(instance).bpffs,
      cgroup: join(cgroupMount(), nodeCgroup(instance, cluster.name, node.name)),
      vxlanDevice: 'cm_vxlan',
      hostToRemotePods: true,
    },
    http: { host: '127.0.0.1', port: 9879 },
    timers: { leaseSeconds: cluster.timers.agentLeaseSeconds },
  };
}

function handle(instance: string, cluster: LabCluster) {
  return {
    name: cluster.name,
    id: cluster.id,
    apiserver: `unix://${clusterPaths(instance, cluster.name).socket}`,
    agents: Object.fromEntries(
      cluster.nodes.map((node) => [node.name, `unix://${nodePaths(instance, cluster.name, node.name).socket}`]),
    ),
  };
}

export async function writeClusterFiles(instance: string, cluster: LabCluster): Promise<void> {
  const paths = clusterPaths(instance, cluster.name);
  for (const dir of [paths.manifests, paths.etcd, paths.redis, paths.peers, paths.state])
    mkdirSync(dir, { recursive: true, mode: 0o700 });
  atomicWrite(paths.config, stringify(apiserverConfig(instance, cluster)));
  atomicWrite(paths.gateConfig, stringify(gateConfig(instance, cluster)));
  for (const node of cluster.nodes) {
    const { state, config } = nodePaths(instance, cluster.name, node.name);
    mkdirSync(state, { recursive: true, mode: 0o700 });
    atomicWrite(config, stringify(agentConfig(instance, cluster, node)));
  }
  atomicWrite(paths.context, stringify(handle(instance, cluster)));
  await ensureClusterPki({
    dir: paths.pki,
    cluster: cluster.name,
    serverIps: [cluster.controlPlaneIP],
    serverDnsNames: [etcdName(cluster)],
    nodes: cluster.nodes.map((node) => node.name),
  });
  writeRedisFiles(paths.redis, cluster.name);
}
