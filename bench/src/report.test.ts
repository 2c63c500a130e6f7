import assert from 'node:assert/strict';
import { it } from 'node:test';
import { type Figure, line, table } from './report.ts';

const figures: Figure[] = [
  { name: 'connects', value: 5000.4, unit: '/s', baseline: 4000, ratio: 1.25, aim: '≥ 1.05 ×', ok: true },
  { name: 'latency', value: 21.456, unit: 'µs' },
  { name: 'direct', value: Number.NaN, unit: '', ok: false, failed: 'the server has ended' },
];

it('what is measured is a line at once, and all of it a table in the end, with what failed in its place', () => {
  assert.deepEqual(figures.map(line), [
    'connects: 5000 /s, 1.25 × 4000, aim ≥ 1.05 ×: ok',
    'latency: 21.46 µs',
    'direct: FAILED: the server has ended',
  ]);
  const rows = table(figures).split('\n');
  assert.equal(rows.length, 4);
  assert.match(rows[1]!, /^connects +5000 +\/s +4000 +1\.25 +≥ 1\.05 × +ok$/);
  assert.match(rows[3]!, /^direct +FAILED$/);
});
