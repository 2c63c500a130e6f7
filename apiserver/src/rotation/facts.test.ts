import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import type { AgentStatus, HeldTrust } from '@clustermesh/contract';
import { certificateFacts, ensureClusterPki, loadCa, nextCa, rotateCa } from '@clustermesh/pki';
import { systemClock } from '@clustermesh/runtime';
import { redisSchema } from '../operations/redis-config.ts';
import { createRotationPorts } from './facts.ts';
import { createTrustReports } from './trust-reports.ts';

test('a rotation waits for every peer that is let in and every node that runs, but for those that it is told to leave out', async (t) => {
  const dir = mkdtempSync(join(tmpdir(), 'cm-rotation-facts-'));
  t.after(() => rmSync(dir, { recursive: true }));
  const usersFile = join(dir, 'users.yaml');
  const peers = (...names: string[]) =>
    writeFileSync(
      usersFile,
      JSON.stringify({ users: names.map((name) => ({ name: `remote-${name}`, role: 'remote' })) }),
    );
  peers('us', 'asia');
  await ensureClusterPki({ dir, cluster: 'eu' });
  const old = certificateFacts(loadCa(dir).certPem).fingerprint;
  const reports = createTrustReports();
  let agents: AgentStatus[] = [];
  const agent = (node: string, trust?: HeldTrust): AgentStatus => ({
    ...{ node, version: '0', updatedAt: '', applied: {}, problems: [] },
    ...(trust && { trust: { trustedCas: [...trust.trustedCas], signedBy: trust.signedBy } }),
  });
  const wallMs = Date.now();
  const ports = createRotationPorts({
    ...{ cluster: 'eu', pkiDir: dir, usersFile, reports, agents: { agents: () => agents } },
    // Nobody is there: an etcd that cannot be asked trusts nothing.
    etcd: { endpoints: ['https://127.0.0.1:1'], hostAliases: [] },
    redis: redisSchema.parse({ path: join(dir, 'redis.sock') }),
    clock: { ...systemClock, wallMs: () => wallMs },
  });
  const { signal } = new AbortController();
  const facts = (without: string[] = [], overlapMs = 0) => ports.facts({ without, overlapMs }, signal);

  await rotateCa({ pkiDir: dir, cluster: 'eu', step: 'announce' });
  const next = certificateFacts(nextCa(dir)!.certPem).fingerprint;
  agents = [agent('n1', { trustedCas: [old], signedBy: old }), agent('n2')];
  reports.note('us', { trustedCas: [old], signedBy: old });
  const announced = await facts();
  assert.deepEqual([announced.phase, announced.isTrustedByEtcd], ['announced', false]);
  assert.deepEqual(announced.withoutBundle, ['asia', 'us', 'n1', 'n2'], 'also those that have said nothing');
  assert.deepEqual((await facts(['asia', 'n2'])).withoutBundle, ['us', 'n1']);
  reports.note('us', { trustedCas: [old, next], signedBy: old });
  reports.note('asia', { trustedCas: [old, next], signedBy: old });
  agents = [agent('n1', { trustedCas: [next, old], signedBy: old })];
  assert.deepEqual((await facts()).withoutBundle, []);

  await rotateCa({ pkiDir: dir, cluster: 'eu', step: 'switch' });
  await ensureClusterPki({ dir, cluster: 'eu', now: new Date(wallMs) });
  assert.deepEqual((await facts()).usersOfOldCa, ['asia', 'us', 'n1']);
  reports.note('us', { trustedCas: [old, next], signedBy: next });
  agents = [agent('n1', { trustedCas: [next, old], signedBy: next })];
  assert.deepEqual((await facts()).usersOfOldCa, ['asia']);
  peers('us');
  const switched = await facts([], 60_000);
  assert.deepEqual([switched.phase, switched.usersOfOldCa], ['switched', []], 'who is disconnected is not waited for');
  // Certificates tell whole seconds.
  assert.ok(
    Math.abs(switched.overlapEndsAtMs - wallMs - 60_000) < 1000,
    'counted from the first signature of the new CA',
  );
});
