import assert from 'node:assert/strict';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, readdirSync, rmSync, statSync, utimesSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, it } from 'node:test';
import { Worker } from 'node:worker_threads';
import {
  type AdminMethods,
  type ClusterInfo,
  type ClusterStatus,
  MeshError,
  type OperationEvent,
} from '@clustermesh/contract';
import { dialRpc, type Handlers, serveRpc } from './rpc.ts';
import { waitFor } from './wait.ts';

const dir = mkdtempSync(join(tmpdir(), 'cm-rpc-'));
after(() => rmSync(dir, { recursive: true, force: true }));

const eu: ClusterInfo = {
  name: 'eu',
  id: 1,
  maxConnectedClusters: 255,
  region: 'eu-west',
  endpoints: ['https://eu.mesh.cilium.io:2379'],
  hostAliases: [{ hostname: 'eu.mesh.cilium.io', ips: ['127.0.0.1'] }],
  caPem: 'pem',
  version: '0',
  podCidr: '10.1.0.0/16',
  podCidrV6: 'fd00:1::/32',
  adminEndpoints: ['eu.example:9882'],
};

function event(step: string): OperationEvent {
  return {
    id: '7',
    kind: 'connect',
    peer: 'us',
    state: 'active',
    step,
    message: '',
    certificateForPeerPem: '',
    errorCode: '',
    hint: '',
  };
}

/** Looks at a file all the time, in a thread of its own, and tells which modes it has had. */
const WATCH_MODES = `
  const { parentPort, workerData, receiveMessageOnPort } = require('node:worker_threads');
  const { statSync } = require('node:fs');
  const modes = new Set();
  parentPort.postMessage('looking');
  while (receiveMessageOnPort(parentPort) === undefined) {
    const stat = statSync(workerData, { throwIfNoEntry: false });
    if (stat !== undefined) modes.add((stat.mode & 0o777).toString(8));
  }
  parentPort.postMessage([...modes]);
`;

let watcherGone = false;
const handlers: Handlers<AdminMethods> = {
  GetCluster: async () => eu,
  PrepareConnect: async ({ peer }) => {
    throw new MeshError({
      code: 'conflict',
      message: `preparing ${peer}: already there`,
      hint: 'disconnect it first: „éß"',
    });
  },
  StartConnect: async ({ peer }) => ({ id: `connect:${peer.name}:${peer.hostAliases[0]?.ips[0]}` }),
  SupplyCertificate: async () => ({}),
  StartDisconnect: async () => ({ id: 'x' }),
  GetStatus: async (): Promise<ClusterStatus> => assert.fail('not called'),
  GetFacts: async () => assert.fail('not called'),
  Preflight: async () => assert.fail('not called'),
  CreateInvite: async () => assert.fail('not called'),
  StartDrain: async () => assert.fail('not called'),
  Join: async () => assert.fail('not called'),
  RedeemInvite: async () => assert.fail('not called'),
  CompleteInvite: async () => assert.fail('not called'),
  RenewPeer: async () => assert.fail('not called'),
  RotateCa: async () => assert.fail('not called'),
  RotateLeaves: async () => assert.fail('not called'),
  Disable: async () => assert.fail('not called'),
  Enable: async () => assert.fail('not called'),
  Diagnose: async () => assert.fail('not called'),
  ListOperations: async () => assert.fail('not called'),
  RetryOperation: async () => assert.fail('not called'),
  CancelOperation: async () => assert.fail('not called'),
  WatchOperation: async function* ({ id }, { signal }) {
    yield event('first');
    yield event('second');
    if (id === 'endless') {
      await new Promise<void>((resolve) => signal.addEventListener('abort', () => resolve(), { once: true }));
      watcherGone = true;
    }
  },
};

describe('rpc over a unix socket', async () => {
  const socket = join(dir, 'a.sock');
  const server = await serveRpc<AdminMethods>('admin', socket, handlers);
  const client = dialRpc<AdminMethods>('admin', `unix://${socket}`);
  after(async () => {
    client.close();
    await server.close();
  });

  it('carries messages both ways, nested ones too', async () => {
    assert.deepEqual(await client.GetCluster({}), eu);
    assert.equal(
      (await client.StartConnect({ peer: eu, peerCsrPem: 'csr', direction: 'both' })).id,
      'connect:eu:127.0.0.1',
    );
  });

  it('carries an error with its code, message and hint', async () => {
    await assert.rejects(client.PrepareConnect({ peer: 'us' }), (error: MeshError) => {
      assert.equal(error.code, 'conflict');
      assert.equal(error.message, 'preparing us: already there');
      assert.equal(error.hint, 'disconnect it first: „éß"');
      return true;
    });
  });

  it('streams until the end, and tells the server when a reader goes away', async () => {
    const steps: string[] = [];
    for await (const item of client.WatchOperation({ id: 'short' })) steps.push(item.step);
    assert.deepEqual(steps, ['first', 'second']);
    for await (const item of client.WatchOperation({ id: 'endless' })) if (item.step === 'second') break;
    await waitFor(() => watcherGone, { what: 'the server to see the reader go', timeoutMs: 5000 });
  });

  it('lets only the owner open the socket', () => {
    assert.equal(statSync(socket).mode & 0o777, 0o600);
  });

  it('is never open to others, not even while it is being made, and leaves nothing behind', async () => {
    const watched = join(dir, 'watched.sock');
    const before = process.umask(0);
    const watcher = new Worker(WATCH_MODES, { eval: true, workerData: watched });
    try {
      await once(watcher, 'message');
      for (let round = 0; round < 20; round++) {
        const server = await serveRpc<AdminMethods>('admin', watched, handlers);
        await server.close();
      }
      watcher.postMessage('enough');
      const [modes] = await once(watcher, 'message');
      assert.deepEqual(modes, ['600']);
    } finally {
      process.umask(before);
      await watcher.terminate();
    }
    assert.deepEqual(readdirSync(dir), ['a.sock']);
  });

  it('is made in its own directory and touches no other, whatever that one is called', async () => {
    const outer = join(dir, 'outer');
    const inner = join(outer, 'endsWithX');
    mkdirSync(inner, { recursive: true });
    utimesSync(outer, 1, 1);
    const server = await serveRpc<AdminMethods>('admin', join(inner, 'a.sock'), handlers);
    await server.close();
    assert.equal(statSync(outer).mtimeMs, 1_000);
    rmSync(outer, { recursive: true });
  });

  it('names the address and the likely cause when nobody listens', async () => {
    const lost = dialRpc<AdminMethods>('admin', `unix://${join(dir, 'nobody.sock')}`);
    await assert.rejects(
      lost.GetCluster({}, { timeoutMs: 3000 }),
      (error: MeshError) =>
        error.code === 'unreachable' && error.message.includes('nobody.sock') && error.hint !== undefined,
    );
    lost.close();
  });
});
