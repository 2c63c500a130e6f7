/** `clustermesh pki init`: the certificates that a standalone cluster starts with. Run again, it issues what is missing or ran out. */
import { isIP } from 'node:net';
import { relative, resolve } from 'node:path';
import { clusterNameProblem, isDnsSubdomain } from '@clustermesh/contract';
import { ensureClusterPki, importCa } from '@clustermesh/pki';
import { type CaPems, readCaFiles, readCaSecret } from './ca-source.ts';
import { UsageError } from './exit-codes.ts';
import type { Terminal } from './terminal.ts';

export interface PkiInitOptions {
  readonly dir: string;
  readonly cluster: string;
  readonly serverIp: readonly string[];
  readonly serverName: readonly string[];
  readonly node: readonly string[];
  /** Files of an existing CA; both or none. */
  readonly caCert?: string;
  readonly caKey?: string;
  /** Instead of them: a secret, mounted or as a manifest. */
  readonly caSecret?: string;
}

export async function pkiInit(options: PkiInitOptions, terminal: Terminal): Promise<void> {
  const problems = [
    ...[clusterNameProblem(options.cluster)].filter((problem) => problem !== undefined),
    ...options.serverIp.filter((ip) => isIP(ip) === 0).map((ip) => `--server-ip ${ip} is no IP address`),
    ...options.serverName.filter((name) => !isDnsSubdomain(name)).map((name) => `--server-name ${name} is no DNS name`),
    ...options.node.filter((name) => !isDnsSubdomain(name)).map((name) => `--node ${name} is no node name`),
    ...((options.caCert === undefined) === (options.caKey === undefined) ? [] : ['--ca-cert and --ca-key go together']),
    ...(options.caSecret !== undefined && options.caCert !== undefined
      ? ['--ca-secret takes the place of --ca-cert and --ca-key']
      : []),
  ];
  if (problems.length > 0)
    throw new UsageError({ code: 'invalid-argument', message: `making certificates: ${problems.join('; ')}` });
  const dir = resolve(options.dir);
  const ca = givenCa(options);
  if (ca !== undefined) importCa({ dir, ...ca });
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

function givenCa({ caCert, caKey, caSecret }: PkiInitOptions): CaPems | undefined {
  if (caSecret !== undefined) return readCaSecret(caSecret);
  return caCert === undefined || caKey === undefined ? undefined : readCaFiles(caCert, caKey);
}
