/** `clustermesh pki init`: the certificates that a standalone cluster starts with. Run again, it issues what is missing or ran out. */
import { isIP } from 'node:net';
import { relative, resolve } from 'node:path';
import { clusterNameProblem, isDnsSubdomain } from '@clustermesh/contract';
import { ensureClusterPki } from '@clustermesh/pki';
import { UsageError } from './exit-codes.ts';
import type { Terminal } from './terminal.ts';

export interface PkiInitOptions {
  readonly dir: string;
  readonly cluster: string;
  readonly serverIp: readonly string[];
  readonly serverName: readonly string[];
  readonly node: readonly string[];
}

export async function pkiInit(options: PkiInitOptions, terminal: Terminal): Promise<void> {
  const problems = [
    ...[clusterNameProblem(options.cluster)].filter((problem) => problem !== undefined),
    ...options.serverIp.filter((ip) => isIP(ip) === 0).map((ip) => `--server-ip ${ip} is no IP address`),
    ...options.serverName.filter((name) => !isDnsSubdomain(name)).map((name) => `--server-name ${name} is no DNS name`),
    ...options.node.filter((name) => !isDnsSubdomain(name)).map((name) => `--node ${name} is no node name`),
  ];
  if (problems.length > 0)
    throw new UsageError({ code: 'invalid-argument', message: `making certificates: ${problems.join('; ')}` });
  const dir = resolve(options.dir);
  const { issued } = await ensureClusterPki({
    dir,
    cluster: options.cluster,
    serverIps: options.serverIp,
    serverDnsNames: options.serverName,
    nodes: options.node,
  });
  for (const { file, reason } of issued) terminal.out(`issued ${relative(dir, file)} (${reason})`);
  terminal.out(
    issued.length === 0
      ? `${dir}: all certificates are there and valid, nothing was issued`
      : `${dir}: ${issued.length} issued; keys (*.key) stay on this machine, nodes/<node>/ belongs on that node`,
  );
}
