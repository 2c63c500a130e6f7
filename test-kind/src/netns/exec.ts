/** Short-lived helper programs (ip, nft, umount): run, captured, and reported as what was attempted. */
import { spawn } from 'node:child_process';
import { MeshError } from '@clustermesh/contract';

export interface Output {
  readonly code: number;
  readonly stdout: string;
  readonly stderr: string;
}

export interface RunOptions {
  readonly input?: string | undefined;
  readonly timeoutMs?: number | undefined;
}

/** Runs a program to its end; resolves whatever its exit code. */
export function capture(command: string, args: readonly string[], options: RunOptions = {}): Promise<Output> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, { stdio: ['pipe', 'pipe', 'pipe'] });
    const stdout: Buffer[] = [];
    const stderr: Buffer[] = [];
    const timer = setTimeout(() => child.kill('SIGKILL'), options.timeoutMs ?? 30_000);
    child.stdout.on('data', (chunk: Buffer) => stdout.push(chunk));
    child.stderr.on('data', (chunk: Buffer) => stderr.push(chunk));
    child.on('error', (error: NodeJS.ErrnoException) => {
      clearTimeout(timer);
      const missing = error.code === 'ENOENT';
      reject(
        new MeshError({
          code: missing ? 'not-found' : 'internal',
          message: `running ${command}: ${missing ? 'it is not installed' : error.message}`,
          hint: missing ? 'npm run setup installs what the lab needs' : undefined,
          cause: error,
        }),
      );
    });
    child.on('close', (code, signal) => {
      clearTimeout(timer);
      const killed = signal === null ? '' : `ended by ${signal}`;
      resolve({
        code: code ?? 128,
        stdout: Buffer.concat(stdout).toString(),
        stderr: Buffer.concat(stderr).toString() || killed,
      });
    });
    child.stdin.on('error', () => {}); // the program may end without reading its input
    child.stdin.end(options.input ?? '');
  });
}

/** Runs a program that has to succeed; `attempted` begins the error message. */
export async function run(
  attempted: string,
  command: string,
  args: readonly string[],
  options: RunOptions = {},
): Promise<string> {
  const output = await capture(command, args, options);
  if (output.code === 0) return output.stdout;
  throw new MeshError({
    code: 'kernel',
    message: `${attempted}: ${command} ended with exit code ${output.code}: ${output.stderr.trim() || 'no message'}`,
  });
}

/** The lines as one `ip -batch`, in the named namespace or the root one: one process for any number of changes. */
export async function ipBatch(attempted: string, lines: readonly string[], namespace?: string): Promise<void> {
  if (lines.length === 0) return;
  const input = `${lines.join('\n')}\n`;
  const output = await capture('ip', [...(namespace === undefined ? [] : ['-n', namespace]), '-batch', '-'], { input });
  if (output.code === 0) return;
  // "Command failed -:3": point at the line rather than leave the counting to the reader.
  const number = /Command failed -:(\d+)/.exec(output.stderr)?.[1];
  const line = number === undefined ? '' : ` at "${lines[Number(number) - 1]}"`;
  const why = output.stderr.replace(/Command failed -:\d+/g, '').trim();
  throw new MeshError({
    code: 'kernel',
    message: `${attempted}: ip failed${line}${namespace === undefined ? '' : ` in ${namespace}`}: ${why}`,
  });
}

/** How to run a command in a network namespace: nsenter, because `ip netns exec` hides bpffs and cgroups. */
export function inNamespace(namespace: string, command: readonly string[]): string[] {
  return ['nsenter', `--net=/run/netns/${namespace}`, '--', ...command];
}
