/** clustermesh-apiserver: one per cluster. The wiring, and nothing else. */
import { MeshError } from '@clustermesh/contract';
import { certificateFacts } from '@clustermesh/pki';
import {
  configArgument,
  createLog,
  loadConfig,
  runDaemon,
  serveHttp,
  systemClock,
  tryLock,
  version,
} from '@clustermesh/runtime';
import { Registry } from 'prom-client';
import { listenForAdmin, openAudit, readClusterFacts, readClusterInfo, startAdmin } from './admin/index.ts';
import { admittedPeers } from './bootstrap/users.ts';
import { configSchema, stateFiles } from './config.ts';
import { startControlPlane } from './control-plane.ts';
import { createSelfAudit } from './doctor/audit.ts';
import { diagnose } from './doctor/doctor.ts';
import { createInvites } from './invites/index.ts';
import { createInviting } from './join/inviting.ts';
import { createJoining } from './join/joining.ts';
import { openUnfinishedJoins } from './join/unfinished.ts';
import { createKvstoreMetrics } from './kvstore-metrics.ts';
import { createMetrics, MESH_METRICS, OWN_METRICS } from './metrics.ts';
import {
  createMeshSwitch,
  createPeerDirectory,
  disableMesh,
  housekeeping,
  startOperations,
  startSchedule,
} from './operations/index.ts';
import { createPeerIssuer, createPeerRenewal } from './peer-renewal.ts';
import { knownPeers } from './preflight/known-peers.ts';
import { runPreflight } from './preflight/preflight.ts';
import { mendTornLeaves, startRenewal } from './renewal.ts';
import { createRotationPorts, createTrustReports } from './rotation/index.ts';

const log = createLog('clustermesh-apiserver');
const configFile = configArgument('clustermesh-apiserver');

await runDaemon(log, async (signal) => {
  const config = loadConfig(configFile, configSchema);
  const { cluster, advertise } = config;
  const pkiDir = config.pki.dir;
  const own = {
    name: cluster.name,
    id: cluster.id,
    maxConnectedClusters: cluster.maxConnectedClusters,
    podCidr: cluster.podCIDR,
    podCidrV6: cluster.podCIDRv6,
    serviceCidrs: [cluster.serviceCIDR, cluster.serviceCIDRv6 ?? []].flat(),
  };
  // Two processes with one state directory would take each other for their own past (term.ts).
  const lock = tryLock(stateFiles(config.stateDir).lock, String(process.pid));
  if ('heldBy' in lock)
    throw new MeshError({
      code: 'locked',
      message: `starting with the state directory ${config.stateDir}: process ${lock.heldBy} runs with it`,
      hint: 'give every replica a state directory of its own',
    });
  log.info({ cluster: cluster.name, id: cluster.id, version: version() }, 'starting');

  await mendTornLeaves(pkiDir, cluster.name, log);
  const directory = createPeerDirectory({ dir: config.peersDir, ownName: cluster.name, log });
  const registry = new Registry();
  const metrics = {
    own: createKvstoreMetrics(OWN_METRICS, registry),
    mesh: createKvstoreMetrics(MESH_METRICS, registry),
  };
  const plane = startControlPlane({ config, directory, log, signal, metrics });
  const mesh = createMeshSwitch({ cluster: cluster.name, etcd: plane.etcd, fence: plane.bootstrap.fence });
  const trustReports = createTrustReports();
  const operations = startOperations({
    rotation: createRotationPorts({
      ...{ cluster: cluster.name, pkiDir, etcd: config.etcd, redis: config.redis, usersFile: config.usersFile },
      ...{ agents: plane.agents, reports: trustReports },
    }),
    own,
    pkiDir,
    stateDir: config.stateDir,
    redis: config.redis,
    peers: directory,
    users: plane.bootstrap,
    mirror: plane.mirror,
    agents: plane.agents,
    mayRun: plane.runsTerm,
    otherLeader: plane.otherLeader,
    mayConnect: mesh.check,
    log,
  });
  const info = () => readClusterInfo({ own, region: cluster.region, advertise, pkiDir });
  const facts = async () =>
    readClusterFacts({
      meshDisabled: await mesh.isDisabled(),
      cluster: info(),
      serviceCidr: cluster.serviceCIDR,
      nodes: plane.nodes.snapshot().nodes.values(),
      unixMs: systemClock.wallMs(),
    });
  const invites = createInvites({
    etcd: plane.etcd,
    own: () => {
      const { name, id, caPem } = info();
      return { cluster: name, clusterId: id, caPin: certificateFacts(caPem).fingerprint };
    },
    endpoints: advertise.admin,
    fence: plane.bootstrap.fence,
    log,
  });
  const doctor = (peer?: string) =>
    diagnose(
      {
        ...{ own, pkiDir, directory, log, wallMs: systemClock.wallMs, nodes: config.nodes },
        ...{ mirror: plane.mirror, agents: plane.agents, local: plane.local, etcd: plane.bootstrap },
        redisReachable: operations.redisReachable,
        admitted: () => admittedPeers(config.usersFile),
      },
      peer,
    );
  const audit = createSelfAudit(doctor, log.child({ subsystem: 'audit' }));
  const schedule = startSchedule({
    redis: config.redis,
    mayRun: plane.runsTerm,
    log,
    tasks: housekeeping({
      invites,
      operations,
      renewPeers: createPeerRenewal({ own: cluster.name, directory, log }).run,
      renewPeersEveryMs: config.timers.peerRenewalMs,
      audit: audit.run,
    }),
  });
  const renewal = startRenewal({
    ...{ pkiDir, cluster: cluster.name, log, signal },
    ...{ isLeading: plane.isLeading, otherLeader: plane.otherLeader },
  });
  const admin = await startAdmin({
    socket: config.admin.socket,
    clusterName: cluster.name,
    audit: openAudit({ file: config.admin.auditFile ?? stateFiles(config.stateDir).audit }),
    cluster: info,
    facts,
    diagnose: doctor,
    preflight: (request) =>
      runPreflight(
        {
          own,
          facts,
          knownPeers: () => knownPeers(directory, plane.mirror),
          etcd: plane.bootstrap,
          redisReachable: operations.redisReachable,
        },
        request,
      ),
    operations,
    mesh,
    disable: () =>
      disableMesh({
        ...{ mesh, invites, operations, directory, mirror: plane.mirror },
        admitted: () => admittedPeers(config.usersFile),
      }),
    inviting: createInviting({ invites, operations, cluster: info, mayConnect: mesh.check }),
    renewPeer: createPeerIssuer({ pkiDir, caPem: () => info().caPem }),
    rotateLeaves: renewal.rotateLeaves,
    onTrust: trustReports.note,
    join: createJoining({
      ...{ operations, cluster: info, log, signal },
      unfinished: openUnfinishedJoins(config.stateDir),
    }),
    mirror: plane.mirror,
    agents: plane.agents,
    local: plane.local,
    etcd: plane.bootstrap,
    nodes: config.nodes,
  });
  const { listen } = config.admin;
  const network =
    listen === undefined
      ? undefined
      : await listenForAdmin({ rpc: admin, listen, pkiDir, usersFile: config.usersFile, log, signal });
  createMetrics(registry, cluster.name, plane, () => (plane.runsTerm() ? audit.findings() : undefined));
  const http = await serveHttp({
    ...config.http,
    registry,
    notReady: plane.notReady,
  });

  // Callers first, then what they call, then what everything stands on.
  return [
    async () => network?.close(),
    admin.close,
    http.close,
    schedule.close,
    operations.close,
    () => renewal.ended,
    plane.close,
    async () => lock.release(),
  ];
});
