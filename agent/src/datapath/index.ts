/**
 * The datapath as the agent core sees it: tables to fill, endpoints to attach. See README of bpf/ for what the kernel
 * side does with them.
 *
 * Everything here may be interrupted at any point and started again. Programs and maps are pinned or attached, so traffic
 * does not need this process; opening again takes over maps with their rows and ids and swaps programs in place.
 */
import { statfsSync } from 'node:fs';
import { release } from 'node:os';
import { join } from 'node:path';
import { maps as layouts, type MapName } from '@clustermesh/bpf';
import { ipv4Contains, MeshError } from '@clustermesh/contract';
import type { Log } from '@clustermesh/runtime';
import * as attach from './attach.ts';
import { dumpCt, dumpDrops, dumpNat, dumpRaw, usageOf } from './dump.ts';
import { openEvents } from './events.ts';
import { collectGarbage } from './garbage.ts';
import * as libbpf from './libbpf.ts';
import { ensureVxlan, interfaceIndex, underlayMtuOf } from './links.ts';
import { isPinned, openPrograms } from './loader.ts';
import { policyStateTable, policyTable } from './policy.ts';
import { requireFeatures, XDP_FEATURE } from './probe.ts';
import { withRoutes } from './routes.ts';
import { toCidr, toFamily } from './rows.ts';
import { openServices } from './services.ts';
import { openSocketDestroyer } from './socket-destroyer.ts';
import { endpointTable, ipcacheTable, nodeTable } from './tables.ts';
import type { Datapath, DatapathConfig, DumpName, EndpointRow } from './types.ts';
import { attachXdp } from './xdp.ts';

export * from './types.ts';

const BPF_FS_MAGIC = 0xcafe4a11;

/** Pins of one node; several nodes may share one bpffs. */
export const pinDirOf = (c: Pick<DatapathConfig, 'bpffs' | 'clusterName' | 'nodeName'>): string =>
  join(c.bpffs, 'clustermesh', c.clusterName, c.nodeName);

function check(config: DatapathConfig): void {
  let magic = 0;
  try {
    magic = statfsSync(config.bpffs).type;
  } catch {
    // falls through to the error below
  }
  if (magic !== BPF_FS_MAGIC) {
    throw new MeshError({
      code: 'invalid-config',
      message: `opening the datapath: ${config.bpffs} is not a mounted bpffs`,
      hint: `mount -t bpf bpf ${config.bpffs}`,
    });
  }
  const cidr = toCidr(config.podCidr);
  if (!ipv4Contains(cidr, config.gatewayIp)) {
    throw new MeshError({
      code: 'invalid-config',
      message: `opening the datapath: gatewayIP ${config.gatewayIp} is not in podCIDR ${config.podCidr}`,
    });
  }
}

