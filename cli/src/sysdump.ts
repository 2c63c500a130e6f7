/** `clustermesh sysdump`: all that helps to understand a mesh from afar, in one file and without its secrets. */
import { spawn } from 'node:child_process';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { arch, cpus, hostname, platform, release, tmpdir, totalmem, uptime } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { type AgentMethods, MAP_NAMES, MeshError, messageOf } from '@clustermesh/contract';
import { dialRpc, version } from '@clustermesh/runtime';
import { doctor } from './doctor.ts';
import { redact } from './redact.ts';
import type { Side } from './side.ts';
import { report } from './status.ts';

/** One file of the bundle: its path there, and where its text comes from. */
interface Part {
  readonly path: string;
  readonly read: () => Promise<string>;
}

export interface SysdumpResult {
  /** Parts that could not be had, with the reason; they are in the bundle too. */
  readonly missing: readonly string[];
  readonly parts: number;
}

const json = (value: unknown): string => `${JSON.stringify(value, null, 2)}\n`;

/** Writes `file` (.tar.gz, 0600). What cannot be had leaves its reason in its place. */
export async function sysdump(options: {
  readonly sides: readonly Side[];
  /** Files of this host to be taken along: logs, configurations. */
  readonly include: readonly string[];
  readonly file: string;
}): Promise<SysdumpResult> {
  const parts = [hostPart(), ...options.sides.flatMap(partsOfCluster), ...includedParts(options.include)];
  const root = mkdtempSync(join(tmpdir(), 'clustermesh-sysdump-'));
  const name = basename(options.file).replace(/\.tar\.gz$/, '');
  const missing: string[] = [];
  try {
    for (const part of parts) {
      const text = await part.read().catch((error: unknown) => {
        missing.push(`${part.path}: ${messageOf(error)}`);
        return `could not be had: ${messageOf(error)}\n`;
      });
      const path = join(root, name, part.path);
      mkdirSync(dirname(path), { recursive: true, mode: 0o700 });
      // The one place where something is written: nothing gets past it.
      writeFileSync(path, redact(text), { mode: 0o600 });
    }
    await pack(root, name, options.file);
  } finally {
    rmSync(root, { recursive: true, force: true });
  }
  return { missing, parts: parts.length };
}

function hostPart(): Part {
  return {
    path: 'host.json',
    read: async () =>
      json({
        ...{ clustermesh: version(), node: process.version, takenAt: new Date().toISOString() },
        ...{ hostname: hostname(), platform: platform(), kernel: release(), arch: arch() },
        ...{ cpus: cpus().length, memoryBytes: totalmem(), uptimeSeconds: Math.round(uptime()) },
      }),
  };
}

function partsOfCluster(side: Side): Part[] {
  const { context } = side;
  const path = (file: string) => `${context.cluster}/${file}`;
  return [
    { path: path('handle.yaml'), read: async () => readFileSync(context.file, 'utf8') },
    {
      path: path('status.json'),
      read: async () => json(report(context.name, await side.call('GetStatus', {}))),
    },
    { path: path('facts.json'), read: async () => json(await side.call('GetFacts', {})) },
    { path: path('operations.json'), read: async () => json(await side.call('ListOperations', {})) },
    { path: path('doctor.json'), read: async () => json(await doctor(side, '')) },
    ...Object.entries(context.agents).flatMap(([node, address]) => partsOfNode(path(`nodes/${node}`), address)),
  ];
}

function partsOfNode(dir: string, address: string): Part[] {
  const ask = async <T>(use: (client: ReturnType<typeof dialRpc<AgentMethods>>) => Promise<T>): Promise<T> => {
    const client = dialRpc<AgentMethods>('agent', address);
    try {
      return await use(client);
    } finally {
      client.close();
    }
  };
  return [
    { path: `${dir}/status.json`, read: async () => json(await ask((agent) => agent.GetStatus({}))) },
    { path: `${dir}/endpoints.json`, read: async () => json(await ask((agent) => agent.EndpointList({}))) },
    ...MAP_NAMES.map((map) => ({
      path: `${dir}/maps/${map}.json`,
      read: async () => (await ask((agent) => agent.DumpMap({ map }))).json,
    })),
  ];
}

function includedParts(files: readonly string[]): Part[] {
  return files.map((file, index) => ({
    path: `included/${index + 1}-${basename(file)}`,
    read: async () => readFileSync(file, 'utf8'),
  }));
}

function pack(root: string, name: string, file: string): Promise<void> {
  return new Promise((resolve, reject) => {
    const fail = (why: string) =>
      reject(new MeshError({ code: 'internal', message: `writing ${file}: ${why}`, hint: 'is tar installed?' }));
    writeFileSync(file, '', { mode: 0o600 });
    const child = spawn('tar', ['-czf', file, '-C', root, name], { stdio: ['ignore', 'ignore', 'pipe'] });
    let said = '';
    child.stderr.on('data', (data: Buffer) => {
      said += data.toString();
    });
    child.once('error', (error) => fail(error.message));
    child.once('close', (code) => (code === 0 ? resolve() : fail(said.trim() || `tar ended with ${code}`)));
  });
}
