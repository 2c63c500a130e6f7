/** Real sockets, asked for anything, in a namespace where nothing leads out and services lead nowhere. */
import { execFile } from 'node:child_process';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import type { Counter } from '../dump.ts';
import { startRemote } from '../testing/remote.ts';
import { netnsPath, openSandbox, sh } from '../testing/sandbox.ts';
import type { DatapathConfig, Protocol, ServiceRow } from '../types.ts';

export interface SocketFuzz {
  readonly connects: number;
  readonly sends: number;
  readonly refused: number;
  /** How often the programs exchanged an address, and refused. */
  readonly translated: number;
  readonly withoutBackend: number;
}

const service = (ip: string, port: number, protocol: Protocol, backend?: string): ServiceRow => ({
  frontend: { ip, port, protocol },
  backends: backend === undefined ? [] : [{ ip: backend, port: 9, clusterId: 1 }],
  flags: 0,
});

const SERVICES = [80, 53].flatMap((port) => {
  const protocol = port === 80 ? 'TCP' : 'UDP';
  return [
    service('10.96.0.10', port, protocol, '127.0.0.1'),
    service('10.96.0.30', port, protocol),
    service('fd96::10', port, protocol, '::1'),
    service('fd96::30', port, protocol),
  ];
});

/** Throws with what was found, if anything was. */
export async function fuzzSockets(options: {
  readonly operations: number;
  readonly seed: number;
}): Promise<SocketFuzz> {
  const sandbox = await openSandbox();
  try {
    const program = join('/run', sandbox.name, 'sockets');
    sh('clang', '-O2', '-Wall', '-Werror', '-o', program, fileURLToPath(new URL('sockets.c', import.meta.url)));
    const netns = sandbox.netns('sockets');
    const config: DatapathConfig = {
      clusterId: 1,
      clusterName: 'c1',
      identityShift: 16,
      nodeName: 'n1',
      nodeIp: '172.31.0.1',
      gatewayIp: '10.1.1.1',
      podCidr: '10.1.1.0/24',
      bpffs: sandbox.bpffs,
      cgroup: sandbox.cgroup('sockets'),
      vxlanDevice: 'cm_vxlan',
    };
    const datapath = await startRemote({ script: 'node-process.ts', netns, args: [JSON.stringify(config)] });
    try {
      await datapath.call('update', { table: 'services', rows: SERVICES });
      const inside = ['-c', 'echo $$ > "$0/cgroup.procs" && exec nsenter "$@"', config.cgroup];
      const command = [`--net=${netnsPath(netns)}`, program, String(options.operations), String(options.seed)];
      const { stdout } = await promisify(execFile)('sh', [...inside, ...command], { timeout: 240_000 });
      const counters = await datapath.call<Counter[]>('dump', 'drops');
      const counted = (reason: string) =>
        counters.filter((one) => one.reason === reason).reduce((sum, { packets }) => sum + packets, 0);
      return {
        ...(JSON.parse(stdout) as Omit<SocketFuzz, 'translated' | 'withoutBackend'>),
        translated: counted('sock-translated'),
        withoutBackend: counted('no-backend'),
      };
    } finally {
      await datapath.kill();
    }
  } finally {
    await sandbox.close();
  }
}
