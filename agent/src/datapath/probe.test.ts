import assert from 'node:assert/strict';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import { type Log, repoRoot, silentLog } from '@clustermesh/runtime';
import { FEATURES, type Probe, probeFeatures, requireFeatures } from './probe.ts';

const without = (isMissing: (probe: Probe) => boolean) => probeFeatures((probe) => !isMissing(probe));

describe('what the kernel has', () => {
  it('is all of it, on the kernel of this test', () => {
    for (const { feature, missing } of probeFeatures()) assert.deepEqual(missing, [], feature.name);
  });

  it('refuses to go on without what is required, and names it', () => {
    const reports = without((probe) => 'map' in probe && probe.map === 'ringBuffer');
    assert.throws(
      () => requireFeatures(silentLog(), '5.4.0', reports),
      /on kernel 5\.4\.0: it lacks flow events \(Linux 5\.11, CONFIG_BPF_SYSCALL; missing: ringBuffer\)/,
    );
  });

  it('goes on without what has another way, and says so', () => {
    const said: unknown[][] = [];
    const log = { ...silentLog(), warn: (...args: unknown[]) => void said.push(args), info: () => undefined } as Log;
    requireFeatures(
      log,
      '5.4.0',
      without((probe) => 'batches' in probe && probe.batches === 'lpmTrie'),
    );
    assert.deepEqual(
      said.map(([fields]) => (fields as { feature: string }).feature),
      ['batches of prefixes'],
    );
    assert.match(String(said[0]![1]), /written one by one/);
  });

  it('stands in docs/kernel.md, feature by feature', () => {
    const lines = readFileSync(join(repoRoot(), 'docs', 'kernel.md'), 'utf8').split('\n');
    for (const { name, since, config, without: consequence } of FEATURES) {
      const row = lines.find((line) => line.startsWith(`| ${name} |`));
      assert.ok(row !== undefined, `${name} is not in docs/kernel.md`);
      for (const text of [since, ...config.map((option) => `\`${option}\``), consequence])
        assert.ok(row.includes(text), `docs/kernel.md on ${name} does not say ${text}`);
    }
  });
});
