import { endLease, groupOf, isAlive, nextEvent, revOf, storeOf } from './etcd.ts';
import { fallSilent } from './holding.ts';
import { loseReader } from './reader.ts';
import { BURST, KEYS, type Rules, type State, type Step, spend } from './state.ts';
import { compare } from './watch.ts';
import { change } from './writer.ts';

/** Changes of mind, and everything that fails, as far as the budget goes. */
export function* faults(state: State, rules: Rules): Generator<Step> {
  const { budget, etcd, writer, reader } = state;
  if (budget.changes > 0) {
    const spent = spend(state, 'changes');
    for (const key of KEYS) {
      const value = writer.desired[key];
      if (value !== undefined) yield { name: `${key} is not wanted any more`, state: change(spent, key, undefined) };
      yield { name: `${key} shall be other`, state: change(spent, key, (value ?? 0) + 1) };
    }
  }
  if (budget.disconnects > 0) {
    const spent = spend(state, 'disconnects');
    if (reader.at !== 'idle') yield* cutReader(spent, rules);
    if (writer.pending !== undefined && writer.presence === 'well')
      yield { name: 'writer is cut off', state: loseWriter(spent, rules) };
  }
  if (budget.compactions > 0 && etcd.compacted < revOf(state))
    yield { name: 'compaction', state: { ...spend(state, 'compactions'), etcd: { ...etcd, compacted: revOf(state) } } };
  if (budget.rebuilds > 0)
    for (const clusterId of [etcd.clusterId, etcd.clusterId + 1]) yield rebuild(state, clusterId, rules);
  if (budget.resyncs > 0 && reader.at === 'watching' && reader.verified && reader.comparison === undefined)
    yield { name: 'reader lists to resync', state: compare(spend(state, 'resyncs'), reader, 'resync', rules) };
  if (budget.absences > 0 && writer.presence === 'well')
    yield {
      name: 'writer is gone',
      state: { ...spend(state, 'absences'), writer: { ...writer, presence: 'gone' } },
    };
  if (budget.losses > 0) yield* losses(state, rules);
}

/** With leases also for so long that the reader misses the writer's heartbeat. */
function* cutReader(state: State, rules: Rules): Generator<Step> {
  const lost = loseReader(state, rules);
  yield lost;
  if (rules.layout === undefined) return;
  yield { ...lost, name: `${lost.name} for long`, state: fallSilent(lost.state) };
}

function loseWriter(state: State, { bug }: Rules): State {
  if (bug === 'writer-trusts-old-compare') return state;
  const { pending: _, ...writer } = state.writer;
  return { ...state, writer };
}

function rebuild(state: State, clusterId: number, rules: Rules): Step {
  const { etcd, reader } = state;
  const lost =
    rules.bug === 'list-goes-on-in-another-etcd' && reader.at === 'listing'
      ? { name: '', state: { ...state, reader: { ...reader, rev: 0 } } }
      : loseReader(state, rules);
  const empty = { clusterId, history: [], compacted: 0, leases: [], granted: etcd.granted };
  return {
    ...lost,
    name: `etcd is rebuilt with ${clusterId === etcd.clusterId ? 'the same' : 'another'} id`,
    state: loseWriter({ ...spend(lost.state, 'rebuilds'), etcd: empty, unwantedUpTo: {} }, rules),
  };
}

/**
 * etcd loses a lease of a writer that is well. What the reader knows of it is a burst: fewer rows going at once are taken for deletes. It
 * puts them again in one transaction: of a list in between, the same holds. The next
 * loss comes when the reader has seen that.
 */
function* losses(state: State, rules: Rules): Generator<Step> {
  const { writer, rows, reader, holding } = state;
  if (writer.presence !== 'well') return;
  if (holding.held.length > 0 && reader.at === 'watching' && nextEvent(state, reader.next) !== undefined) return;
  const there = storeOf(state).rows;
  for (const [group, lease] of Object.entries(writer.leases)) {
    if (!isAlive(state, lease)) continue;
    const keys = KEYS.filter((key) => groupOf(rules, key) === group);
    const seen = keys.filter((key) => key in rows && there[key]?.lease === lease && key in writer.desired);
    if (keys.length > 0 && seen.length < BURST) continue;
    const lost = endLease(spend(state, 'losses'), lease);
    const inOne = keys.length > 0 && { inOne: true };
    yield { name: `etcd loses the lease of ${group}`, state: { ...lost, writer: { ...writer, ...inOne } } };
  }
}

/** Leases that nobody keeps: of a writer that is silent, or of a process before it, whose keys have been taken off them since. */
export function* leaseEnds(state: State): Generator<Step> {
  const { etcd, writer } = state;
  const kept = Object.values(writer.leases);
  for (const lease of etcd.leases) {
    const isForeign = writer.presence === 'well' && !kept.includes(lease) && writer.pending?.length === 0;
    if (writer.presence === 'silent' || isForeign) yield { name: `lease ${lease} ends`, state: endLease(state, lease) };
  }
}
