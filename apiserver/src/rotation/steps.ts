/**
 * The steps of `clustermesh rotate ca`. What is done already shows on the disk (pki/src/rotation.ts), so that each may be killed
 * anywhere and run again; what is waited for is told in the step's message, and waited for without an end: an operator may cancel, and
 * start again without whom it waits for.
 *
 *   announce-ca      both trusted, the old one signs
 *   await-trust      … until etcd was restarted with both, and peers and nodes hold both
 *   switch-ca        both trusted, the new one signs; our own leaves are issued anew
 *   await-renewal    … until nobody shows a certificate of the old one any more, and the overlap is over
 *   retire-ca        the old one is worth nothing
 */
import { MeshError } from '@clustermesh/contract';
import {
  certificateFacts,
  ensureClusterPki,
  loadCa,
  type RotationStep,
  rotateCa,
  rotationDecision,
  rotationPhase,
} from '@clustermesh/pki';
import type { RotateJobData, StepResult } from '../operations/model.ts';
import type { StepRun } from '../operations/queue.ts';
import type { RotationPorts } from './facts.ts';

type RotateRun = StepRun & { readonly data: RotateJobData };
type RotateStep = (ports: RotationPorts, run: RotateRun) => Promise<StepResult>;

const POLL_MS = 500;

export const ROTATE_STEPS = {
  'announce-ca': async (ports) => {
    if (rotationPhase(ports.pkiDir) === 'idle') await rotate(ports, 'announce');
    // Also what a step that was killed had left undone: the bundle in the nodes' directories.
    await issue(ports);
    return { message: 'the new CA is trusted beside the old one, which signs still' };
  },
  'await-trust': async (ports, run) => {
    if (rotationPhase(ports.pkiDir) === 'announced') await until(ports, run, 'switch');
    return { message: 'etcd, peers and nodes trust both CAs' };
  },
  'switch-ca': async (ports) => {
    if (rotationPhase(ports.pkiDir) === 'announced') await rotate(ports, 'switch');
    await issue(ports);
    return { message: `the new CA (${fingerprint(ports)}) signs; this cluster's own certificates are issued anew` };
  },
  'await-renewal': async (ports, run) => {
    if (rotationPhase(ports.pkiDir) === 'switched') await until(ports, run, 'retire');
    return { message: 'nobody needs the old CA any more' };
  },
  'retire-ca': async (ports) => {
    if (rotationPhase(ports.pkiDir) === 'switched') await rotate(ports, 'retire');
    await issue(ports);
    return { message: `the old CA is withdrawn; etcd forgets it when it is started next` };
  },
} satisfies Record<string, RotateStep>;

const rotate = (ports: RotationPorts, step: RotationStep) =>
  rotateCa({ pkiDir: ports.pkiDir, cluster: ports.cluster, step, now: new Date(ports.clock.wallMs()) });

const issue = (ports: RotationPorts) =>
  ensureClusterPki({ dir: ports.pkiDir, cluster: ports.cluster, now: new Date(ports.clock.wallMs()) });

const fingerprint = (ports: RotationPorts) => certificateFacts(loadCa(ports.pkiDir).certPem).fingerprint.slice(0, 16);

/** Resolves when `step` is the next one; says meanwhile what is waited for. */
async function until(ports: RotationPorts, { data, report, signal }: RotateRun, step: RotationStep): Promise<void> {
  for (;;) {
    if (signal.aborted)
      throw new MeshError({ code: 'cancelled', message: 'the step was interrupted', retryable: false });
    const decision = rotationDecision(await ports.facts(data, signal));
    if ('next' in decision && decision.next === step) return;
    if ('waitFor' in decision) report(`waiting for ${decision.waitFor}`);
    await ports.clock.sleep(POLL_MS, signal);
  }
}
