import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { MeshError } from '@clustermesh/contract';
import {
  decodeFailure,
  encodeFailure,
  eventsBetween,
  isFinished,
  type OperationSnapshot,
  type StepSnapshot,
} from './model.ts';

const step = (
  name: StepSnapshot['step'],
  state: StepSnapshot['state'],
  message = '',
  more: Partial<StepSnapshot> = {},
): StepSnapshot => ({ step: name, state, message, ...more });
const connect = (...steps: StepSnapshot[]): OperationSnapshot => ({
  id: 'connect-us-1',
  kind: 'connect',
  peer: 'us',
  steps,
});
const short = (previous: OperationSnapshot | undefined, next: OperationSnapshot) =>
  eventsBetween(previous, next).map((event) => `${event.state} ${event.step} ${event.message}`.trim());

const waiting = connect(
  step('authorize-peer', 'active', 'checking'),
  step('install-credentials', 'pending'),
  step('await-sync', 'pending'),
);
const signed = connect(
  step('authorize-peer', 'done', 'may read', { certificatePem: 'PEM' }),
  step('install-credentials', 'active'),
  step('await-sync', 'pending'),
);
const done = connect(
  step('authorize-peer', 'done', 'may read', { certificatePem: 'PEM' }),
  step('install-credentials', 'done', 'configured'),
  step('await-sync', 'done', 'here'),
);

describe('the events of an operation', () => {
  it('tell each change once', () => {
    assert.deepEqual(short(undefined, waiting), ['active authorize-peer checking']);
    assert.deepEqual(short(waiting, waiting), []);
    assert.deepEqual(short(waiting, signed), ['active authorize-peer may read']);
    assert.deepEqual(short(signed, done), [
      'active install-credentials configured',
      'active await-sync here',
      'done  here',
    ]);
    assert.deepEqual(short(done, done), []);
  });

  it('leave no step out for a watcher who comes late', () => {
    assert.deepEqual(short(undefined, done), [
      'active authorize-peer may read',
      'active install-credentials configured',
      'active await-sync here',
      'done  here',
    ]);
  });

  it('carry the certificate from the step that signed it on', () => {
    assert.deepEqual(
      eventsBetween(waiting, done).map((event) => event.certificateForPeerPem),
      ['PEM', 'PEM', 'PEM', 'PEM'],
    );
    assert.equal(eventsBetween(undefined, waiting)[0]?.certificateForPeerPem, '');
  });

  it('end with the failure, its code and its hint', () => {
    const failure = { code: 'conflict', message: 'both have id 1', hint: 'change one' } as const;
    const failed = connect(
      step('authorize-peer', 'failed', '', { failure }),
      step('install-credentials', 'pending'),
      step('await-sync', 'pending'),
    );
    const [event, ...more] = eventsBetween(waiting, failed);
    assert.deepEqual(more, []);
    assert.deepEqual(
      [event?.state, event?.step, event?.message, event?.errorCode, event?.hint],
      ['failed', 'authorize-peer', 'both have id 1', 'conflict', 'change one'],
    );
    assert.ok(isFinished(failed));
  });

  it('are over when every step is done', () => {
    assert.deepEqual([waiting, signed, done].map(isFinished), [false, false, true]);
  });
});

describe('failures in Redis', () => {
  it('keep code, message and hint', () => {
    const error = new MeshError({ code: 'tls', message: 'no', hint: 'look' });
    assert.deepEqual(decodeFailure(encodeFailure(error)), { code: 'tls', message: 'no', hint: 'look' });
    assert.deepEqual(decodeFailure(encodeFailure(new Error('odd'))), {
      code: 'internal',
      message: 'running the step: odd',
      hint: '',
    });
  });

  it('of BullMQ itself are readable too', () => {
    assert.deepEqual(decodeFailure('job stalled more than allowable limit'), {
      code: 'internal',
      message: 'job stalled more than allowable limit',
      hint: '',
    });
    assert.equal(decodeFailure('{"code":"made-up","message":"x"}').code, 'internal');
  });
});
