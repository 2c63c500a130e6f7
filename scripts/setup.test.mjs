// What setup says where it cannot work: on real deficiencies, made in a mount namespace or by taking rights away.
import assert from 'node:assert/strict';
import { spawnSync } from 'node:child_process';
import {
  chmodSync,
  copyFileSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { repoRoot } from './lib.mjs';

let dir;
let setup;

/** Runs a shell line in a mount namespace of its own; `"$SETUP"` is the check. */
function check(shell, env = {}) {
  const result = spawnSync('unshare', ['--mount', 'bash', '-c', shell], {
    encoding: 'utf8',
    env: { ...process.env, SETUP: setup, ...env },
  });
  return { code: result.status, said: result.stderr, pid: result.pid };
}

/** A PATH with every program of this machine but the named ones. */
function pathWithout(...names) {
  const bin = mkdtempSync(join(dir, 'bin-'));
  for (const source of ['/usr/local/sbin', '/usr/local/bin', '/usr/sbin', '/usr/bin']) {
    for (const name of readdirSync(source)) {
      if (names.includes(name)) continue;
      try {
        symlinkSync(join(source, name), join(bin, name));
      } catch (error) {
        if (error.code !== 'EEXIST') throw error; // an earlier folder of the PATH wins
      }
    }
  }
  return bin;
}

before(() => {
  dir = mkdtempSync(join(tmpdir(), 'cm-setup-test-'));
  // A copy that anybody may run: the checkout may be in a directory that only root can enter.
  chmodSync(dir, 0o755);
  mkdirSync(join(dir, 'scripts'), { mode: 0o755 });
  setup = join(dir, 'scripts', 'setup.sh');
  copyFileSync(join(repoRoot, 'scripts', 'setup.sh'), setup);
  chmodSync(setup, 0o755);
});
after(() => rmSync(dir, { recursive: true, force: true }));

describe('setup --check', () => {
  it('finds nothing missing where everything is there', () => {
    const { code, said } = check('"$SETUP" --check');
    assert.equal(code, 0, said);
  });

  it('names the packages of missing programs and what they are for', () => {
    const { code, said } = check('"$SETUP" --check', { PATH: pathWithout('etcd', 'clang') });
    assert.equal(code, 2, said);
    assert.match(said, /package etcd-server: missing.*store of each cluster/);
    assert.match(said, /package clang: missing.*eBPF/);
  });

  it('reports all problems of a machine together', () => {
    const bin = pathWithout('apt-get', 'redis-server', 'node');
    writeFileSync(join(bin, 'node'), '#!/bin/sh\necho 18.20.4\n');
    chmodSync(join(bin, 'node'), 0o755);
    const { code, said } = check('mount -t tmpfs none /sys/kernel/btf && "$SETUP" --check', { PATH: bin });
    assert.equal(code, 2, said);
    assert.match(said, /Node: this is 18\.20\.4, needed is 20/);
    assert.match(said, /apt: not found.*redis-server/);
    assert.match(said, /kernel BTF: .*CONFIG_DEBUG_INFO_BTF/);
  });

  it('asks for root', () => {
    const { code, said } = check(
      `setpriv --reuid=65534 --regid=65534 --clear-groups bash -c 'cd / && "$SETUP" --check'`,
    );
    assert.equal(code, 2, said);
    assert.match(said, /root: this runs as user nobody/);
  });

  it('names the kernel features that a confined root may not use', () => {
    const confined = 'setpriv --bounding-set=-net_admin,-sys_admin,-bpf --inh-caps=-all -- "$SETUP" --check';
    const { code, said } = check(confined);
    assert.equal(code, 2, said);
    assert.match(said, /network namespaces: cannot make one/);
    assert.match(said, /eBPF on cgroups/);
  });

  it('leaves no namespace and no cgroup behind', () => {
    const { pid } = check('exec "$SETUP" --check');
    const list = 'ip netns list; find /sys/fs/cgroup -maxdepth 2 -type d -name "cm-setup-*"';
    const left = spawnSync('bash', ['-c', list], { encoding: 'utf8' });
    assert.ok(!left.stdout.includes(`cm-setup-${pid}`), left.stdout);
  });
});
