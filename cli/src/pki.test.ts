import assert from 'node:assert/strict';
import { createPrivateKey, generateKeyPairSync, X509Certificate } from 'node:crypto';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { createCa } from '@clustermesh/pki';
import { stringify } from 'yaml';
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
    const code = await runProgram(['pki', 'init', ...(args.includes('--dir') ? [] : ['--dir', dir]), ...args], {
      terminal,
      places: { env: {} },
      signal,
    });
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

  it('signs with the CA of a cert-manager secret, mounted or as a manifest; one with an EC key is refused with the reason', async () => {
    const ca = await createCa({ cluster: 'corp' });
    // As cert-manager writes an RSA key unless it is told otherwise.
    const keyPem = createPrivateKey(ca.keyPem).export({ type: 'pkcs1', format: 'pem' }).toString();
    const data = { 'tls.crt': ca.certPem, 'tls.key': keyPem, 'ca.crt': ca.certPem };
    const mounted = join(root, 'secret');
    mkdirSync(mounted);
    for (const [file, text] of Object.entries(data)) writeFileSync(join(mounted, file), text);
    const manifest = (change: Record<string, string> = {}) => {
      const encoded = Object.entries({ ...data, ...change }).map(([name, text]) => [name, btoa(text)]);
      const file = join(root, 'secret.yaml');
      writeFileSync(file, stringify({ apiVersion: 'v1', kind: 'Secret', data: Object.fromEntries(encoded) }));
      return file;
    };
    for (const [name, secret] of [
      ['mounted', mounted],
      ['manifest', manifest()],
    ] as const) {
      const made = await init('--dir', join(root, name), '--cluster', 'eu', '--ca-secret', secret);
      assert.equal(made.code, 0, made.err);
      const server = new X509Certificate(readFileSync(join(root, name, 'server.crt')));
      assert.ok(server.verify(new X509Certificate(ca.certPem).publicKey), name);
    }

    const refused = async (secret: string, ...more: string[]) => {
      const into = join(root, 'refused');
      const { code, err } = await init('--dir', into, '--cluster', 'eu', '--ca-secret', secret, ...more);
      assert.notEqual(code, 0);
      assert.ok(!existsSync(join(into, 'ca.key')), 'nothing is written');
      return err;
    };
    const ec = generateKeyPairSync('ec', { namedCurve: 'P-256' }).privateKey.export({ type: 'sec1', format: 'pem' });
    assert.match(await refused(manifest({ 'tls.key': ec.toString() })), /of type ec, only RSA keys can be used/);
    writeFileSync(join(root, 'empty.yaml'), 'kind: Secret');
    assert.match(await refused(join(root, 'empty.yaml')), /it is no secret with tls\.crt and tls\.key in its data/);
    assert.match(await refused(join(root, 'nowhere')), /no such file/);
    assert.match(await refused(mounted, '--ca-cert', 'a', '--ca-key', 'b'), /takes the place of/);
  });
});
