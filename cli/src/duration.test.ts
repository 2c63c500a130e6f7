import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { formatDuration, parseDuration } from './duration.ts';

describe('durations', () => {
  it('are read with units, or as seconds', () => {
    const cases: Record<string, number> = {
      '30': 30_000,
      '1.5': 1500,
      '90s': 90_000,
      '5m': 300_000,
      '1m30s': 90_000,
      '500ms': 500,
      '1h': 3_600_000,
      '0': 0,
    };
    for (const [text, ms] of Object.entries(cases)) assert.equal(parseDuration(text), ms, text);
  });

  it('are refused when they are none', () => {
    for (const text of ['', 'soon', '5 m', '-5s', '5d', '5m30', 's'])
      assert.throws(() => parseDuration(text), /it is none/, text);
  });

  it('read well', () => {
    const cases: [number, string][] = [
      [0, '0.0 s'],
      [1234, '1.2 s'],
      [9990, '10 s'],
      [119_000, '119 s'],
      [180_000, '3 min'],
      [7_200_000, '2 h'],
    ];
    for (const [ms, text] of cases) assert.equal(formatDuration(ms), text);
  });
});
