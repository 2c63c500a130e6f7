import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterEach, beforeEach, describe, it } from 'node:test';
import { checkRepositoryFiles } from './check-files.mjs';
import { checkImports, importsOf } from './check-imports.mjs';
import { repoRoot } from './lib.mjs';

let root;

function plant(files) {
  const packageJson = { dependencies: { zod: '4.6.7', koffi: '3.3.4' }, devDependencies: { 'fast-check': '4.10.2' } };
  const all = { 'package.json': JSON.stringify(packageJson), ...files };
  for (const [path, text] of Object.entries(all)) {
    mkdirSync(join(root, dirname(path)), { recursive: true });
    writeFileSync(join(root, path), text);
  }
}

beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), 'cm-check-'));
});
afterEach(() => rmSync(root, { recursive: true, force: true }));

describe('import directions', () => {
  it('accepts imports that point inward', () => {
    plant({
      'contract/src/index.ts':
        "import { z } from 'zod';\nimport { isIP } from 'node:net';\nexport * from './keys.ts';\n",
      'contract/src/keys.ts': 'export const base = 1;\n',
      'contract/src/keys.test.ts': "import { test } from 'node:test';\nimport fc from 'fast-check';\n",
      'agent/src/main.ts': "import { readFileSync } from 'node:fs';\nimport { base } from '@clustermesh/contract';\n",
      'agent/src/maps.ts': "import { layout } from '@clustermesh/bpf';\n",
      'test-kind/src/lab.ts': "import { issue } from '@clustermesh/pki';\n",
    });
    assert.deepEqual(checkImports(root), []);
  });

  const violations = [
    ['a daemon that knows another', 'agent/src/a.ts', "import { x } from '@clustermesh/apiserver';", /not apiserver/],
    ['an inner room that knows an outer one', 'kvstore/src/a.ts', "import { x } from '@clustermesh/pki';", /not pki/],
    ['contract knowing any room', 'contract/src/a.ts', "import type { X } from '@clustermesh/runtime';", /not runtime/],
    ['contract doing IO', 'contract/src/a.ts', "import { readFileSync } from 'node:fs';", /contract is pure/],
    ['contract doing IO by the old name', 'contract/src/a.ts', "import fs from 'fs';", /contract is pure/],
    ['contract opening sockets', 'contract/src/a.ts', "import { isIP, connect } from 'node:net';", /contract is pure/],
    [
      'contract opening sockets later',
      'contract/src/a.ts',
      "const net = await import('node:net');",
      /contract is pure/,
    ],
    ['a relative way into another room', 'cli/src/a.ts', "import { x } from '../../agent/src/b.ts';", /into agent\//],
    ['a relative way out of the project', 'cli/src/a.ts', "import '../../../elsewhere.ts';", /another directory/],
    [
      'test helpers in a daemon',
      'agent/src/a.ts',
      "import { x } from '@clustermesh/kvstore/testing';",
      /outside of a test/,
    ],
    ['the inside of a room', 'cli/src/a.ts', "import { x } from '@clustermesh/contract/src/keys.ts';", /reaches into/],
    ['the lab knowing a daemon', 'test-kind/src/a.ts', "export { x } from '@clustermesh/agent';", /not agent/],
    [
      'the strict reader knowing any room',
      'strict-reader/src/a.ts',
      "import '@clustermesh/contract';",
      /no other room/,
    ],
    ['a room that does not exist', 'cli/src/a.ts', "import { x } from '@clustermesh/attic';", /does not exist/],
    ['a dynamic import', 'agent/src/a.ts', "  const m = await import('@clustermesh/cli');", /not cli/],
    [
      'an import over several lines',
      'pki/src/a.ts',
      "import {\n  x,\n  y,\n} from '@clustermesh/kvstore';",
      /a\.ts:4.*not kv/,
    ],
    ['a package nobody listed', 'agent/src/a.ts', "import _ from 'lodash';", /lodash is not in package.json/],
    ['a test library in a daemon', 'agent/src/a.ts', "import fc from 'fast-check';", /only tests/],
  ];
  for (const [what, file, text, expected] of violations) {
    it(`reports ${what}`, () => {
      plant({ [file]: `${text}\n` });
      const found = checkImports(root);
      assert.equal(found.length, 1, `${text} → ${JSON.stringify(found)}`);
      assert.match(found[0], expected);
      assert.ok(found[0].startsWith(file), found[0]);
    });
  }

  it('reports a cycle between files of a room with its whole path', () => {
    plant({
      'agent/src/a.ts': "import { b } from './b.ts';\n",
      'agent/src/b.ts': "export { c } from './deep/c.ts';\n",
      'agent/src/deep/c.ts': "import { a } from '../a.ts';\n",
    });
    assert.deepEqual(checkImports(root), [
      'agent/src/a.ts:1: import cycle: agent/src/a.ts → agent/src/b.ts → agent/src/deep/c.ts → agent/src/a.ts',
    ]);
  });

  it('lets types refer to each other in a circle', () => {
    plant({
      'agent/src/a.ts': "import type { B } from './b.ts';\n",
      'agent/src/b.ts': "import { a } from './a.ts';\n",
    });
    assert.deepEqual(checkImports(root), []);
  });

  it('is not misled by comments, strings and globs', () => {
    const text = [
      "// import { x } from '@clustermesh/agent';",
      " * import('@clustermesh/agent')",
      "const glob = '*/src/**';",
      'const said = "import x from \'@clustermesh/agent\'";',
      'const generated = `',
      "import { x } from '@clustermesh/agent';",
      '`;',
      "import type { T } from 'zod';",
    ].join('\n');
    assert.deepEqual(
      importsOf(text).map((found) => [found.specifier, found.typeOnly]),
      [['zod', true]],
    );
  });

  it('holds in this repository', () => assert.deepEqual(checkImports(repoRoot), []));
});

describe('repository files', () => {
  const lock = (packages) => ({ 'package-lock.json': JSON.stringify({ packages }) });

  it('accepts a lock file that names only our own folders', () => {
    plant({ ...lock({ '': {}, 'node_modules/room': { resolved: 'room', link: true } }), 'room/package.json': '{}' });
    plant({ 'package.json': '{"dependencies":{"zod":"4.6.7"}}', '.npmrc': 'fund=false\n' });
    assert.deepEqual(checkRepositoryFiles(root), []);
  });

  it('reports registry addresses, credentials and version ranges', () => {
    plant({
      ...lock({ '': {}, 'node_modules/zod': { resolved: 'https://registry.example/zod.tgz' } }),
      '.npmrc': 'registry=https://registry.example/\n',
      'package.json': '{"dependencies":{"zod":"^4.6.7"}}',
    });
    const found = checkRepositoryFiles(root).join('\n');
    assert.match(found, /package-lock.json: node_modules\/zod/);
    assert.match(found, /\.npmrc: "registry=/);
    assert.match(found, /zod is "\^4\.6\.7"/);
  });

  it('holds in this repository', () => assert.deepEqual(checkRepositoryFiles(repoRoot), []));
});
