/** The node agent. A wiring list: what is built, in which order, and how it ends. */

import { join } from 'node:path';
import { type AgentMethods, identityShift, MeshError } from '@clustermesh/contract';
import { openEtcd } from '@clustermesh/kvstore';
import {
  configArgument,
  createLog,
  openZstd,
  runDaemon,
  serveHttp,
  serveRpc,
  systemClock,
  tryLock,
  version,
} from '@clustermesh/runtime';
import { startAgent } from './agent.ts';
import { type AgentConfig, loadAgentConfig } from './config.ts';
import { openDatapath } from './datapath/index.ts';
import { handlers } from './handlers.ts';
import { readInterfaces } from './interfaces.ts';

/** The config's words for it are Kubernetes', the datapath's are this code's. */
const datapathFamily = ({ ip, gatewayIP, podCIDR }: NonNullable<AgentConfig['node']['ipv6']>) => ({
  ...(ip === undefined ? {} : { nodeIp: ip }),
  gatewayIp: gatewayIP,
  podCidr: podCIDR,
});

const configPath = configArgument('clustermesh-agent');
const log = createLog('clustermesh-agent');

await runDaemon(log, async () => {
  const config = loadAgentConfig(configPath);
  const { cluster, node } = config;
  log.info({ cluster: cluster.name, node: node.name, version: version() }, 'starting');

  const lock = tryLock(join(config.stateDir, 'agent.lock'), `pid ${process.pid}`);
  if ('heldBy' in lock) {
    throw new MeshError({
      code: 'locked',
      message: `starting the agent of node ${node.name}: ${config.stateDir} is in use by ${lock.heldBy}`,
    });
  }
  const datapath = await openDatapath(
    {
      clusterId: cluster.id,
      clusterName: cluster.name,
      identityShift: identityShift(cluster.maxConnectedClusters),
      nodeName: node.name,
      nodeIp: node.ip,
      gatewayIp: node.gatewayIP,
      podCidr: node.podCIDR,
      ...(node.ipv6 === undefined ? {} : { ipv6: datapathFamily(node.ipv6) }),
      bpffs: config.datapath.bpffs,
      cgroup: config.datapath.cgroup,
      vxlanDevice: config.datapath.vxlanDevice,
      hostToRemotePods: config.datapath.hostToRemotePods,
      uplinks: config.datapath.uplinks,
      xdp: config.datapath.xdp,
      nodePortMode: config.datapath.nodePort.mode,
      ...(config.datapath.mapSizes === undefined ? {} : { mapSizes: config.datapath.mapSizes }),
    },
    { log: log.child({ subsystem: 'datapath' }) },
  );
  const etcd = openEtcd({ ...config.etcd, log: log.child({ subsystem: 'etcd' }) });
  const zstd = openZstd();
  const agent = await startAgent({ config, etcd, datapath, interfaces: readInterfaces, zstd, clock: systemClock, log });
  await datapath.attached;
  const rpc = await serveRpc<AgentMethods>('agent', config.socket, handlers(agent));
  const http = await serveHttp({ ...config.http, registry: agent.metrics, notReady: agent.notReady });
  log.info({ socket: config.socket }, 'ready for endpoints');

  return [
    () => rpc.close(),
    () => http.close(),
    () => agent.close(),
    () => etcd.close(),
    () => datapath.close(),
    async () => lock.release(),
  ];
});
