/** Starts what is measured: bundled as the daemons are, each in a process of its own that ends with this one. */
import { type ChildProcess, spawn } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { repoRoot } from '@clustermesh/runtime';
import { build } from 'esbuild';
import type { LoadShape } from './load.ts';
import type { AgentSettings, AppliedRow, BaselineResult, FromAgent, Sample, ToAgent } from './messages.ts';

const NAMES = { agent: 'bench-scale-agent', baseline: 'bench-scale-baseline' } as const;

const OWN_SCRIPTS = {
  [NAMES.agent]: 'bench/src/scale/agent-process.ts',
  [NAMES.baseline]: 'bench/src/scale/baseline-process.ts',
};

/** Scripts by the name of their bundle. The third-party packages stay outside, so bundles lie where those are found: in dist/. */
export async function bundle(scripts: Readonly<Record<string, string>> = OWN_SCRIPTS): Promise<void> {
  const root = repoRoot();
  const { dependencies } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8')) as { dependencies: object };
  await build({
    absWorkingDir: root,
    entryPoints: Object.entries(scripts).map(([out, source]) => ({ in: source, out })),
    outdir: 'dist',
    outExtension: { '.js': '.mjs' },
    bundle: true,
    format: 'esm',
    platform: 'node',
    target: 'node20',
    external: Object.keys(dependencies).flatMap((name) => [name, `${name}/*`]),
    sourcemap: true,
    logLevel: 'error',
  });
}

function startNode(name: string, nodeFlags: readonly string[], args: readonly string[]): ChildProcess {
  const script = join(repoRoot(), 'dist', `${name}.mjs`);
  const command = ['--pdeathsig', 'KILL', process.execPath, ...nodeFlags, script, ...args];
  // Its log goes where progress goes; stdout is for the results.
  return spawn('setpriv', command, {
    stdio: ['ignore', process.stderr, process.stderr, 'ipc'],
    env: { CM_LOG_LEVEL: 'warn', ...process.env },
  });
}

const failed = (name: string, code: unknown) => new Error(`${name} ended early, with status ${code}`);

export async function runBaseline(settings: AgentSettings, shape: LoadShape): Promise<BaselineResult> {
  const child = startNode(NAMES.baseline, [], [JSON.stringify(settings), JSON.stringify(shape)]);
  const exited = once(child, 'exit');
  const [result] = await Promise.race([
    once(child, 'message'),
    exited.then(([code]) => Promise.reject(failed(NAMES.baseline, code))),
  ]);
  await exited;
  return result as BaselineResult;
}

export interface AgentProcess {
  readonly bootstrapped: Promise<Extract<FromAgent, { type: 'bootstrapped' }>>;
  readonly samples: readonly Sample[];
  onApplied: (rows: readonly AppliedRow[]) => void;
  follow(on: boolean): void;
  kernel(): Promise<Extract<FromAgent, { type: 'kernel' }>>;
  stop(): Promise<void>;
}

export function startAgentProcess(settings: AgentSettings, nodeFlags: readonly string[]): AgentProcess {
  const child = startNode(NAMES.agent, nodeFlags, [JSON.stringify(settings)]);
  const samples: Sample[] = [];
  let isStopping = false;
  const exited = once(child, 'exit').then(([code]) => {
    if (!isStopping) throw failed(NAMES.agent, code);
  });
  exited.catch(() => {});
  const listeners = new Map<FromAgent['type'], (message: never) => void>();
  const heard = <Type extends FromAgent['type']>(type: Type) =>
    Promise.race([
      new Promise<Extract<FromAgent, { type: Type }>>((resolve) => listeners.set(type, resolve)),
      exited.then(() => Promise.reject(failed(NAMES.agent, 0))),
    ]);
  const tell = (message: ToAgent) => void child.send(message);
  const agent: AgentProcess = {
    bootstrapped: heard('bootstrapped'),
    samples,
    onApplied: () => {},
    follow: (on) => tell({ type: 'follow', on }),
    kernel() {
      const answer = heard('kernel');
      tell({ type: 'report-kernel' });
      return answer;
    },
    async stop() {
      isStopping = true;
      tell({ type: 'stop' });
      await exited;
    },
  };
  child.on('message', (message: FromAgent) => {
    if (message.type === 'sample') samples.push(message.sample);
    else if (message.type === 'applied') agent.onApplied(message.rows);
    else listeners.get(message.type)?.(message as never);
  });
  return agent;
}
