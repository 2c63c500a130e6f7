import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { Backend, Frontend } from './types.ts';
import { createWithdrawals, type Named, type Withdrawal } from './withdrawn.ts';

const backend = (n: number, clusterId = 1): Backend => ({ ip: `10.1.1.${n}`, port: 80, clusterId });

/** A service that names backends with these numbers as ids. */
const named = (numbers: number[], frontend: Partial<Frontend> = {}, draining: number[] = []): Named => ({
  kernelKey: {
    addr: '10.96.0.1',
    port: 80,
    proto: { TCP: 6, UDP: 17, SCTP: 132 }[frontend.protocol ?? 'TCP'],
    scope: frontend.scope === undefined ? 0 : 1,
  },
  row: {
    frontend: { ip: '10.96.0.1', port: 80, protocol: 'TCP', ...frontend },
    flags: 0,
    backends: numbers.map((n) => backend(n)),
    draining: draining.map((n) => backend(n)),
  },
  backends: [...numbers, ...draining],
});

function book(most = 100) {
  const told = { noted: 0, lost: 0, forgotten: [] as string[] };
  const withdrawals = createWithdrawals({
    most,
    onNoted: () => void told.noted++,
    onLost: () => void told.lost++,
    forget: ({ key }) => void told.forgotten.push(key.addr),
  });
  return { told, withdrawals };
}

const addresses = (taken: readonly Withdrawal[]): string[] => taken.map(({ key }) => key.addr);

describe('what a service has let go', () => {
  it('is what its row names neither as backend nor as draining', () => {
    const { withdrawals } = book();
    withdrawals.letGo(named([1, 2, 3], {}, [4]), named([1], {}, [2]));
    assert.deepEqual(addresses(withdrawals.take(10)), ['10.1.1.3', '10.1.1.4']);
  });

  it('is all of it when the row goes, and nothing where only another cluster has the address now', () => {
    const { withdrawals } = book();
    withdrawals.letGo(named([1, 2]), undefined);
    assert.equal(withdrawals.size, 2);
    withdrawals.clear();
    const after = named([1]);
    withdrawals.letGo(named([1]), { ...after, backends: [7] });
    assert.equal(withdrawals.size, 0);
  });

  it('matters where sockets are translated: from inside, TCP and UDP', () => {
    const { withdrawals } = book();
    withdrawals.letGo(named([1], { scope: 'outside' }), undefined);
    withdrawals.letGo(named([1], { protocol: 'SCTP' }), undefined);
    assert.equal(withdrawals.size, 0);
    withdrawals.letGo(named([1], { protocol: 'UDP' }), undefined);
    assert.equal(withdrawals.size, 1);
  });

  it('is forgotten when the service names it again, also in the middle of a pass', () => {
    const { told, withdrawals } = book();
    withdrawals.letGo(named([1, 2, 3]), named([]));
    const taken = withdrawals.take(2);
    withdrawals.naming(named([1, 3]));
    assert.deepEqual(told.forgotten, ['10.1.1.1']);
    assert.equal(withdrawals.size, 0);
    assert.deepEqual(addresses(taken.filter(withdrawals.isUnderWay)), ['10.1.1.2']);
  });

  it('waits once more when a pass failed, but for what was named meanwhile', () => {
    const { withdrawals } = book();
    withdrawals.letGo(named([1, 2]), named([]));
    withdrawals.take(10);
    withdrawals.naming(named([2]));
    withdrawals.done(true);
    assert.deepEqual(addresses(withdrawals.take(10)), ['10.1.1.1']);
    withdrawals.done(false);
    assert.equal(withdrawals.size, 0);
  });

  it('is bounded, and what is beyond is counted', () => {
    const { told, withdrawals } = book(2);
    withdrawals.letGo(named([1, 2, 3]), named([]));
    assert.deepEqual([withdrawals.size, told.noted, told.lost], [2, 2, 1]);
  });
});
