import assert from 'node:assert/strict';
import { it } from 'node:test';
import { judgePaths, type Path } from './paths.ts';

const path = (to: string, mtu: number, error = ''): Path => ({
  ...{ from: 'n1', to, expectedMtu: 1500, probe: { address: '192.0.2.2', mtu, error } },
});

const cases: readonly [title: string, paths: readonly Path[], state: string, what: RegExp][] = [
  ['all arrives', [path('n1', 1500), path('n2', 1500)], 'ok', /packets of 1500 bytes arrive .* all of 2 ways/],
  [
    'what lies between carries less',
    [path('n1', 1500), path('n2', 1420), path('n3', 1400)],
    'warning',
    /from n1 of eu to n3 of us packets of 1500 bytes are lost, those of 1400 arrive \(2 of 3 ways\)/,
  ],
  ['nothing comes back', [path('n1', 1500), path('n2', 0)], 'warning', /no echo .* to n2 of us .*\(1 of 2 ways\)/],
  ['there is no ping', [path('n1', 0, 'ping is not installed on this node')], 'ok', /not measured: ping is not/],
  ['nobody can be asked', [], 'ok', /not measured: no agent of eu/],
];
for (const [title, paths, state, what] of cases)
  it(`the ways between nodes: ${title}`, () => {
    const check = judgePaths('eu', 'us', paths);
    assert.equal(check.state, state, check.what);
    assert.match(check.what, what);
    assert.equal(check.why !== '' && check.fix !== '', state !== 'ok');
  });