/** Returns once tables can be read and written; the programs come into place meanwhile (`attached`). */
export async function openDatapath(config: DatapathConfig, { log }: { log: Log }): Promise<Datapath> {
  check(config);
  const lacking = requireFeatures(log, release());
  const pinDir = pinDirOf(config);
  const vxlanIfindex = await ensureVxlan(config.vxlanDevice);
  const underlayMtu = config.underlayMtu ?? (await underlayMtuOf(config.nodeIp));
  const setting = config.xdp ?? 'off';
  const isXdpMissing = setting !== 'off' && lacking.has(XDP_FEATURE);
  const hasXdp = setting !== 'off' && !isXdpMissing;
  const loaded = openPrograms({
    objects: ['sock', 'pod', 'overlay', 'netdev', ...(hasXdp ? (['xdp'] as const) : [])],
    optional: ['xdp'],
    pinDir,
    mapSizes: config.mapSizes,
    settings: {
      ipv4: toFamily(config),
      ipv6: toFamily(config.ipv6),
      vxlanIfindex,
      identityShift: config.identityShift,
      underlayMtu,
      isDsr: config.nodePortMode === 'dsr' ? 1 : 0,
    },
  });
  const { maps } = loaded;
  /** In the order in which it is to be closed. */
  const closers: (() => unknown)[] = [() => loaded.close()];
  const closeAll = async () => {
    for (const close of closers) await close();
  };

  try {
    // The pins go to the successors only if there will be programs over them.
    if (loaded.succeeded.length > 0) await loaded.verified;
    await loaded.carryOver();
    const destroyer = openSocketDestroyer({ maps, cgroup: config.cgroup, log });
    closers.unshift(destroyer.close);
    const services = await openServices(maps, destroyer);
    const events = openEvents(maps);
    closers.unshift(events.close);
    const rowsOfEndpoints = endpointTable(maps.cm_endpoints);
    const endpoints = { ...rowsOfEndpoints, list: listEndpoints };
    /** What was asked for and cannot be had. */
    let problems: readonly string[] = [];
    const attached = attachAll();
    attached.catch(() => {}); // Whoever waits for it is told.
    closers.unshift(() => attached.catch(() => {}));
    // Rows go to the new maps from here on: programs over the old ones would not see them.
    if (loaded.succeeded.length > 0) await attached;
    log.info({ pinDir, vxlanIfindex, migrated: loaded.succeeded }, 'datapath is open');

    async function attachAll(): Promise<void> {
      await loaded.verified;
      attach.attachSocketPrograms(loaded, config.cgroup, pinDir);
      attach.attachOverlay(loaded, vxlanIfindex);
      for (const uplink of config.uplinks ?? []) attach.attachUplink(loaded, interfaceIndex(uplink));
      // After tc: what XDP leaves is tc's.
      const refused = loaded.refused('xdp');
      problems = await attachXdp({
        loaded: hasXdp && refused === undefined ? loaded : undefined,
        setting,
        uplinks: config.uplinks ?? [],
        pinDir,
        log,
      });
      if (isXdpMissing || refused !== undefined) {
        const why = refused?.message ?? 'the kernel lacks what XDP needs (docs/kernel.md)';
        const text = `datapath.xdp is ${setting}, but ${why}: tc does its work`;
        if (setting === 'auto') log.info(text);
        else problems = [...problems, text];
      }
      const replaced = await reattachPods();
      await loaded.catchUp();
      destroyer.catchUp(services);
      log.info({ replaced }, 'programs are attached');
    }

    /** A row is worth nothing without its programs: then it reads as one whose veth is gone, and is attached anew. */
    async function listEndpoints(): Promise<Map<string, EndpointRow>> {
      const rows = await rowsOfEndpoints.list();
      for (const [ip, row] of rows) {
        const ifindex = libbpf.interfaceIndex(row.interface);
        if (ifindex === undefined || !attach.isPodAttached(ifindex)) rows.set(ip, { ...row, interface: '' });
      }
      return rows;
    }

    /** Pods that run with an older agent's programs get ours now, not when the agent core comes to them. */
    async function reattachPods(): Promise<number> {
      const names = [...(await rowsOfEndpoints.list()).values()].map((row) => row.interface);
      const attached = names.map(libbpf.interfaceIndex).filter((ifindex) => ifindex !== undefined);
      const ours = attached.filter(attach.isPodAttached);
      for (const ifindex of ours) attach.attachPod(loaded, ifindex);
      return ours.length;
    }

    async function attachEndpoint(row: EndpointRow): Promise<void> {
      await attached;
      const ifindex = interfaceIndex(row.interface);
      const [result] = await endpoints.update([row]);
      if (result?.error !== undefined) throw result.error;
      attach.attachPod(loaded, ifindex);
    }

    async function detachEndpoint(interfaceName: string): Promise<void> {
      const ifindex = libbpf.interfaceIndex(interfaceName);
      if (ifindex !== undefined) attach.detachPod(ifindex);
      // A veth that is gone took its name with it: then sweep all rows whose veth is gone.
      const isStale = (row: EndpointRow) => row.interface === interfaceName || row.interface === '';
      const stale = [...(await rowsOfEndpoints.list()).values()].filter(isStale).map((row) => row.ip);
      const failed = (await endpoints.remove(stale)).find((result) => result.error !== undefined);
      if (failed?.error !== undefined) throw failed.error;
    }

    const ipcache = await withRoutes(ipcacheTable(maps.cm_ipcache, maps.cm_ipcache_lpm), {
      vxlanDevice: config.vxlanDevice,
      underlayMtu,
      gatewayIp: config.gatewayIp,
      gatewayIp6: config.ipv6?.gatewayIp,
      hostToRemotePods: config.hostToRemotePods ?? false,
      log,
    });
    const nodes = nodeTable(maps.cm_nodes);
    const rows = async <Row extends object>(ops: { list(): Promise<Map<string, Row>> }) => [
      ...(await ops.list()).values(),
    ];
    const dumps: Record<DumpName, () => Promise<object[]>> = {
      ipcache: () => rows(ipcache),
      services: () => services.dump(),
      backends: () => services.dumpBackends(),
      endpoints: () => rows(endpoints),
      nodes: () => rows(nodes),
      drops: async () => dumpDrops(maps),
      ct: () => dumpCt(maps),
      nat: () => dumpNat(maps),
    };

    return {
      ipcache,
      services,
      endpoints,
      nodes,
      policies: policyTable(maps.cm_policy),
      policyStates: policyStateTable(maps.cm_policy_state),
      attached,
      attachEndpoint,
      detachEndpoint,
      dump: (map) => dumps[map](),
      maps: () =>
        (Object.keys(layouts) as MapName[])
          .filter((name) => maps[name] !== undefined && isPinned(name))
          .map((name) => ({ name, id: maps[name].id, maxEntries: maps[name].maxEntries, pin: join(pinDir, name) })),
      usage: () => usageOf(maps),
      collectGarbage: () => collectGarbage(maps, process.hrtime.bigint),
      destroyedSockets: destroyer.stats,
      dumpRaw: (name) => dumpRaw(maps, name),
      events,
      identityOf: (ip) =>
        (
          maps.cm_endpoints.lookup(ip) ??
          maps.cm_ipcache.lookup(ip) ??
          maps.cm_ipcache_lpm.lookup({ prefixLen: 128, net: ip })
        )?.identity,
      interfaceName: libbpf.interfaceName,
      problems: () => problems,
      close: closeAll,
    };
  } catch (error) {
    await closeAll();
    throw error;
  }
}
