/** What the documents and the units promise: each test that the threat model names is there, and the daemons are confined. */
import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { repoRoot } from '@clustermesh/runtime';

const read = (path: string) => readFileSync(join(repoRoot(), path), 'utf8');

test('each test that docs/security.md names exists, under the title that it gives', () => {
  const files = ['agent', 'apiserver', 'cli', 'pki', 'runtime', 'test-kind'].flatMap((room) =>
    readdirSync(join(repoRoot(), room, 'src'), { recursive: true, encoding: 'utf8' })
      .filter((path) => path.endsWith('.test.ts'))
      .map((path) => `${room}/src/${path}`),
  );
  // A title may be broken over two lines.
  const text = read('docs/security.md').replaceAll('\n', ' ');
  const named = [...text.matchAll(/`([\w/.-]+\.test)`(?:: ((?:"[^"]+"(?:, | and )?)+))?/g)];
  assert.ok(named.length > 30, `only ${named.length} tests are named`);
  for (const [, name = '', titles = ''] of named) {
    const found = files.filter((path) => path === `${name}.ts` || path.endsWith(`/${name}.ts`));
    assert.equal(found.length, 1, `${name}: ${found.join(', ') || 'there is none'}`);
    const source = read(found[0]!).replaceAll('\\', '');
    for (const [, title = ''] of titles.matchAll(/"([^"]+)"/g))
      assert.ok(source.includes(title.replace(/ …$/, '')), `${name} has no test "${title}"`);
  }
});

const HARDENED = [
  'User=clustermesh',
  'UMask=0077',
  'ProtectSystem=strict',
  'ProtectHome=yes',
  'PrivateTmp=yes',
  'PrivateDevices=yes',
  'NoNewPrivileges=yes',
  'CapabilityBoundingSet=',
  'AmbientCapabilities=',
  'RestrictNamespaces=yes',
  'SystemCallArchitectures=native',
  'SystemCallFilter=@system-service',
];

test('apiserver and gate run confined, and the gate cannot see a key that signs or rules', () => {
  const unit = (name: string) => read(`deploy/systemd/clustermesh-${name}@.service`).split('\n');
  for (const name of ['apiserver', 'gate'])
    assert.deepEqual(
      HARDENED.filter((line) => !unit(name).includes(line)),
      [],
      name,
    );
  const hidden = unit('gate').filter((line) => line.startsWith('InaccessiblePaths='));
  for (const key of ['pki/ca.key', 'pki/ca-next.key', 'pki/admin.key', 'peers'])
    assert.ok(hidden.join(' ').includes(`-/etc/clustermesh/%i/${key}`), key);
  const writable = unit('apiserver').filter((line) => line.startsWith('ReadWritePaths='));
  assert.deepEqual(writable, ['ReadWritePaths=/etc/clustermesh/%i/pki /etc/clustermesh/%i/peers']);
});
