/** The PKI directory of one cluster: decisions are pure (`whyIssue`), writing is at the end. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { BlockList, isIP } from 'node:net';
import { join } from 'node:path';
import { MeshError, messageOf } from '@clustermesh/contract';
import { atomicWrite } from '@clustermesh/runtime';
import {
  type CertificateAuthority,
  certificateFacts,
  isIssuedBy,
  isKeyOf,
  type KeyAndCertificate,
} from './certificate.ts';
import { readCrl } from './crl.ts';
import { loadCa, loadCaBundle, privateDir, readPair, writePair } from './files.ts';
import { createCa, issueClient, issueServer } from './issue.ts';
import { adminUser, gateUser, localUser, nodeUser, SERVER_COMMON_NAME, SERVER_IPS, serverDnsNames } from './names.ts';
import { crlFile, writeCrl } from './peer-certificates.ts';
import { isRenewalDue } from './renewal.ts';

export interface ClusterPkiOptions {
  readonly dir: string;
  readonly cluster: string;
  /** Beyond 127.0.0.1 and ::1. */
  readonly serverIps?: readonly string[];
  /** Beyond the names of wire-contract §7. */
  readonly serverDnsNames?: readonly string[];
  /** Each gets `<dir>/{node.crt,node.key,ca.crt}`; default directory `<pki dir>/nodes/<node>`. */
  readonly nodes?: readonly (string | { readonly name: string; readonly dir: string })[];
  readonly now?: Date;
  /** Issues every leaf anew, whatever its age. Default: false. */
  readonly reissue?: boolean;
}

export interface ClusterPki {
  readonly ca: CertificateAuthority;
  /** Files that this call wrote, with the reason. Empty when all was there. */
  readonly issued: readonly { readonly file: string; readonly reason: string }[];
}

interface Wanted {
  readonly file: string;
  readonly commonName: string;
  readonly dnsNames: readonly string[];
  readonly ips: readonly string[];
  readonly issue: (ca: CertificateAuthority) => Promise<KeyAndCertificate>;
}

/**
 * Makes the directory complete: issues what is missing, due, or no longer right, and touches nothing else. What it holds already
 * (nodes below `nodes/`, names of the server) need not be named again.
 */
export async function ensureClusterPki(options: ClusterPkiOptions): Promise<ClusterPki> {
  refuseForeign(options.dir, options.cluster);
  const nodesDir = join(options.dir, 'nodes');
  const known = existsSync(nodesDir) ? readdirSync(nodesDir) : [];
  const named = (options.nodes ?? []).map((node) =>
    typeof node === 'string' ? { name: node, dir: join(nodesDir, node) } : node,
  );
  const nodes = [
    ...named,
    ...known
      .filter((name) => !named.some((node) => node.dir === join(nodesDir, name)))
      .map((name) => ({ name, dir: join(nodesDir, name) })),
  ];
  const covered = coveredNames(options.dir);
  const serverDnsExtra = [...new Set([...covered.dnsNames, ...(options.serverDnsNames ?? [])])];
  const serverIpExtra = [...new Set([...covered.ips, ...(options.serverIps ?? [])])];
  privateDir(options.dir);
  for (const node of nodes) privateDir(node.dir);

  const issued: { file: string; reason: string }[] = [];
  let ca = readPair(options.dir, 'ca') === undefined ? undefined : loadCa(options.dir);
  if (ca === undefined) {
    ca = await createCa(
      options.now === undefined ? { cluster: options.cluster } : { cluster: options.cluster, now: options.now },
    );
    writePair(options.dir, 'ca', ca);
    issued.push({ file: join(options.dir, 'ca.crt'), reason: 'missing' });
  }
  const authority = ca;

  const client = (file: string, commonName: string): Wanted => ({
    file,
    commonName,
    dnsNames: [],
    ips: [],
    issue: (signer) =>
      issueClient({ ca: signer, commonName, ...(options.now === undefined ? {} : { now: options.now }) }),
  });
  const server: Wanted = {
    file: join(options.dir, 'server'),
    commonName: SERVER_COMMON_NAME,
    dnsNames: [...serverDnsNames(), ...serverDnsExtra],
    ips: [...SERVER_IPS, ...serverIpExtra],
    issue: (signer) =>
      issueServer({
        ca: signer,
        dnsNames: serverDnsExtra,
        ips: serverIpExtra,
        ...(options.now === undefined ? {} : { now: options.now }),
      }),
  };
  const wanted = [
    server,
    client(join(options.dir, 'admin'), adminUser(options.cluster)),
    client(join(options.dir, 'local'), localUser(options.cluster)),
    client(join(options.dir, 'gate'), gateUser(options.cluster)),
    ...nodes.map((node) => client(join(node.dir, 'node'), nodeUser(node.name))),
  ];
  // In parallel: key generation runs on the thread pool.
  await Promise.all(
    wanted.map(async (leaf) => {
      const reason =
        whyIssue(readPair('', leaf.file), authority.certPem, leaf, options.now ?? new Date()) ??
        (options.reissue === true ? 'asked for' : undefined);
      if (reason === undefined) return;
      writePair('', leaf.file, await leaf.issue(authority));
      issued.push({ file: `${leaf.file}.crt`, reason });
    }),
  );
  for (const node of nodes) {
    const copy = join(node.dir, 'ca.crt');
    const bundle = loadCaBundle(options.dir);
    if (!existsSync(copy) || readFileSync(copy, 'utf8') !== bundle) atomicWrite(copy, bundle, 0o644);
  }
  const crlProblem = whyWriteCrl(crlFile(options.dir), authority.certPem);
  if (crlProblem !== undefined) {
    writeCrl(options.dir);
    issued.push({ file: crlFile(options.dir), reason: crlProblem });
  }
  return { ca: authority, issued };
}

