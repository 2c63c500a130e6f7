import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { describe, it } from 'node:test';
import {
  type ClusterEndpointSlice,
  type Decoded,
  decodeEndpointSlice,
  encodeEndpointSlice,
  MAX_ENDPOINT_SLICE_BYTES,
} from '@clustermesh/contract';
import fc from 'fast-check';
import { repoRoot } from './files.ts';
import { openZstd } from './zstd.ts';

const zstd = openZstd();
const MAX = 1024 * 1024;

interface Vector {
  readonly family: string;
  readonly name: string;
  readonly message: string;
  readonly value: string;
}
const fixture = readFileSync(join(repoRoot(), 'contract/fixtures/both-layouts.json'), 'utf8');
const slices = (JSON.parse(fixture).vectors as Vector[]).filter((vector) => vector.family === 'endpointslices');

function value<T>(decoded: Decoded<T>): T {
  assert.ok(decoded.ok, decoded.ok ? '' : decoded.reason);
  return decoded.value;
}

function refused(frame: Uint8Array, why: RegExp, maxBytes = MAX): void {
  const decoded = zstd.decompress(frame, maxBytes);
  assert.equal(decoded.ok, false, 'was accepted');
  if (!decoded.ok) assert.match(decoded.reason, why);
}

const hasCommand = spawnSync('zstd', ['--version']).status === 0;
const command = (args: readonly string[], input: Uint8Array): Buffer => {
  const { status, stdout, stderr } = spawnSync('zstd', ['-q', '-c', ...args], { input, maxBuffer: 64 * MAX });
  assert.equal(status, 0, stderr.toString());
  return stdout;
};

describe('zstd', () => {
  it('gives back what it was given', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 5000 }), (bytes) => {
        assert.deepEqual(value(zstd.decompress(zstd.compress(bytes), MAX)), Buffer.from(bytes));
      }),
    );
    const big = Buffer.concat([randomBytes(300_000), Buffer.alloc(300_000)]);
    assert.deepEqual(value(zstd.decompress(zstd.compress(big), MAX)), big);
  });

  it('results do not change when the next value is handled', () => {
    const first = zstd.compress(Buffer.from('first first first'));
    const opened = value(zstd.decompress(first, MAX));
    value(zstd.decompress(zstd.compress(Buffer.from('second second')), MAX));
    assert.equal(opened.toString(), 'first first first');
    assert.equal(value(zstd.decompress(first, MAX)).toString(), 'first first first');
  });

  it('understands the zstd command, and is understood by it', { skip: !hasCommand && 'no zstd command' }, () => {
    const text = Buffer.from('backend 10.244.1.79 '.repeat(20_000));
    // From a pipe the command cannot state the size.
    for (const args of [[], ['--no-check'], ['-19', '--long'], ['-1'], [`--stream-size=${text.length}`]])
      assert.deepEqual(value(zstd.decompress(command(args, text), MAX)), text, args.join(' '));
    assert.deepEqual(command(['-d'], zstd.compress(text)), text);
    const empty = command([], Buffer.alloc(0));
    assert.equal(value(zstd.decompress(empty, MAX)).length, 0);
    const two = Buffer.concat([command([], text), command([`--stream-size=${text.length}`], text)]);
    assert.deepEqual(value(zstd.decompress(two, MAX)), Buffer.concat([text, text]), 'frames one behind the other');
  });

  it('refuses what would become too much before it does', () => {
    const bomb = zstd.compress(Buffer.alloc(64 * MAX));
    assert.ok(bomb.length < 10_000);
    const before = process.memoryUsage().rss;
    for (let i = 0; i < 100; i++) refused(bomb, /of 67108864 bytes; at most 1048576/);
    assert.ok(process.memoryUsage().rss - before < 32 * MAX);
    assert.equal(value(zstd.decompress(zstd.compress(Buffer.alloc(MAX)), MAX)).length, MAX, 'the bound itself is fine');
    refused(zstd.compress(Buffer.alloc(MAX + 1)), /at most/);
  });

  it('refuses too much that does not say so', { skip: !hasCommand && 'no zstd command' }, () => {
    refused(command([], Buffer.alloc(MAX + 1)), /more than 1048576 bytes/);
    const small = zstd.compress(Buffer.alloc(MAX / 2));
    refused(Buffer.concat([small, small, small]), /more than 1048576 bytes/);
  });

  it('says in what way a value is damaged', () => {
    const text = Buffer.from('backend 10.244.1.79 backend 10.244.1.80 '.repeat(50));
    const frame = zstd.compress(text);
    refused(Buffer.alloc(0), /no zstd frame/);
    refused(text, /no zstd frame/);
    refused(frame.subarray(0, 5), /no zstd frame|ends early/);
    refused(frame.subarray(0, frame.length - 1), /ends early/);
    refused(Buffer.concat([frame, Buffer.from('x')]), /something behind it|no zstd frame/);
    const stored = Buffer.from(slices[1]?.value ?? '', 'base64');
    stored[stored.length - 1] = (stored.at(-1) ?? 0) ^ 1;
    refused(stored, /checksum does not match/);
  });

  it('never throws for a damaged frame, and never gives more than was asked for', () => {
    const frames = [zstd.compress(Buffer.alloc(5000)), ...slices.map((slice) => Buffer.from(slice.value, 'base64'))];
    fc.assert(
      fc.property(fc.constantFrom(...frames), fc.nat(), fc.nat(255), (frame, where, byte) => {
        const damaged = Buffer.from(frame);
        damaged[where % damaged.length] = byte;
        const decoded = zstd.decompress(damaged, 6000);
        if (decoded.ok) assert.ok(decoded.value.length <= 6000);
      }),
      { numRuns: 2000 },
    );
  });
});

describe('endpoint slices with it', () => {
  it('are read from the recorded values, and written so that they are read again', () => {
    assert.ok(slices.length >= 5);
    for (const { name, message, value: stored } of slices) {
      const bytes = value(zstd.decompress(Buffer.from(stored, 'base64'), MAX_ENDPOINT_SLICE_BYTES));
      assert.equal(Buffer.from(bytes).toString('base64'), message, name);
      const slice: ClusterEndpointSlice = value(decodeEndpointSlice(Buffer.from(stored, 'base64'), zstd));
      assert.deepEqual(value(decodeEndpointSlice(encodeEndpointSlice(slice, zstd), zstd)), slice, name);
    }
  });
});
