import type { CommandKit } from '../command-kit.ts';
import { EXIT_CODES_HELP } from '../exit-codes.ts';
import { type PkiInitOptions, pkiInit } from '../pki.ts';

export function addPki({ add, terminal }: CommandKit): void {
  const pki = add('pki', 'certificates of a standalone cluster');
  const several = (value: string, previous: readonly string[]) => [...previous, value];
  add(
    'init',
    'make the CA and the certificates a cluster starts with; run again, it issues what is missing or ran out',
    pki,
  )
    .requiredOption('--dir <directory>', 'where they are kept: pki.dir of apiserver.yaml')
    .requiredOption('--cluster <name>', 'name of the cluster')
    .option('--server-ip <address>', 'address of etcd beyond 127.0.0.1 and ::1; may be repeated', several, [])
    .option('--server-name <name>', 'name of etcd beyond *.mesh.cilium.io and localhost; may be repeated', several, [])
    .option('--node <name>', 'node whose agent gets a certificate in nodes/<name>; may be repeated', several, [])
    .option('--ca-cert <file>', 'existing CA to sign with, self-signed and RSA; default: a new one is made')
    .option('--ca-key <file>', 'its private key')
    .option(
      '--ca-secret <path>',
      'the same from a secret of cert-manager: the directory it is mounted at, or its manifest',
    )
    .addHelpText('after', `\n${EXIT_CODES_HELP}`)
    .action((given: PkiInitOptions) => pkiInit(given, terminal));
}
