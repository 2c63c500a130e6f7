import assert from 'node:assert/strict';
import { readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, afterEach, before, describe, it } from 'node:test';
import type { ClusterStatus, PreflightCheck } from '@clustermesh/contract';
import { waitFor } from '@clustermesh/runtime';
import { type CommandResult, runCli, startTestCluster, type TestCluster } from '../testing/apiserver-process.ts';
import { leftoversOf } from '../testing/leftovers.ts';

describe('clustermesh connect between two control planes', () => {
  let eu: TestCluster;
  let us: TestCluster;
  before(async () => {
    [eu, us] = await Promise.all([startTestCluster('eu', 1), startTestCluster('us', 2)]);
    await Promise.all([eu.startApiserver(), us.startApiserver()]);
  });
  after(() => Promise.all([eu.close(), us.close()]));

  const pair = () => ['--context', eu.context, '--destination-context', us.context];
  const connect = (onText?: (text: string) => void, ...more: string[]) =>
    runCli(['connect', ...pair(), ...more], onText);
  const disconnect = () => runCli(['disconnect', ...pair(), '--timeout', '30s']);
  const said = (result: CommandResult) => `exit ${result.code}\n${result.out}\n${result.err}`;
  afterEach(async () => {
    const result = await disconnect();
    assert.equal(result.code, 0, said(result));
  });

  it('ends with both mirrors synced, and status says so', async () => {
    const result = await connect();
    assert.equal(result.code, 0, said(result));
    assert.match(result.out, /connecting eu \(id 1, eu-1\) and us \(id 2, us-1\)/);
    for (const side of ['eu', 'us']) {
      for (const step of ['authorize-peer', 'install-credentials', 'await-sync'])
        assert.match(result.out, new RegExp(`${side}  ${step} .*\\(\\d`));
    }
    assert.match(result.out, /connected eu and us in/);

    const waited = await runCli(['status', '--context', eu.context, '--wait', '--wait-duration', '20s', '-o', 'json']);
    assert.equal(waited.code, 0, said(waited));
    const status = JSON.parse(waited.out) as ClusterStatus & { ready: boolean };
    assert.equal(status.ready, true);
    assert.deepEqual(
      status.peers.map(({ name, id, connected, ready }) => ({ name, id, connected, ready })),
      [{ name: 'us', id: 2, connected: true, ready: true }],
    );
    assert.ok(status.peers[0]!.lastProofAgeMs >= 0);
    const table = await runCli(['status', '--context', eu.context]);
    assert.match(table.out, /^us {4}2 {3}ready/m, said(table));
  });

  it('is preceded by a preflight from both sides, which can be asked for alone', async () => {
    const result = await runCli(['preflight', ...pair(), '-o', 'json']);
    assert.equal(result.code, 0, said(result));
    const reports = JSON.parse(result.out) as { cluster: string; checks: PreflightCheck[] }[];
    assert.deepEqual(
      reports.map(({ cluster, checks }) => [cluster, checks.filter((check) => check.state !== 'ok')]),
      [
        ['eu', []],
        ['us', []],
      ],
    );
    assert.match(JSON.stringify(reports), /the etcd of us answers at https:\/\/us\.mesh\.cilium\.io/);
    assert.deepEqual(readdirSync(join(eu.dir, 'clustermesh')), [], 'nothing was changed');
  });

  it('leaves the layout of a Cilium configuration directory, and no key anywhere else', async () => {
    const result = await connect();
    assert.equal(result.code, 0, said(result));
    assert.deepEqual(readdirSync(join(eu.dir, 'clustermesh')).sort(), [
      'us',
      'us.etcd-client-ca.crt',
      'us.etcd-client.crt',
      'us.etcd-client.key',
    ]);
    assert.match(readFileSync(join(eu.dir, 'users.yaml'), 'utf8'), /name: remote-us/);
    assert.deepEqual(readdirSync(join(eu.dir, 'state', 'pending')), []);
    assert.doesNotMatch(eu.log(), /PRIVATE KEY/);
  });

  it('survives kill -9 of an apiserver in the middle, without a second command', async () => {
    let killed: Promise<void> | undefined;
    const result = await connect((text) => {
      if (/eu {2}authorize-peer/.test(text)) killed ??= eu.killApiserver().then(() => eu.startApiserver());
    });
    await killed;
    assert.ok(killed !== undefined, 'the apiserver was killed');
    assert.equal(result.code, 0, said(result));
    assert.match(result.err, /eu: the apiserver is gone; waiting for it/);
    assert.match(result.out, /connected eu and us/);
  });

  it('waits for Redis, says so, and goes on by itself when it is back', async () => {
    await us.redis.kill();
    let back: Promise<void> | undefined;
    const result = await connect((text) => {
      if (/us: .*Redis at .* is unreachable/.test(text)) back ??= us.redis.start();
    });
    await back;
    assert.ok(back !== undefined, said(result));
    assert.equal(result.code, 0, said(result));
  });

  it('goes on when Redis is killed while an operation runs', async () => {
    let back: Promise<void> | undefined;
    const result = await connect((text) => {
      if (/us {2}authorize-peer/.test(text)) back ??= us.redis.kill().then(() => us.redis.start());
    });
    await back;
    assert.ok(back !== undefined, said(result));
    assert.equal(result.code, 0, said(result));
  });

  it('gives up following when the time is over, with exit code 3 and what it waited for', async () => {
    await us.redis.kill();
    try {
      const result = await connect(undefined, '--timeout', '2s');
      assert.equal(result.code, 3, said(result));
      assert.match(result.err, /error: connecting eu and us: not done within 2.0 s/);
      assert.match(result.err, /hint: what was started goes on/);
      const status = await runCli(['status', '--context', us.context]);
      assert.equal(status.code, 0, said(status));
      assert.match(status.out, /redis {3}unreachable/);
    } finally {
      await us.redis.start();
    }
  });

  it('names an endpoint that cannot be reached, and leaves nothing behind', async () => {
    await us.killApiserver();
    await us.startApiserver(['https://us.mesh.cilium.io:1']);
    try {
      const result = await connect();
      assert.equal(result.code, 1, said(result));
      assert.match(
        result.err,
        /error: eu: reaching the etcd of cluster us: https:\/\/us\.mesh\.cilium\.io:1 \(127\.0\.0\.1\): connection refused/,
      );
      assert.match(result.err, /hint: check that etcd of us runs/);
      assert.deepEqual(readdirSync(join(eu.dir, 'clustermesh')), []);
    } finally {
      await us.killApiserver();
      await us.startApiserver();
    }
    const after = await disconnect();
    assert.equal(after.code, 0, said(after));
    assert.doesNotMatch(readFileSync(join(us.dir, 'users.yaml'), 'utf8'), /remote-eu/);
  });

  it('F40 follows a peer whose address has changed when it is connected again, without a restart or a gap', async () => {
    assert.equal((await connect()).code, 0);
    const proxy = await us.etcd.proxy();
    const moved = `https://us.mesh.cilium.io:${new URL(proxy.endpoint).port}`;
    await us.killApiserver();
    await us.startApiserver([moved]);
    try {
      const logged = eu.log().length;
      const pid = eu.pid();
      const again = await connect();
      assert.equal(again.code, 0, said(again));
      assert.match(readFileSync(join(eu.dir, 'clustermesh/us'), 'utf8'), new RegExp(moved));
      const status = await runCli(['status', '--context', eu.context, '--wait', '--wait-duration', '20s']);
      assert.equal(status.code, 0, said(status));
      assert.equal(eu.pid(), pid, 'it was not restarted');
      assert.doesNotMatch(eu.log().slice(logged), /"peer drained"|"starting"/);
      // It is really read from there: cut off, it is missed.
      proxy.blackhole();
      await waitFor(
        async () => /disconnected|not connected/.test((await runCli(['status', '--context', eu.context])).out),
        { what: 'the new address to be missed', timeoutMs: 60_000 },
      );
    } finally {
      proxy.heal();
      await us.killApiserver();
      await us.startApiserver();
    }
  });

  it('is refused while one of them is disabled, which leaves nothing of its peers; enabled again, it connects', async () => {
    assert.equal((await connect()).code, 0);
    const token = (await runCli(['invite', '--context', eu.context])).out.trim();
    const disabled = await runCli(['disable', '--context', eu.context, '--yes']);
    assert.equal(disabled.code, 0, said(disabled));
    assert.match(disabled.out, /clustermesh is disabled on eu: parted from us/);
    assert.deepEqual(await leftoversOf(eu, 'us'), []);
    assert.match((await runCli(['status', '--context', eu.context])).out, /mesh {4}disabled/);

    const refused = await connect();
    assert.equal(refused.code, 1, said(refused));
    assert.match(refused.err, /error: eu: clustermesh is disabled on eu.*\nhint: clustermesh enable --context eu/);
    const invited = await runCli(['invite', '--context', eu.context]);
    assert.match(invited.err, /error: inviting a cluster: clustermesh is disabled on eu/);
    const joined = await runCli(['join', token, '--context', us.context]);
    assert.match(joined.err, /it was taken back|revoked|disabled on eu/, said(joined));
    assert.deepEqual(await leftoversOf(eu, 'us'), []);

    assert.equal((await runCli(['disable', '--context', eu.context, '--yes'])).code, 0, 'once more does no harm');
    assert.equal((await runCli(['enable', '--context', eu.context])).code, 0);
    const again = await connect();
    assert.equal(again.code, 0, said(again));
  });

  it('disconnects from a peer that is dead', async () => {
    assert.equal((await connect()).code, 0);
    await Promise.all([us.killApiserver(), us.etcd.kill()]);
    try {
      const result = await disconnect();
      assert.equal(result.code, 0, said(result));
      assert.match(result.err, /us: its apiserver does not answer, so only eu is disconnected/);
      assert.match(result.out, /disconnected eu from us/);
      const status = JSON.parse((await runCli(['status', '--context', eu.context, '-o', 'json'])).out) as ClusterStatus;
      assert.deepEqual(status.peers, []);
      assert.doesNotMatch(readFileSync(join(eu.dir, 'users.yaml'), 'utf8'), /remote-us/);
    } finally {
      await us.etcd.start();
      await us.startApiserver();
    }
  });
});
