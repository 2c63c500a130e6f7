/**
 * Replacing a cluster's CA on disk. The phase is what the directory shows and nothing else, and every step is one atomic rename, so
 * that it can be killed anywhere and be run again:
 *
 *   ca.crt       the CAs that are trusted; ca.key belongs to one of them, and that one signs
 *   ca-next.key  the key of the one that will sign next; there between `announce` and `switch`
 */
import { existsSync, readFileSync, renameSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { MeshError } from '@clustermesh/contract';
import { atomicWrite } from '@clustermesh/runtime';
import { certificatesIn, createCaCertificate, isKeyOf } from './certificate.ts';
import { loadCa, loadCaBundle } from './files.ts';
import { CA_KEY_BITS, generateKeyPem } from './keys.ts';
import { writeCrl } from './peer-certificates.ts';
import type { RotationPhase, RotationStep } from './renewal.ts';

export function rotationPhase(pkiDir: string): RotationPhase {
  const isNextTrusted = nextCa(pkiDir) !== undefined;
  if (isNextTrusted) return 'announced';
  return certificatesIn(loadCaBundle(pkiDir)).length > 1 ? 'switched' : 'idle';
}

/** The new CA while it is announced: its certificates are trusted already, and it signs nothing but a trial. */
export function nextCa(pkiDir: string) {
  const file = join(pkiDir, 'ca-next.key');
  if (!existsSync(file)) return undefined;
  const keyPem = readFileSync(file, 'utf8');
  const certPem = certificatesIn(loadCaBundle(pkiDir)).find((pem) => isKeyOf(pem, keyPem));
  return certPem === undefined ? undefined : { certPem, keyPem };
}

/** Does one step; one that is done already, or that comes before the present phase, is refused as out of turn. */
export async function rotateCa(options: {
  readonly pkiDir: string;
  readonly cluster: string;
  readonly step: RotationStep;
  readonly now?: Date;
}): Promise<RotationPhase> {
  const { pkiDir, step } = options;
  const phase = rotationPhase(pkiDir);
  const due: Readonly<Record<RotationPhase, RotationStep>> = {
    idle: 'announce',
    announced: 'switch',
    switched: 'retire',
  };
  if (step !== due[phase])
    throw new MeshError({
      code: 'conflict',
      message: `rotating the CA of ${options.cluster}: ${step} is not the next step, ${due[phase]} is`,
      hint: `the rotation is ${phase}: see ${join(pkiDir, 'ca.crt')} and whether ca-next.key is there`,
    });
  if (step === 'announce') await announce(options);
  else if (step === 'switch') {
    renameSync(join(pkiDir, 'ca-next.key'), join(pkiDir, 'ca.key'));
    writeCrl(pkiDir);
  } else {
    atomicWrite(join(pkiDir, 'ca.crt'), loadCa(pkiDir).certPem, 0o644);
    rmSync(join(pkiDir, 'ca-next.key'), { force: true });
    writeCrl(pkiDir);
  }
  return rotationPhase(pkiDir);
}

async function announce({
  pkiDir,
  cluster,
  now,
}: {
  readonly pkiDir: string;
  readonly cluster: string;
  readonly now?: Date;
}) {
  const file = join(pkiDir, 'ca-next.key');
  // Left by an announcement that was killed: the key goes on, its certificate follows.
  if (!existsSync(file)) atomicWrite(file, await generateKeyPem(CA_KEY_BITS), 0o600);
  const keyPem = readFileSync(file, 'utf8');
  const { certPem } = createCaCertificate({ cluster, keyPem, ...(now === undefined ? {} : { now }) });
  atomicWrite(join(pkiDir, 'ca.crt'), loadCaBundle(pkiDir) + certPem, 0o644);
}
