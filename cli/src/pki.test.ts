import assert from 'node:assert/strict';
import { X509Certificate } from 'node:crypto';
import { mkdtempSync, readFileSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { runProgram } from './program.ts';
import { plain } from './terminal.ts';

describe('clustermesh pki init', () => {
  const root = mkdtempSync(join(tmpdir(), 'cm-cli-pki-'));
  const dir = join(root, 'pki');
  after(() => rmSync(root, { recursive: true }));

  async function init(...args: string[]) {
    const out: string[] = [];
    const err: string[] = [];
    const terminal = {
      out: (line: string) => out.push(line),
      err: (line: string) => err.push(line),
      progress() {},
      paint: plain,
    };
    const signal = new AbortController().signal;
    const code = await runProgram(['pki', 'init', '--dir', dir, ...args], { terminal, places: { env: {} }, signal });
    return { code, out: out.join('\n'), err: err.join('\n') };
  }
  const certificate = (file: string) => new X509Certificate(readFileSync(join(dir, file)));

  it('makes what a cluster starts with, keys readable by their owner alone', async () => {
    const made = await init(
      '--cluster',
      'eu',
      '--server-ip',
      '192.0.2.1',
      '--server-name',
      'etcd.example',
      '--node',
      'n1',
    );
    assert.equal(made.code, 0, made.err);
    const ca = certificate('ca.crt');
    for (const [file, subject] of [
      ['server', 'CN=clustermesh-apiserver.cilium.io'],
      ['admin', 'CN=admin-eu'],
      ['local', 'CN=local-eu'],
      ['nodes/n1/node', 'CN=node-n1'],
    ] as const) {
      assert.equal(certificate(`${file}.crt`).subject, subject);
      assert.ok(certificate(`${file}.crt`).verify(ca.publicKey));
      assert.equal(statSync(join(dir, `${file}.key`)).mode & 0o777, 0o600);
      assert.match(made.out, new RegExp(`issued ${file}\\.crt \\(missing\\)`));
    }
    assert.ok(certificate('server.crt').checkIP('192.0.2.1'));
    assert.ok(certificate('server.crt').checkHost('etcd.example'));
    assert.ok(certificate('server.crt').checkHost('eu.mesh.cilium.io'));
    assert.equal(readFileSync(join(dir, 'nodes/n1/ca.crt'), 'utf8'), readFileSync(join(dir, 'ca.crt'), 'utf8'));
  });

  it('changes nothing when run again, and adds a node when one is named', async () => {
    const before = readFileSync(join(dir, 'server.crt'), 'utf8');
    const again = await init('--cluster', 'eu', '--node', 'n1');
    assert.match(again.out, /nothing was issued/);
    const more = await init('--cluster', 'eu', '--node', 'n2');
    assert.match(more.out, /^issued nodes\/n2\/node\.crt \(missing\)\n.*: 1 issued;/);
    assert.equal(readFileSync(join(dir, 'server.crt'), 'utf8'), before);
  });

  it('names all that is wrong, with exit code 2', async () => {
    const wrong = await init('--cluster', 'EU', '--server-ip', '300.1.1.1', '--node', 'N_1');
    assert.equal(wrong.code, 2);
    assert.match(
      wrong.err,
      /error: making certificates: .*EU.*; --server-ip 300\.1\.1\.1 is no IP address; --node N_1/,
    );
    assert.equal((await init()).code, 2);
  });
});
