import assert from 'node:assert/strict';
import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { z } from 'zod';
import { loadConfig } from './config.ts';
import { atomicWrite, removeAbandonedWrites, repoRoot } from './files.ts';
import { tryLock } from './flock.ts';
import { waitFor } from './wait.ts';

const dir = mkdtempSync(join(tmpdir(), 'cm-runtime-'));
after(() => rmSync(dir, { recursive: true, force: true }));

describe('atomicWrite', () => {
  it('replaces a file whole, with its mode, and leaves no temporary file', () => {
    const path = join(dir, 'sub', 'key.pem');
    atomicWrite(path, 'old', 0o600);
    atomicWrite(path, 'new', 0o600);
    assert.equal(readFileSync(path, 'utf8'), 'new');
    assert.equal(statSync(path).mode & 0o777, 0o600);
    assert.deepEqual(readdirSync(join(dir, 'sub')), ['key.pem']);
  });

  it('fails on a full disk, keeps the old file whole, and leaves no temporary file', () => {
    const small = join(dir, 'small');
    mkdirSync(small);
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'cm-files-test', small]);
    try {
      const path = join(small, 'state.json');
      atomicWrite(path, 'old');
      assert.throws(() => atomicWrite(path, Buffer.alloc(256 * 1024)), { code: 'ENOSPC' });
      assert.equal(readFileSync(path, 'utf8'), 'old');
      assert.deepEqual(readdirSync(small), ['state.json']);
    } finally {
      execFileSync('umount', [small]);
    }
  });
});

describe('loadConfig', () => {
  it('reports every problem of a config at once, each with its field', () => {
    const path = join(dir, 'bad.yaml');
    atomicWrite(path, 'cluster: { id: "x" }\nport: -1\n');
    const schema = z.object({ cluster: z.object({ name: z.string(), id: z.number() }), port: z.number().min(1) });
    assert.throws(
      () => loadConfig(path, schema),
      (error: Error) => ['cluster.name', 'cluster.id', 'port'].every((field) => error.message.includes(field)),
    );
  });

  it('freezes what it returns', () => {
    const path = join(dir, 'good.yaml');
    atomicWrite(path, 'a: { b: 1 }\n');
    const config = loadConfig(path, z.object({ a: z.object({ b: z.number() }) }));
    assert.throws(() => {
      (config.a as { b: number }).b = 2;
    }, TypeError);
  });
});

describe('removeAbandonedWrites', () => {
  it('removes what dead writers left, and nothing else', async () => {
    const abandoned = join(dir, 'abandoned');
    mkdirSync(abandoned);
    const dead = spawn('true');
    await once(dead, 'exit');
    const alive = `..us.key.${process.ppid}.0.tmp`;
    for (const name of [
      `..us.key.${dead.pid}.7.tmp`,
      `..us.crt.${process.pid}.3.tmp`,
      alive,
      'us',
      '..data',
      '..us.tmp',
    ])
      writeFileSync(join(abandoned, name), '');
    removeAbandonedWrites(abandoned);
    assert.deepEqual(readdirSync(abandoned).sort(), ['..data', alive, '..us.tmp', 'us'].sort());
    removeAbandonedWrites(join(dir, 'not there'));
  });
});

describe('repoRoot', () => {
  it('is the folder that holds the service definitions', () => {
    assert.ok(existsSync(join(repoRoot(), 'contract', 'proto', 'admin.proto')));
  });
});

describe('tryLock', () => {
  it('is refused while another process holds it, names the holder, and is free once that process was killed', async () => {
    const path = join(dir, 'lock');
    const holder = spawn('flock', [path, 'sh', '-c', `echo holder-note > ${path}; echo held; exec sleep 60`], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    await once(holder.stdout, 'data');
    const refused = tryLock(path, 'mine');
    assert.ok('heldBy' in refused);
    assert.equal(refused.heldBy, 'holder-note');
    // flock(1) keeps the lock's descriptor open in its child, so the child ends first.
    spawn('pkill', ['-KILL', '-P', String(holder.pid)]);
    await once(holder, 'exit');
    const lock = await waitFor(
      () => {
        const attempt = tryLock(path, 'mine');
        return 'release' in attempt ? attempt : undefined;
      },
      { what: 'the lock of a dead holder', timeoutMs: 5000 },
    );
    assert.equal(readFileSync(path, 'utf8'), 'mine\n');
    lock.release();
  });
});
