/** How fast the agent's tables reach the kernel: against a bare loop of bpf_map_update_batch that writes the very same bytes. */
import { rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import type { Datapath, IpcacheRow, ServiceRow } from '@clustermesh/agent';
import { libbpf } from '@clustermesh/agent/testing/kernel';
import type { Sandbox } from '@clustermesh/agent/testing/sandbox';
import type { Emit } from '../report.ts';
import { atMost } from './aims.ts';
import { alternate, compare } from './pairs.ts';
import { openTables, taken } from './tables.ts';

const BACKENDS_PER_SERVICE = 50;
/** As the agent's. */
const BATCH = 1000;
/** For the kernel to free the rows of the round before: it does so in the background. */
const SETTLE_MS = 300;

export interface Amounts {
  readonly backends: number;
  readonly ipcache: number;
}

/** Rows of one kernel map, as bytes. */
interface Dump {
  readonly name: string;
  readonly count: number;
  readonly keySize: number;
  readonly valueSize: number;
  readonly keys: Buffer;
  readonly values: Buffer;
}

const address = (net: number, i: number): string => `${net + (i >> 16)}.${(i >> 8) & 255}.${i & 255}`;

function rowsOf({ backends, ipcache }: Amounts): { services: ServiceRow[]; addresses: IpcacheRow[] } {
  const services = Array.from({ length: Math.ceil(backends / BACKENDS_PER_SERVICE) }, (_, s): ServiceRow => {
    const count = Math.min(BACKENDS_PER_SERVICE, backends - s * BACKENDS_PER_SERVICE);
    return {
      frontend: { ip: `10.${address(96, s)}`, port: 80, protocol: 'TCP' },
      backends: Array.from({ length: count }, (_, b) => ({
        ip: `10.${address(100, s * BACKENDS_PER_SERVICE + b)}`,
        port: 8080,
        clusterId: 2,
      })),
      flags: 0,
    };
  });
  const addresses = Array.from(
    { length: ipcache },
    (_, i): IpcacheRow => ({
      prefix: `10.${address(100, i)}/32`,
      identity: 131_072 + (i % 1000),
      clusterId: 2,
      tunnelEndpoint: `172.31.${(i >> 8) % 250}.2`,
      encryptKey: 0,
    }),
  );
  return { services, addresses };
}

function dump(pin: string, name: string): Dump {
  const fd = libbpf.pinned(pin)!;
  try {
    const { keySize, valueSize, maxEntries } = libbpf.mapInfo(fd);
    const [keys, values] = [Buffer.alloc(maxEntries * keySize), Buffer.alloc(maxEntries * valueSize)];
    const { rc, count } = libbpf.lookupBatch(fd, null, Buffer.alloc(Math.max(4, keySize)), keys, values, maxEntries);
    if (rc !== 0 && rc !== -libbpf.ENOENT) throw libbpf.kernelError(`reading ${name} back`, rc);
    const used = (all: Buffer, size: number) => Buffer.from(all.subarray(0, count * size));
    return { name, count, keySize, valueSize, keys: used(keys, keySize), values: used(values, valueSize) };
  } finally {
    libbpf.closeFd(fd);
  }
}

function writeBare(datapath: Datapath, dumps: readonly Dump[]): void {
  for (const { name, count, keySize, valueSize, keys, values } of dumps) {
    const fd = libbpf.pinned(datapath.maps().find((map) => map.name === name)!.pin)!;
    for (let at = 0; at < count; at += BATCH) {
      const n = Math.min(BATCH, count - at);
      const slice = (all: Buffer, size: number) => all.subarray(at * size, (at + n) * size);
      const { rc } = libbpf.updateBatch(fd, slice(keys, keySize), slice(values, valueSize), n);
      if (rc < 0) throw libbpf.kernelError(`writing ${name}`, rc);
    }
    libbpf.closeFd(fd);
  }
}

export async function benchProgramming(sandbox: Sandbox, pairs: number, amounts: Amounts, emit: Emit): Promise<void> {
  const { services, addresses } = rowsOf(amounts);
  const WRITTEN = ['cm_services', 'cm_slots', 'cm_members', 'cm_backends', 'cm_ipcache'];
  /** What the tables made of the rows, for the bare loop to write. */
  let dumps: Dump[] = [];
  let round = 0;

  /** Into maps that were never written, and are gone afterwards. */
  async function timed(write: (datapath: Datapath) => void | Promise<void>): Promise<number> {
    const name = `programming-${round++}`;
    const datapath = await openTables(sandbox, name);
    try {
      const since = performance.now();
      await write(datapath);
      const elapsed = performance.now() - since;
      const written = datapath.maps().filter((map) => WRITTEN.includes(map.name));
      if (dumps.length === 0) dumps = written.map((map) => dump(map.pin, map.name));
      return elapsed;
    } finally {
      await datapath.close();
      rmSync(join(sandbox.bpffs, name), { recursive: true });
      await sleep(SETTLE_MS);
    }
  }

  const { ours, bare } = await alternate(pairs, {
    ours: () =>
      timed(async (datapath) => {
        await taken(datapath.services.update(services));
        await taken(datapath.ipcache.update(addresses));
      }),
    bare: () => timed((datapath) => writeBare(datapath, dumps)),
  });
  const name = `programming ${amounts.backends / 1000}k backends and ${amounts.ipcache / 1000}k addresses`;
  emit(atMost(name, 'ms', compare(ours, bare), 2));
}
