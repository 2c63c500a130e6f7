import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import type { AdminMethods, ClusterStatus, MeshError, RedeemInviteRequest } from '@clustermesh/contract';
import { createInvite, fetchPinnedCa, parseToken, SERVER_COMMON_NAME } from '@clustermesh/pki';
import { dialRpc, waitFor } from '@clustermesh/runtime';
import { type CommandResult, runCli, startTestCluster, type TestCluster } from '../testing/apiserver-process.ts';
import { leftoversOf } from '../testing/leftovers.ts';

describe('clustermesh invite and join', () => {
  let eu: TestCluster;
  let us: TestCluster;
  before(async () => {
    [eu, us] = await Promise.all([startTestCluster('eu', 1), startTestCluster('us', 2)]);
    await Promise.all([eu.startApiserver(), us.startApiserver()]);
  });
  after(() => Promise.all([eu.close(), us.close()]));

  const said = (result: CommandResult) => `exit ${result.code}\n${result.out}\n${result.err}`;
  async function ok(...args: string[]): Promise<string> {
    const result = await runCli(args);
    assert.equal(result.code, 0, said(result));
    return result.out;
  }
  const invite = async (by: TestCluster, ...more: string[]) =>
    (await ok('invite', '--context', by.context, ...more)).trim();
  const joinWith = (token: string, by: TestCluster) => runCli(['join', token, '--context', by.context]);
  async function refused(token: string, by: TestCluster, why: RegExp): Promise<void> {
    const result = await joinWith(token, by);
    assert.equal(result.code, 1, said(result));
    assert.match(result.err, why);
    assert.match(result.err, /^hint: /m);
    assert.ok(!(result.out + result.err).includes(token.split('.')[2]!), 'the secret is not repeated');
    assert.deepEqual(readdirSync(join(by.dir, 'state/pending')), [], 'no key waits for an answer that will not come');
  }
  const tokens: string[] = [];

  it('connects both directions; the secret is in no log, no file and not in Redis', async () => {
    const token = await invite(eu);
    tokens.push(token);
    const result = await joinWith(token, us);
    assert.equal(result.code, 0, said(result));
    assert.match(result.out, /us has joined eu, applied on every node of us/);
    for (const side of [eu, us]) {
      const status = JSON.parse(await ok('status', '--context', side.context, '--wait', '-o', 'json')) as ClusterStatus;
      assert.deepEqual(
        status.peers.map((peer) => peer.ready),
        [true],
      );
      const secret = token.split('.')[2]!;
      assert.ok(!side.log().includes(secret));
      const grep = ['-rlF', secret, side.dir, side.redis.path.replace(/\/[^/]*$/, '')];
      // The joiner holds it until the other side has its certificate and has said so.
      await waitFor(() => run('grep', grep) === '', { what: 'no file to hold it', timeoutMs: 10_000 });
    }
    await waitFor(() => readdirSync(join(us.dir, 'state/pending')).length === 0, {
      what: 'nothing to be pending',
      timeoutMs: 10_000,
    });
  });

  it('refuses a token that was used, each time with the reason', async () => {
    await ok('disconnect', '--context', eu.context, '--destination-context', us.context);
    await refused(tokens[0]!, us, /redeeming invitation [0-9a-f]{16} of eu: it was used by another request/);
    assert.deepEqual(await leftoversOf(eu, 'us'), []);
  });

  it('refuses a token that was altered, has expired, or is our own', async () => {
    const token = await invite(eu);
    const [version, body, secret] = token.split('.');
    await refused([version, body, secret, 'AAAAAAAA'].join('.'), us, /it was altered or cut off on the way/);
    await refused(token, eu, /it was made by the cluster that wants to join/);
    await refused(await invite(eu, '--ttl', '1ms'), us, /it has expired/);
    // With a right check, but a secret that nobody was given.
    const { facts } = parseToken(token);
    const own = { cluster: 'eu', clusterId: 1, caPin: facts.caPin };
    const guessed = createInvite({ own, endpoints: facts.endpoints, nowMs: Date.now() }).token.reveal();
    await refused(guessed, us, /it is not known here/);
  });

  it('refuses a server that is not of the pinned CA, before anything is sent to it', async () => {
    const token = await invite(eu);
    const { facts } = parseToken(token);
    const own = { cluster: 'eu', clusterId: 1, caPin: 'ab'.repeat(32) };
    const pinned = createInvite({ own, endpoints: facts.endpoints, nowMs: Date.now() }).token.reveal();
    await refused(
      pinned,
      us,
      /its certificate is of another CA \([0-9a-f, ]+\) than the invitation names \(abababababababab\)/,
    );
  });

  it('answers strangers without a token, or with half a request, with a refusal and nothing else', async () => {
    const { facts } = parseToken(await invite(eu));
    const [endpoint] = facts.endpoints;
    const caPem = await fetchPinnedCa({ endpoint: endpoint!, pin: facts.caPin });
    const stranger = dialRpc<AdminMethods>('admin', endpoint!, { caPem, serverName: SERVER_COMMON_NAME });
    try {
      const half = { token: 'cm1.a.b.c' } as unknown as RedeemInviteRequest;
      const isRefused = (error: MeshError) => error.code === 'invalid-argument';
      await assert.rejects(stranger.RedeemInvite(half), isRefused);
      await assert.rejects(stranger.CompleteInvite({ certificatePem: 'x' } as never), isRefused);
      const peer = await stranger.GetCluster({}).catch((error: MeshError) => error.code);
      assert.equal(peer, 'unauthenticated');
    } finally {
      stranger.close();
    }
    assert.deepEqual(await leftoversOf(eu, 'us'), []);
  });

  it('survives kill -9 of the inviting apiserver, with the same token', async () => {
    const token = await invite(eu);
    let killed: Promise<void> | undefined;
    const stop = eu.onLog((line) => {
      if (line.includes('"step started"') && line.includes('authorize-peer'))
        killed ??= eu.killApiserver().then(() => eu.startApiserver());
    });
    const first = await joinWith(token, us);
    stop();
    assert.ok(killed !== undefined, 'the apiserver was killed');
    await killed;
    if (first.code !== 0) {
      const second = await joinWith(token, us);
      assert.equal(second.code, 0, `${said(first)}\n${said(second)}`);
    }
    await ok('status', '--context', eu.context, '--wait');
    await ok('disconnect', '--context', eu.context, '--destination-context', us.context);
  });
});

/** Output of a command whose exit code does not matter. */
function run(command: string, args: readonly string[]): string {
  try {
    return execFileSync(command, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] });
  } catch {
    return '';
  }
}
