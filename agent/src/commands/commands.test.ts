/** The commands as an operator types them, against an agent over its unix socket. The kernel is a fake one: rows can be bent. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, it } from 'node:test';
import { type AgentMethods, type LocalPolicy, localKey } from '@clustermesh/contract';
import { serveRpc } from '@clustermesh/runtime';
import { handlers } from '../handlers.ts';
import { policyRowKey } from '../policy/types.ts';
import type { PolicyView } from '../policy/view.ts';
import {
  endpointRequest,
  eventually,
  FRONTEND,
  startCluster,
  type TestCluster,
  type TestNode,
} from '../testing/cluster.ts';
import { isCommandLine, runCommands } from './program.ts';

let cluster: TestCluster;
let node: TestNode;
let directory: string;
let socket: string;
let rpc: { close(): Promise<void> };

before(async () => {
  cluster = await startCluster();
  await cluster.writeLocal();
  node = await cluster.node('n1');
  await eventually('the service to be in the kernel', () => node.kernel.services.rows.get(FRONTEND));
  directory = mkdtempSync(join(tmpdir(), 'cm-agent-commands-'));
  socket = join(directory, 'agent.sock');
  rpc = await serveRpc<AgentMethods>('agent', socket, handlers(node.agent));
});
after(async () => {
  await rpc?.close();
  await cluster?.[Symbol.asyncDispose]();
  if (directory !== undefined) rmSync(directory, { recursive: true, force: true });
});

interface Said {
  readonly code: number;
  readonly out: string;
  readonly err: string;
}

async function run(...args: string[]): Promise<Said> {
  return runWith({ CLUSTERMESH_AGENT_SOCKET: socket }, ...args);
}

async function runWith(env: Record<string, string>, ...args: string[]): Promise<Said> {
  const [out, err]: string[][] = [[], []];
  const terminal = { out: (line: string) => void out!.push(line), err: (line: string) => void err!.push(line) };
  const code = await runCommands(args, { ...terminal, env, signal: new AbortController().signal });
  return { code, out: out!.join('\n'), err: err!.join('\n') };
}

describe('which agent', () => {
  it('is named by --socket, or by the environment; else that is wrong usage', async () => {
    assert.equal((await runWith({}, 'endpoint', 'list', '--socket', socket)).code, 0);
    assert.equal((await run('endpoint', 'list')).code, 0);
    const { code, err } = await runWith({}, 'endpoint', 'list');
    assert.deepEqual([code, /hint: Name its socket/.test(err)], [2, true]);
  });

  it('that is not there is a failure that says so', async () => {
    const { code, err } = await runWith({}, 'drops', '--socket', join(directory, 'nobody.sock'));
    assert.equal(code, 1);
    assert.match(err, /^error: calling ReadMap at unix:.*nobody\.sock/);
  });

  it('is started by --config alone', () => {
    assert.equal(isCommandLine(['--config', 'agent.yaml']), false);
    for (const args of [['drops', '--config', 'agent.yaml'], ['--help'], []]) assert.equal(isCommandLine(args), true);
  });
});

describe('map', () => {
  it('dump prints rows as a table and as JSON', async () => {
    const { code, out } = await run('map', 'dump', 'ipcache', '-o', 'json');
    assert.equal(code, 0);
    const rows = JSON.parse(out) as { prefix: string }[];
    assert.deepEqual(rows, [...node.kernel.ipcache.rows.values()]);
    const table = (await run('map', 'dump', 'ipcache')).out.split('\n');
    assert.match(table[0]!, /^PREFIX +.*IDENTITY +CLUSTER ID/);
    assert.equal(table.length, rows.length + 1);
  });

  it('get prints what has the text in a field, and ends with 1 if nothing has', async () => {
    const [prefix] = [...node.kernel.ipcache.rows.keys()];
    const { out } = await run('map', 'get', 'ipcache', prefix!.replace('/32', ''), '-o', 'json');
    assert.deepEqual(JSON.parse(out), [node.kernel.ipcache.rows.get(prefix!)]);
    const missing = await run('map', 'get', 'ipcache', '192.0.2.1');
    assert.deepEqual([missing.code, missing.out], [1, '']);
    assert.match(missing.err, /no row has it/);
  });
});

describe('policy get', () => {
  const policy: LocalPolicy = {
    kind: 'CiliumNetworkPolicy',
    namespace: 'default',
    name: 'client',
    refused: [],
    specs: [
      {
        subject: [],
        defaultDeny: { ingress: true, egress: false },
        rules: [
          {
            direction: 'ingress',
            effect: 'allow',
            peers: [
              { kind: 'labels', selector: [{ source: 'any', key: 'app', operator: 'In', values: ['client'] }] },
              { kind: 'cidr', cidr: '192.0.2.0/24', except: [] },
            ],
            layer4: [{ kind: 'ports', protocol: 'TCP', first: 8080, last: 8087 }],
          },
          {
            direction: 'ingress',
            effect: 'deny',
            peers: [{ kind: 'all' }],
            layer4: [{ kind: 'icmp', family: 4, type: 8 }],
          },
        ],
      },
    ],
  };
  before(async () => {
    await cluster.etcd.put(localKey('policies', 'cnp/default/client'), JSON.stringify(policy));
    await node.agent.addEndpoint(endpointRequest());
    await eventually('the rows of the pod', () => node.kernel.policies.rows.size === 4);
  });

  it('shows what the kernel holds of a pod, with peers by their labels, however the pod is named', async () => {
    const { code, out } = await run('policy', 'get', 'default/client-0', '-o', 'json');
    assert.equal(code, 0);
    const [view, ...others] = JSON.parse(out) as PolicyView[];
    assert.deepEqual(others, []);
    const { endpointId, pod, addresses, ingress, egress, locked, policies, rows } = view!;
    assert.deepEqual(
      { endpointId, pod, addresses, ingress, egress, locked, policies },
      {
        endpointId: 1,
        pod: 'default/client-0',
        addresses: ['10.1.1.5'],
        ingress: true,
        egress: false,
        locked: false,
        policies: ['cnp/default/client'],
      },
    );
    const shown = rows.map(({ verdict, peer, protocol, ports }) => `${verdict} ${peer} ${protocol} ${ports}`);
    assert.ok(shown.includes('deny anyone ICMP type 8'), shown.join('\n'));
    assert.ok(shown.includes('allow reserved:host=; any any'));
    assert.ok(shown.includes(`allow ${node.agent.endpoints()[0]!.labels} TCP 8080-8087`));
    assert.ok(shown.includes('allow cidr:192.0.2.0/24 TCP 8080-8087'));
    for (const name of ['1', '10.1.1.5', 'default.client-0.abc'])
      assert.equal((await run('policy', 'get', name, '-o', 'json')).out, out, name);
    const table = (await run('policy', 'get')).out.split('\n');
    assert.match(table[0]!, /^1 default\/client-0 10\.1\.1\.5; ingress enforced, egress open; revision \d+; cnp/);
    assert.equal(table.length, rows.length + 2);
  });

  it('ends with 1 if there is no such endpoint', async () => {
    const { code, err } = await run('policy', 'get', 'default/nobody');
    assert.deepEqual([code, /no endpoint of this node/.test(err)], [1, true]);
  });

  it('verify names a row of it that the kernel has lost, and one that it has no reason for', async () => {
    const [key, row] = [...node.kernel.policies.rows].find(([, { deny }]) => deny)!;
    const strange = { ...row, deny: false, identity: 4711 };
    node.kernel.policies.rows.delete(key);
    node.kernel.policies.rows.set(policyRowKey(strange), strange);
    const { code, out } = await run('verify');
    node.kernel.policies.rows.delete(policyRowKey(strange));
    node.kernel.policies.rows.set(key, row);
    assert.equal(code, 1);
    assert.match(out, new RegExp(`^policies ${key}: missing`, 'm'));
    assert.match(out, new RegExp(`^policies ${policyRowKey(strange)}: unexpected`, 'm'));
  });
});

describe('verify', () => {
  it('ends with 0 when the kernel holds what it should', async () => {
    const { code, out } = await run('verify');
    assert.equal(code, 0, out);
    assert.match(out, /^TABLE +DESIRED +HELD +DIFFERENCES\n[\s\S]*services +1 +1 +0$/m);
  });

  it('ends with 1 and names what is missing, unexpected and different', async () => {
    const { services, ipcache, nodes } = node.kernel;
    const row = services.rows.get(FRONTEND)!;
    services.rows.set(FRONTEND, { ...row, backends: [] });
    const [prefix, held] = [...ipcache.rows][0]!;
    ipcache.rows.delete(prefix);
    nodes.rows.set('192.0.2.9', { ip: '192.0.2.9', clusterId: 7, nodeId: 7 });
    const { code, out } = await run('verify', '-o', 'json');
    services.rows.set(FRONTEND, row);
    ipcache.rows.set(prefix, held);
    nodes.rows.delete('192.0.2.9');
    assert.equal(code, 1);
    const { ok, tables } = JSON.parse(out) as {
      ok: boolean;
      tables: { table: string; examples: { key: string; kind: string }[] }[];
    };
    assert.equal(ok, false);
    const found = tables.flatMap(({ table, examples }) => examples.map(({ key, kind }) => [table, key, kind]));
    assert.deepEqual(found.sort(), [
      ['ipcache', prefix, 'missing'],
      ['nodes', '192.0.2.9', 'unexpected'],
      ['services', FRONTEND, 'different'],
    ]);
  });
});

describe('monitor', () => {
  it('refuses filters that match nothing, and numbers that are none', async () => {
    const verdict = await run('monitor', '--no-follow', '--verdict', 'lost');
    assert.deepEqual([verdict.code, /known are forwarded/.test(verdict.err)], [1, true]);
    assert.equal((await run('monitor', '--no-follow', '--port', 'http')).code, 2);
  });

  it('with --no-follow ends after the events from before', async () => {
    assert.deepEqual(await run('monitor', '--no-follow', '--last', '10'), { code: 0, out: '', err: '' });
  });
});

describe('help', () => {
  it('names every command, and each command its options', async () => {
    const { code, out } = await run('--help');
    assert.equal(code, 0);
    for (const command of ['map', 'drops', 'endpoint', 'policy', 'monitor', 'verify'])
      assert.match(out, new RegExp(`^  ${command}`, 'm'));
    assert.match((await run('monitor', '--help')).out, /--identity <number>/);
  });

  it('is offered for what is not known', async () => {
    const { code, err } = await run('dorps');
    assert.deepEqual([code, /unknown command 'dorps'/.test(err)], [2, true]);
  });
});
