/** The load program (load.c), compiled for this run, and its processes inside namespaces. */
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { netnsPath, sh } from '@clustermesh/agent/testing/sandbox';

/** Client and server on a CPU each: left to itself, the scheduler puts them on one now and then, which halves or doubles figures. */
const CLIENT_CPU = '0';
const SERVER_CPU = '1';

/** Where a process runs: a namespace, and the cgroup it is in before it makes a socket. */
export interface Place {
  readonly netns: string;
  readonly cgroup: string;
}

export interface Target {
  readonly ip: string;
  readonly port: number;
}

export interface Load {
  /** Serves at `port` until the bench ends. */
  serve(place: Place, port: number): Promise<void>;
  /** Connections a second: connect, a byte each way, close. Throws if one failed. */
  connect(place: Place, target: Target, ms: number): Promise<number>;
  /** Half of all round trips of one byte took at most so many µs. */
  pingpong(place: Place, target: Target, ms: number): Promise<number>;
  /** Gbit/s of one connection. */
  stream(place: Place, target: Target, ms: number): Promise<number>;
}

interface Result {
  readonly count?: number;
  readonly errors?: number;
  readonly ns: number;
  readonly p50?: number;
  readonly bytes?: number;
}

export function compileLoad(directory: string): Load {
  const program = join(directory, 'load');
  sh('clang', '-O2', '-o', program, fileURLToPath(new URL('load.c', import.meta.url)));

  const command = ({ netns, cgroup }: Place, args: readonly string[]): [string, string[]] => [
    'sh',
    [
      '-c',
      'echo $$ > "$0/cgroup.procs" && exec nsenter "$@"',
      cgroup,
      `--net=${netnsPath(netns)}`,
      'setpriv',
      '--pdeathsig',
      'KILL',
      program,
      ...args,
    ],
  ];

  async function run(what: string, place: Place, { ip, port }: Target, ms: number): Promise<Result> {
    const [file, args] = command(place, [what, ip, String(port), String(ms), CLIENT_CPU]);
    const { stdout } = await promisify(execFile)(file, args, { timeout: ms + 20_000, killSignal: 'SIGKILL' });
    return JSON.parse(stdout) as Result;
  }

  return {
    async serve(place, port) {
      const [file, args] = command(place, ['serve', String(port), SERVER_CPU]);
      const child = spawn(file, args, { stdio: ['ignore', 'pipe', 'inherit'] });
      const ended = once(child, 'exit').then(() => {
        throw new Error(`the server at port ${port} in ${place.netns} has ended`);
      });
      ended.catch(() => undefined);
      await Promise.race([once(createInterface(child.stdout), 'line'), ended]);
      child.unref();
      (child.stdout as unknown as { unref(): void }).unref();
    },
    async connect(place, target, ms) {
      const { count, errors, ns } = await run('connect', place, target, ms);
      if (errors !== 0)
        throw new Error(`${errors} connections to ${target.ip}:${target.port} from ${place.netns} failed`);
      return (count! / ns) * 1e9;
    },
    pingpong: async (place, target, ms) => (await run('pingpong', place, target, ms)).p50! / 1000,
    async stream(place, target, ms) {
      const { bytes, ns } = await run('stream', place, target, ms);
      return (bytes! * 8) / ns;
    },
  };
}