/**
 * Leaves of which key and certificate do not belong together: a process that was killed between writing the one and the other. They
 * are of no use to anybody until `ensureClusterPki` issues them again.
 */
export function tornLeaves(dir: string): readonly string[] {
  return ['server', 'admin', 'local', 'gate'].filter((name) => {
    const pair = readPair(dir, name);
    return pair !== undefined && !isKeyOf(pair.certPem, pair.keyPem);
  });
}

/** The names that the server certificate has, for the next one. */
function coveredNames(dir: string): { readonly dnsNames: readonly string[]; readonly ips: readonly string[] } {
  const pair = readPair(dir, 'server');
  try {
    return pair === undefined ? { dnsNames: [], ips: [] } : certificateFacts(pair.certPem);
  } catch {
    return { dnsNames: [], ips: [] }; // torn: issued again with what is named now
  }
}

/** A directory of another cluster is not made over: with its CA, that cluster would lose every certificate that it ever issued. */
function refuseForeign(dir: string, cluster: string): void {
  const admin = readPair(dir, 'admin');
  if (admin === undefined) return;
  let user: string;
  try {
    user = certificateFacts(admin.certPem).commonName;
  } catch {
    return; // torn: issued again below
  }
  if (user === adminUser(cluster)) return;
  throw new MeshError({
    code: 'conflict',
    message: `making the certificates of cluster ${cluster} in ${dir}: they are another cluster's (${user} is its administrator)`,
    hint: 'give every cluster a directory of its own; a cluster cannot be renamed',
  });
}

/** Why a leaf must be issued again, or undefined when what is there serves. */
export function whyIssue(
  pair: KeyAndCertificate | undefined,
  caPem: string,
  wanted: { readonly commonName: string; readonly dnsNames: readonly string[]; readonly ips: readonly string[] },
  now: Date,
): string | undefined {
  if (pair === undefined) return 'missing';
  try {
    if (!isIssuedBy(pair.certPem, caPem)) return 'signed by another CA';
    if (!isKeyOf(pair.certPem, pair.keyPem)) return 'certificate and key do not belong together';
    const facts = certificateFacts(pair.certPem);
    if (facts.commonName !== wanted.commonName) return `common name is ${facts.commonName}`;
    if (facts.notBefore > now) return `valid only from ${facts.notBefore.toISOString()}: issued under a wrong clock`;
    if (facts.notAfter <= now) return `expired at ${facts.notAfter.toISOString()}`;
    if (isRenewalDue(facts, now.getTime())) return `due for renewal, it expires at ${facts.notAfter.toISOString()}`;
    const missing = [
      ...wanted.dnsNames.filter((name) => !facts.dnsNames.includes(name)),
      ...wanted.ips.filter((ip) => !facts.ips.some((has) => sameIp(has, ip))),
    ];
    return missing.length > 0 ? `does not cover ${missing.join(', ')}` : undefined;
  } catch (error) {
    if (error instanceof MeshError) return error.message;
    throw error;
  }
}

/** etcd lets nobody in while the list is missing; one that another CA has signed is not believed. */
function whyWriteCrl(file: string, caPem: string): string | undefined {
  if (!existsSync(file)) return 'missing';
  try {
    readCrl(readFileSync(file, 'utf8'), caPem);
    return undefined;
  } catch (error) {
    return messageOf(error);
  }
}

/** IPv6 addresses have several spellings; a block list compares their meaning. */
function sameIp(a: string, b: string): boolean {
  const family = isIP(a);
  if (family !== isIP(b)) return false;
  if (family !== 6) return a === b;
  const list = new BlockList();
  list.addAddress(a, 'ipv6');
  return list.check(b, 'ipv6');
}
