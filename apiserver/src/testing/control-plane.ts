/**
 * A cluster for tests: a CA, a real etcd with TLS and client certificates, and the control plane in this process. Everything is on
 * loopback and in a directory of its own, and goes with the test.
 */
import { cpSync, mkdirSync, mkdtempSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import {
  type AgentStatus,
  agentKey,
  endpointRecordKey,
  type NodeRecord,
  nodeRecordKey,
  nodeSyncedKey,
} from '@clustermesh/contract';
import type { Etcd, EtcdOptions } from '@clustermesh/kvstore';
import { type EtcdServer, startEtcd } from '@clustermesh/kvstore/testing';
import { ensureClusterPki, issueClient, type KeyAndCertificate, loadCa } from '@clustermesh/pki';
import { createLog, silentLog, waitFor } from '@clustermesh/runtime';
import { configSchema } from '../config.ts';
import { type ControlPlane, type ControlPlaneOptions, startControlPlane } from '../control-plane.ts';
import { createPeerDirectory } from '../operations/index.ts';

export interface TestClusterOptions {
  readonly name: string;
  readonly id: number;
  readonly nodes?: readonly string[];
  readonly timers?: Readonly<Record<string, number>>;
  readonly cluster?: Readonly<Record<string, unknown>>;
  /** Further sections of apiserver.yaml. */
  readonly config?: Readonly<Record<string, unknown>>;
  readonly metrics?: ControlPlaneOptions['metrics'];
  readonly clock?: ControlPlaneOptions['clock'];
  readonly etcdArgs?: readonly string[];
  /** Another control plane on the etcd of this one; everything else is its own. */
  readonly replicaOf?: TestCluster;
  /** Where this one's control plane finds the etcd, e.g. a proxy. */
  readonly endpoint?: string;
}

export interface TestCluster {
  readonly name: string;
  readonly id: number;
  readonly root: string;
  readonly server: EtcdServer;
  /** As admin-<cluster>, independent of the control plane. */
  readonly admin: Etcd;
  readonly plane: ControlPlane;
  /** Starts the control plane (again, as after a restart of the process). */
  start(): Promise<void>;
  /** Ends the control plane; etcd goes on. */
  stop(): Promise<void>;
  /** Another client of this cluster's etcd with a certificate of the given common name, signed by this cluster's CA. */
  clientAs(commonName: string, overrides?: Partial<EtcdOptions>): Promise<Etcd>;
  /** A file renamed into the manifests directory; undefined removes it. */
  manifest(name: string, text: string | undefined): void;
  /** Everything under a prefix: key → text. */
  dump(prefix: string): Promise<Record<string, string>>;
  /** What an agent of this cluster would publish. */
  publishNode(
    node: string,
    index: number,
    endpoints: readonly TestEndpoint[],
    ipv6?: NodeRecord['ipv6'],
  ): Promise<void>;
  publishAgent(status: Partial<AgentStatus> & { readonly node: string }): Promise<void>;
  eventually<T>(what: string, condition: () => T | Promise<T>): Promise<NonNullable<T>>;
}

export interface TestEndpoint {
  readonly id: string;
  readonly ipv4: string;
  readonly ipv6?: string;
  readonly namespace?: string;
  readonly app?: string;
  readonly identity: number;
}

const TIMEOUT_MS = 60_000;
/** Every etcd of a test run listens for the end of the process. */
process.setMaxListeners(100);

/** Keys take longer to make than anything else here, so every certificate is made once per process. */
const pkis = new Map<string, Promise<string>>();
const clients = new Map<string, Promise<KeyAndCertificate>>();

async function pkiOf(cluster: string): Promise<string> {
  const make = async () => {
    const dir = mkdtempSync(join(tmpdir(), `cm-cp-pki-${cluster}-`));
    process.once('exit', () => rmSync(dir, { recursive: true, force: true }));
    await ensureClusterPki({ dir, cluster });
    return dir;
  };
  const made = pkis.get(cluster) ?? make();
  pkis.set(cluster, made);
  return made;
}

async function clientCertificate(cluster: string, commonName: string): Promise<KeyAndCertificate> {
  const key = `${cluster} ${commonName}`;
  const made = clients.get(key) ?? pkiOf(cluster).then((dir) => issueClient({ ca: loadCa(dir), commonName }));
  clients.set(key, made);
  return made;
}

export async function startCluster(t: TestContext, options: TestClusterOptions): Promise<TestCluster> {
  const { name, id, replicaOf, metrics, clock } = options;
  const root = mkdtempSync(join(tmpdir(), `cm-cp-${name}-`));
  const path = (...parts: string[]) => join(root, ...parts);
  cpSync(await pkiOf(name), path('pki'), { recursive: true });
  const tls = {
    caFile: path('pki', 'ca.crt'),
    certFile: path('pki', 'server.crt'),
    keyFile: path('pki', 'server.key'),
  };
  const server = replicaOf?.server ?? (await startEtcd({ tls, extraArgs: options.etcdArgs ?? [] }));
  const endpoint = options.endpoint ?? server.endpoint;
  const adminFiles = { caFile: tls.caFile, certFile: path('pki', 'admin.crt'), keyFile: path('pki', 'admin.key') };
  const log = process.env.CM_TEST_LOG === undefined ? silentLog() : createLog(`test-${name}`);

  const config = configSchema.parse({
    cluster: {
      ...{
        name,
        id,
        serviceCIDR: '10.96.0.0/16',
        podCIDR: `10.${id}.0.0/16`,
        podCIDRv6: `fd00:${id}::/32`,
        region: `${name}-region`,
      },
      ...options.cluster,
    },
    etcd: { endpoints: [endpoint], ...adminFiles },
    advertise: { endpoints: [server.endpoint] },
    pki: { dir: path('pki') },
    manifestsDir: path('manifests'),
    peersDir: path('clustermesh'),
    usersFile: path('users.yaml'),
    stateDir: path('state'),
    redis: { path: path('redis.sock') },
    admin: { socket: path('apiserver.sock') },
    http: { port: 0 },
    nodes: options.nodes ?? [],
    timers: {
      heartbeatMs: 1000,
      peerStatusMs: 2000,
      nodeGraceMs: 60_000,
      withdrawWaitMs: 500,
      drainWaitMs: 2000,
      ...options.timers,
    },
    election: { ttlSeconds: 2 },
    ...options.config,
  });

  let stopPlane: (() => Promise<void>) | undefined;
  let plane: ControlPlane | undefined;
  const admin = server.client(adminFiles);
  const podPrefix = (node: number) => `10.${id}.${node}`;

  const cluster: TestCluster = {
    ...{ name, id, root, server, admin },
    get plane() {
      if (plane === undefined) throw new Error(`control plane of ${name} is not running`);
      return plane;
    },
    async start() {
      const abort = new AbortController();
      const directory = createPeerDirectory({ dir: config.peersDir, ownName: name, log });
      const started = startControlPlane({
        config,
        directory,
        log,
        signal: abort.signal,
        ...(metrics && { metrics }),
        ...(clock && { clock }),
      });
      plane = started;
      stopPlane = async () => {
        abort.abort();
        await started.close();
      };
    },
    async stop() {
      await stopPlane?.();
      stopPlane = undefined;
      plane = undefined;
    },
    async clientAs(commonName, overrides = {}) {
      const pair = await clientCertificate(name, commonName);
      const dir = path('clients', commonName.replaceAll('/', '_'));
      const [certFile, keyFile] = [join(dir, 'tls.crt'), join(dir, 'tls.key')];
      mkdirSync(dir, { recursive: true });
      writeFileSync(certFile, pair.certPem);
      writeFileSync(keyFile, pair.keyPem, { mode: 0o600 });
      return server.client({ caFile: tls.caFile, certFile, keyFile, ...overrides });
    },
    manifest(file, text) {
      mkdirSync(config.manifestsDir, { recursive: true });
      if (text === undefined) return rmSync(join(config.manifestsDir, file), { force: true });
      writeFileSync(path('incoming'), text);
      renameSync(path('incoming'), join(config.manifestsDir, file));
    },
    async dump(prefix) {
      const { kvs } = await admin.range(prefix);
      return Object.fromEntries(kvs.map((kv) => [kv.key, kv.value.toString()]));
    },
    async publishNode(node, index, endpoints, ipv6) {
      const record = {
        name: node,
        internalIp: `172.31.${id}.${10 + index}`,
        gatewayIp: `${podPrefix(index)}.1`,
        podCidr: `${podPrefix(index)}.0/24`,
        ...(ipv6 === undefined ? {} : { ipv6 }),
      };
      await admin.put(nodeRecordKey(node), JSON.stringify(record));
      for (const { id: endpoint, namespace = 'shop', app = 'web', ...fields } of endpoints) {
        const labels = `k8s:app=${app};k8s:io.cilium.k8s.policy.cluster=${name};k8s:io.kubernetes.pod.namespace=${namespace};`;
        const value = { id: endpoint, namespace, pod: endpoint, labels, ...fields };
        await admin.put(endpointRecordKey(node, endpoint), JSON.stringify(value));
      }
      await admin.put(nodeSyncedKey(node), new Date().toISOString());
    },
    async publishAgent(status) {
      const full = { version: '0', updatedAt: new Date().toISOString(), applied: {}, problems: [], ...status };
      await admin.put(agentKey(status.node), JSON.stringify(full));
    },
    eventually: (what, condition) =>
      waitFor(condition, { what: `${name}: ${what}`, timeoutMs: TIMEOUT_MS, intervalMs: 20 }),
  };
  t.after(async () => {
    await cluster.stop();
    if (replicaOf === undefined) await server.close();
    rmSync(root, { recursive: true, force: true });
  });
  await cluster.start();
  return cluster;
}

/** Makes `from` a reader of `to`, as a connect does: a certificate of `to`'s CA, the user there, the peer file here. */
export async function connect(
  from: TestCluster,
  to: TestCluster,
  overrides: {
    readonly endpoint?: string;
    readonly as?: string;
    readonly podCidr?: string;
    readonly podCidrV6?: string;
  } = {},
): Promise<void> {
  const pair = await clientCertificate(to.name, `remote-${from.name}`);
  await to.eventually('bootstrap', () => to.plane.bootstrap.ready());
  await to.plane.bootstrap.addPeer(from.name);
  const directory = createPeerDirectory({
    dir: join(from.root, 'clustermesh'),
    ownName: from.name,
    log: silentLog(),
  });
  await directory.write({
    name: overrides.as ?? to.name,
    endpoints: [overrides.endpoint ?? to.server.endpoint],
    hostAliases: [],
    caPem: loadCa(join(to.root, 'pki')).certPem,
    certPem: pair.certPem,
    keyPem: pair.keyPem,
    agreed: {
      id: 0,
      podCidr: overrides.podCidr ?? `10.${to.id}.0.0/16`,
      podCidrV6: overrides.podCidrV6 ?? `fd00:${to.id}::/32`,
    },
  });
}

export function disconnect(from: TestCluster, peer: string): void {
  rmSync(join(from.root, 'clustermesh', peer), { force: true });
}

/** A global Service `shop/web` with one slice. */
export function shopManifest(addresses: readonly string[], annotations = ''): string {
  return `apiVersion: v1
kind: Service
metadata: { name: web, namespace: shop, annotations: { service.cilium.io/global: "true"${annotations} } }
spec: { clusterIP: 10.96.0.10, ports: [{ name: http, port: 80 }] }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: web-1, namespace: shop, labels: { kubernetes.io/service-name: web } }
addressType: IPv4
endpoints: [${addresses.map((ip) => `{ addresses: ["${ip}"] }`).join(', ')}]
ports: [{ name: http, port: 8080 }]
`;
}
