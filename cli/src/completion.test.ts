import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { chmodSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { repoRoot } from '@clustermesh/runtime';
import { candidates, completionScript } from './completion.ts';
import { buildProgram } from './program.ts';
import { plain } from './terminal.ts';

const program = buildProgram({
  terminal: { out() {}, err() {}, progress() {}, paint: plain },
  places: { env: {} },
  signal: new AbortController().signal,
});
const complete = (...words: string[]) => candidates(program, words, () => ['eu', 'us']);

describe('completion', () => {
  it('knows commands and those below them, and keeps its own to itself', () => {
    assert.deepEqual(complete('con'), ['connect']);
    assert.ok(complete('').includes('operations') && !complete('').some((name) => name.startsWith('_')));
    assert.deepEqual(complete('operations', 'w'), ['watch']);
    assert.deepEqual(complete('completion', ''), ['bash', 'zsh', 'fish']);
  });

  it('knows options, and what may stand behind one', () => {
    assert.deepEqual(complete('connect', '--dest'), ['--destination-context']);
    assert.deepEqual(complete('connect', '--context', ''), ['eu', 'us']);
    assert.deepEqual(complete('connect', '--context', 'eu', '--destination-context', 'u'), ['us']);
    assert.deepEqual(complete('connect', '--mode', 'm'), ['mesh']);
    assert.deepEqual(complete('status', '-o', 'j'), ['json']);
    assert.deepEqual(complete('status', '--output=y'), ['--output=yaml']);
    assert.deepEqual(complete('connect', '--timeout', ''), []);
    assert.deepEqual(complete('status', '--wait', '--al'), ['--all'], 'a flag has no value');
  });
});

describe('the script for bash', () => {
  const root = mkdtempSync(join(tmpdir(), 'cm-completion-'));
  before(() => {
    mkdirSync(join(root, 'bin'));
    mkdirSync(join(root, 'contexts'));
    writeFileSync(join(root, 'contexts/eu.yaml'), 'name: eu\nid: 1\napiserver: unix:///none\n');
    const main = join(repoRoot(), 'cli/src/main.ts');
    const tsx = join(repoRoot(), 'node_modules/tsx/dist/loader.mjs');
    writeFileSync(join(root, 'bin/clustermesh'), `#!/bin/sh\nexec ${process.execPath} --import ${tsx} ${main} "$@"\n`);
    chmodSync(join(root, 'bin/clustermesh'), 0o755);
  });
  after(() => rmSync(root, { recursive: true }));

  it('completes in a real bash', () => {
    const ask = (...words: string[]) => {
      const script = `${completionScript('bash')}
COMP_WORDS=(clustermesh ${words.map((word) => `'${word}'`).join(' ')})
COMP_CWORD=${words.length}
_clustermesh
printf '%s\\n' "\${COMPREPLY[@]}"`;
      const env = { ...process.env, PATH: `${root}/bin:${process.env.PATH}`, CLUSTERMESH_CONTEXTS: `${root}/contexts` };
      return execFileSync('bash', ['-c', script], { env, encoding: 'utf8' }).trim().split('\n');
    };
    assert.deepEqual(ask('oper'), ['operations']);
    assert.deepEqual(ask('operations', 'cancel', '--con'), ['--context']);
    assert.ok(ask('status', '--context', '').includes('eu'));
  });
});
