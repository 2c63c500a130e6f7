import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { check } from './check.ts';
import { type Budget, type LeasedBug, NO_BUDGET, type PlainBug, type Rules } from './state.ts';

/** CM_MODEL=full: more of everything at the same time; millions of states, and a while. */
const isFull = process.env.CM_MODEL === 'full';
type Some = Partial<Budget>;

const PLAIN: Some = isFull
  ? { changes: 2, disconnects: 2, compactions: 1, rebuilds: 1 }
  : { changes: 1, disconnects: 1, compactions: 1, rebuilds: 1 };

const PLAIN_BUGS: readonly PlainBug[] = [
  'prune-without-canary',
  'prune-after-part-of-a-list',
  'canary-before-flush',
  'writer-trusts-old-compare',
  'list-goes-on-in-another-etcd',
  'resume-by-cluster-id',
  'resume-without-verifying',
  'watch-goes-on-after-compaction',
];

/** What happens to leased keys: together what the machine can carry of it at once. */
const LEASED: readonly { readonly what: string; readonly budget: Some; readonly rules: Rules }[] = [
  {
    what: 'a lost lease of a writer that is well',
    budget: { changes: 1, disconnects: 1, losses: 1, resyncs: isFull ? 1 : 0 },
    rules: { layout: 'two' },
  },
  { what: 'a lost lease of all', budget: { changes: 1, disconnects: 1, losses: 1 }, rules: { layout: 'one' } },
  {
    what: 'two lost leases of a writer that puts its canary first',
    budget: { disconnects: 1, losses: 2, resyncs: isFull ? 1 : 0 },
    rules: { layout: 'two', isForeign: true },
  },
  {
    what: 'a lost lease, and an etcd that is compacted and rebuilt',
    budget: { changes: isFull ? 1 : 0, disconnects: 1, losses: 1, compactions: 1, rebuilds: 1 },
    rules: { layout: 'two' },
  },
  {
    what: 'a writer that is gone, and a reader that is cut off',
    budget: { disconnects: isFull ? 2 : 1, absences: 1 },
    rules: { layout: 'two', isForeign: true },
  },
  {
    what: 'a writer that is gone, its leases ending one by one, and a list beside the watch',
    budget: { absences: 1, resyncs: 1, disconnects: isFull ? 1 : 0 },
    rules: { layout: 'three' },
  },
  {
    what: 'a writer that is gone, and changes its mind',
    budget: { absences: 1, changes: 1, disconnects: isFull ? 1 : 0 },
    rules: { layout: 'two' },
  },
];

/** Where each is found first. */
const LEASED_BUGS: readonly { readonly bug: LeasedBug | PlainBug; readonly budget: Some; readonly rules: Rules }[] = [
  { bug: 'nothing-is-held', budget: { absences: 1 }, rules: { layout: 'three' } },
  { bug: 'heard-is-steady', budget: { absences: 1, disconnects: 1 }, rules: { layout: 'three' } },
  { bug: 'steady-of-another-session', budget: { absences: 1, disconnects: 1 }, rules: { layout: 'three' } },
  { bug: 'release-when-heard', budget: { absences: 1 }, rules: { layout: 'two' } },
  { bug: 'release-without-a-list', budget: { losses: 1 }, rules: { layout: 'two' } },
  { bug: 'release-by-canary', budget: { absences: 1 }, rules: { layout: 'one', isForeign: true } },
  { bug: 'release-by-any-canary', budget: { losses: 1 }, rules: { layout: 'two' } },
  {
    bug: 'release-forgets-what-is-held-meanwhile',
    budget: { losses: 2, changes: 1 },
    rules: { layout: 'two' },
  },
  { bug: 'list-releases', budget: { losses: 2, disconnects: 1 }, rules: { layout: 'two' } },
  { bug: 'list-holds-no-burst', budget: { losses: 1, disconnects: 1, compactions: 1 }, rules: { layout: 'two' } },
  { bug: 'list-judged-at-its-end', budget: { absences: 1, disconnects: 1 }, rules: { layout: 'three' } },
  {
    bug: 'held-by-revisions-of-another-etcd',
    budget: { rebuilds: 1, changes: 1 },
    rules: { layout: 'two', isForeign: true },
  },
  { bug: 'resync-holds-nothing', budget: { losses: 1, resyncs: 1 }, rules: { layout: 'two' } },
  { bug: 'tombstone-beyond-the-list', budget: { resyncs: 1, changes: 2 }, rules: {} },
  { bug: 'lost-lease-without-canary', budget: { losses: 1, disconnects: 1, compactions: 1 }, rules: { layout: 'one' } },
  { bug: 'lost-lease-not-put-again', budget: { losses: 1 }, rules: { layout: 'two' } },
  { bug: 'keys-stay-on-foreign-leases', budget: { absences: 1 }, rules: { layout: 'two' } },
];

describe('the model of writer and reflector', { timeout: 3_600_000 }, () => {
  it('removes nothing that is wanted, differs never silently, and converges from every state', (context) => {
    const { states, found } = check({ ...NO_BUDGET, ...PLAIN });
    context.diagnostic(`${states} states explored`);
    assert.equal(found, undefined);
    assert.ok(states > 10_000);
  });

  for (const bug of PLAIN_BUGS) finds(bug, PLAIN, {});

  for (const { what, budget, rules } of LEASED) {
    it(`does so with leases: ${what}`, (context) => {
      const { states, found } = check({ ...NO_BUDGET, ...budget }, rules);
      context.diagnostic(`${states} states explored`);
      assert.equal(found, undefined, found && `${found.what}\n    ${found.trace.join('\n    ')}`);
      assert.ok(states > 1_000);
    });
  }

  for (const { bug, budget, rules } of LEASED_BUGS) finds(bug, budget, rules);
});

function finds(bug: PlainBug | LeasedBug, budget: Some, rules: Rules): void {
  it(`finds the planted bug: ${bug}`, (context) => {
    const { states, found } = check({ ...NO_BUDGET, ...budget }, { ...rules, bug });
    context.diagnostic(`${states} states: ${found?.what}\n    ${found?.trace.join('\n    ')}`);
    assert.notEqual(found, undefined);
  });
}
