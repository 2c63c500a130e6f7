import assert from 'node:assert/strict';
import { test } from 'node:test';
import { systemClock } from '@clustermesh/runtime';
import { oncePending } from './once-pending.ts';

test('however many passes ask for the next one, it comes once, and can then be asked for again', async () => {
  const wakes: (() => void)[] = [];
  const clock = { ...systemClock, sleep: () => new Promise<void>((resolve) => wakes.push(resolve)) };
  const stop = new AbortController();
  let triggers = 0;
  const again = oncePending({ clock, signal: stop.signal, trigger: () => triggers++ });
  const wakeAll = async () => {
    for (const wake of wakes.splice(0)) wake();
    await new Promise((resolve) => setImmediate(resolve));
  };
  for (let i = 0; i < 5; i++) again(100);
  assert.equal(wakes.length, 1);
  await wakeAll();
  assert.equal(triggers, 1);
  again(100);
  stop.abort();
  await wakeAll();
  assert.equal(triggers, 1, 'not after the end');
});
