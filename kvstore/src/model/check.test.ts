import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { check } from './check.ts';
import type { Bug } from './protocol.ts';

const BUGS: readonly Bug[] = [
  'prune-without-canary',
  'prune-after-part-of-a-list',
  'canary-before-flush',
  'writer-trusts-old-compare',
  'list-goes-on-in-another-etcd',
  'resume-by-cluster-id',
  'resume-without-verifying',
  'watch-goes-on-after-compaction',
];
/** CM_MODEL=full: 3.6 million states, some minutes. */
const full = { changes: 2, disconnects: 2, compactions: 1, rebuilds: 1 };
const BUDGET = process.env.CM_MODEL === 'full' ? full : { ...full, changes: 1, disconnects: 1 };

describe('the model of writer and reflector', { timeout: 900_000 }, () => {
  it('removes nothing that is wanted, differs never silently, and converges from every state', (context) => {
    const { states, found } = check(BUDGET);
    context.diagnostic(`${states} states explored`);
    assert.equal(found, undefined);
    assert.ok(states > 10_000);
  });

  for (const bug of BUGS) {
    it(`finds the planted bug: ${bug}`, (context) => {
      const { states, found } = check(BUDGET, bug);
      context.diagnostic(`${states} states: ${found?.what}\n    ${found?.trace.join('\n    ')}`);
      assert.notEqual(found, undefined);
    });
  }
});
