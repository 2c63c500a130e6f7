import assert from 'node:assert/strict';
import { generateKeyPairSync } from 'node:crypto';
import { describe, it } from 'node:test';
import { createInvite } from '@clustermesh/pki';
import { redact } from './redact.ts';

const keys = {
  pkcs8: generateKeyPairSync('ec', { namedCurve: 'P-256' })
    .privateKey.export({ type: 'pkcs8', format: 'pem' })
    .toString(),
  pkcs1: generateKeyPairSync('rsa', { modulusLength: 2048 })
    .privateKey.export({ type: 'pkcs1', format: 'pem' })
    .toString(),
};
const own = { cluster: 'eu', clusterId: 1, caPin: 'ab'.repeat(32) };
const invite = createInvite({ own, endpoints: ['eu:9882'], nowMs: Date.now() }).token.reveal();

describe('a text without its secrets', () => {
  for (const [kind, pem] of Object.entries(keys)) {
    const body = pem.split('\n')[1]!;
    const shapes: readonly [string, string][] = [
      ['as it is', `before\n${pem}after\n`],
      ['inside of JSON', JSON.stringify({ key: pem, other: 1 })],
      ['cut off', pem.slice(0, pem.length / 2)],
      ['in base64', `tls.key: ${Buffer.from(pem).toString('base64')}\n`],
    ];
    for (const [shape, text] of shapes) {
      it(`has no ${kind} key, ${shape}`, () => {
        const result = redact(text);
        assert.ok(!result.includes(body.slice(0, 20)), result);
        assert.ok(!result.includes(Buffer.from(body).toString('base64').slice(8, 40)), result);
      });
    }
  }

  it('has no invitation, wherever it stands', () => {
    const secret = invite.split('.')[2]!;
    for (const text of [invite, `joined with "${invite}".`, JSON.stringify({ args: ['join', invite] })])
      assert.ok(!redact(text).includes(secret));
  });

  it('has no passwords', () => {
    for (const text of [
      'password: hunter2',
      '"password": "hunter2"',
      'requirepass hunter2',
      'redis://user:hunter2@127.0.0.1:6379',
      'Authorization: Bearer hunter2',
    ])
      assert.ok(!redact(text).includes('hunter2'), text);
  });

  it('is otherwise as it was: certificates, numbers, and words that only sound secret', () => {
    for (const text of [
      '-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n',
      '{"nodesApplied": 2, "etcdError": "", "revision": 77}',
      'waiting for the certificate that us signs for this cluster',
    ])
      assert.equal(redact(text), text);
  });
});
