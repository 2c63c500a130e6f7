/** Calls to a child process, as JSON lines over its stdin and stdout. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';
import { netnsPath } from './sandbox.ts';

type Handlers = Record<string, (argument: never) => unknown>;

/** Child side: answers calls until stdin ends. */
export function serve(handlers: Handlers): void {
  const lines = createInterface(process.stdin);
  lines.on('line', (line) => {
    const { id, name, argument } = JSON.parse(line) as { id: number; name: string; argument: never };
    const answer = (body: object) => process.stdout.write(`${JSON.stringify({ id, ...body })}\n`);
    Promise.resolve()
      .then(() => handlers[name]!(argument))
      .then(
        (result) => answer({ result }),
        (error: Error) => answer({ error: error.message }),
      );
  });
  lines.on('close', () => process.exit(0));
  process.stdout.write('{"id":0}\n');
}

export interface Remote {
  pid: number;
  call<T>(name: string, argument?: unknown): Promise<T>;
  /** Ends it as kill -9 does. */
  kill(): Promise<void>;
}

export interface RemoteOptions {
  script: string;
  netns: string;
  /** Joined before anything else happens in the process. */
  cgroup?: string;
  args?: string[];
}

/** Starts a script of this folder inside a namespace; resolves when it takes calls. */
export async function startRemote({ script, netns, cgroup, args = [] }: RemoteOptions): Promise<Remote> {
  const path = fileURLToPath(new URL(script, import.meta.url));
  const join = cgroup === undefined ? '' : 'echo $$ > "$CGROUP/cgroup.procs" && ';
  const command = [`--net=${netnsPath(netns)}`, process.execPath, '--import', 'tsx', path, ...args];
  const child: ChildProcess = spawn('sh', ['-c', `${join}exec nsenter "$@"`, 'sh', ...command], {
    stdio: ['pipe', 'pipe', 'inherit'],
    env: { ...process.env, CGROUP: cgroup ?? '' },
  });
  const waiting = new Map<number, (message: { result?: unknown; error?: string }) => void>();
  let last = 0;
  const answered = (id: number) =>
    new Promise<{ result?: unknown; error?: string }>((resolve) => void waiting.set(id, resolve));
  createInterface(child.stdout!).on('line', (line) => {
    const message = JSON.parse(line) as { id: number; result?: unknown; error?: string };
    waiting.get(message.id)?.(message);
    waiting.delete(message.id);
  });
  const exited = once(child, 'exit');
  const ended = exited.then(() => ({ error: `${script} in ${netns} has ended` }));
  const ready = await Promise.race([answered(0), ended]);
  if ('error' in ready) throw new Error(ready.error);

  return {
    pid: child.pid!,
    async call<T>(name: string, argument?: unknown) {
      const id = ++last;
      child.stdin!.write(`${JSON.stringify({ id, name, argument })}\n`);
      const { result, error } = (await Promise.race([answered(id), ended])) as { result?: unknown; error?: string };
      if (error !== undefined) throw new Error(error);
      return result as T;
    },
    async kill() {
      child.kill('SIGKILL');
      await exited;
    },
  };
}
