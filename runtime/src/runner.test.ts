import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { startRunner } from './runner.ts';
import { waitFor } from './wait.ts';

describe('runner', () => {
  it('turns a burst of triggers into one pass and settles after it', async () => {
    const stop = new AbortController();
    let passes = 0;
    const runner = startRunner({
      run: async () => {
        passes++;
      },
      minIntervalMs: 5,
      retryMs: 1,
      maxIntervalMs: Number.POSITIVE_INFINITY,
      onError: assert.fail,
      signal: stop.signal,
    });
    for (let i = 0; i < 100; i++) runner.trigger();
    await runner.settled();
    assert.ok(passes >= 1 && passes <= 2, `${passes} passes for one burst`);
    stop.abort();
    await runner.ended;
  });

  it('runs a pass that was asked for while another was running', async () => {
    const stop = new AbortController();
    let value = 0;
    const seen: number[] = [];
    let release: () => void = () => {};
    const runner = startRunner({
      run: async () => {
        seen.push(value);
        if (seen.length === 1) await new Promise<void>((resolve) => (release = resolve));
      },
      minIntervalMs: 0,
      retryMs: 1,
      maxIntervalMs: Number.POSITIVE_INFINITY,
      onError: assert.fail,
      signal: stop.signal,
    });
    runner.trigger();
    await waitFor(() => seen.length === 1, { what: 'the first pass', timeoutMs: 5000 });
    value = 1;
    const settled = runner.settled();
    release();
    await settled;
    assert.equal(seen.at(-1), 1);
    stop.abort();
    await runner.ended;
  });

  it('hurries where somebody cannot go on without a pass, whether it rests or is in the middle of one', async () => {
    const stop = new AbortController();
    let passes = 0;
    let release: () => void = () => {};
    const runner = startRunner({
      run: async () => {
        passes++;
        if (passes === 2) await new Promise<void>((resolve) => (release = resolve));
      },
      // Longer than any test: who sits it out does not come back.
      minIntervalMs: 2 ** 30,
      retryMs: 1,
      maxIntervalMs: Number.POSITIVE_INFINITY,
      onError: assert.fail,
      signal: stop.signal,
    });
    await runner.settled();
    runner.hurry();
    await waitFor(() => passes === 2, { what: 'a pass out of its rest', timeoutMs: 20_000 });
    runner.hurry();
    release();
    await waitFor(() => passes === 3, { what: 'a pass after the one that was under way', timeoutMs: 20_000 });
    stop.abort();
    await runner.ended;
  });

  it('does not sit out the delay after a failure when told that what was missing is back', async () => {
    const stop = new AbortController();
    let failures = 0;
    const runner = startRunner({
      run: async () => {
        if (failures === 0) throw new Error('not yet');
      },
      minIntervalMs: 0,
      retryMs: 20_000,
      maxIntervalMs: Number.POSITIVE_INFINITY,
      onError: () => void failures++,
      signal: stop.signal,
    });
    const settled = runner.settled();
    await waitFor(() => failures === 1, { what: 'the failure', timeoutMs: 5000 });
    await new Promise((resolve) => setImmediate(resolve));
    const since = performance.now();
    runner.retryNow();
    await settled;
    assert.ok(performance.now() - since < 5000);
    stop.abort();
    await runner.ended;
  });

  it('retries a failed pass with growing delays until it succeeds, and counts the failures', async () => {
    const stop = new AbortController();
    const failures: number[] = [];
    const runner = startRunner({
      run: async () => {
        if (failures.length < 3) throw new Error('not yet');
      },
      minIntervalMs: 0,
      retryMs: 1,
      maxIntervalMs: Number.POSITIVE_INFINITY,
      onError: (_error, count) => failures.push(count),
      signal: stop.signal,
    });
    await runner.settled();
    assert.deepEqual(failures, [1, 2, 3]);
    stop.abort();
    await runner.ended;
  });

  it('passes by itself at the maximum interval', async () => {
    const stop = new AbortController();
    let passes = 0;
    const runner = startRunner({
      run: async () => {
        passes++;
      },
      minIntervalMs: 0,
      retryMs: 1,
      maxIntervalMs: 2,
      onError: assert.fail,
      signal: stop.signal,
    });
    await waitFor(() => passes >= 3, { what: 'three passes nobody asked for', timeoutMs: 5000 });
    stop.abort();
    await runner.ended;
  });

  it('lets waiters go when it is stopped', async () => {
    const stop = new AbortController();
    const runner = startRunner({
      run: async () => {
        throw new Error('never');
      },
      minIntervalMs: 0,
      retryMs: 1000,
      maxIntervalMs: Number.POSITIVE_INFINITY,
      onError: () => stop.abort(),
      signal: stop.signal,
    });
    await runner.settled();
    await runner.ended;
  });
});
