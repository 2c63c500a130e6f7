/** What a mesh of two regions promises, seen from its pods, its nodes' kernels and its etcds. */
import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { after, before, describe, it } from 'node:test';
import { identityRange } from '@clustermesh/contract';
import { systemClock, waitFor } from '@clustermesh/runtime';
import { shopUrl } from './demo/shop.ts';
import { inNamespace } from './netns/exec.ts';
import { nodeNamespace } from './netns/names.ts';
import {
  connect,
  converged,
  deployShop,
  etcdctl,
  mapOf,
  openLab,
  runInPod,
  statusOf,
  type TestLab,
  withAffinity,
} from './testing/e2e.ts';
import { countBy, requests, servedBy, servingCluster, startLoad } from './traffic.ts';

let test: TestLab;
let url: string;
const CLIENT = 'us/default/client-0';

before(async () => {
  test = await openLab();
  await deployShop(test);
  await connect(test);
  url = `${await shopUrl(test.lab, 'us')}/`;
});
after(() => test?.close());

/** All requests of a round are answered as `holds` wants; rounds are repeated until the change has arrived everywhere. */
function until(what: string, holds: (clusters: Record<string, number>) => boolean, from = CLIENT) {
  return waitFor(async () => holds(countBy(await requests(test.lab, from, url, 40), servingCluster)), {
    what,
    timeoutMs: 20_000,
  });
}

describe('service affinity', () => {
  it('none: each of the four backends gets 15 to 35 % of 400 connections', async () => {
    await until('backends of both regions', (clusters) => (clusters['eu'] ?? 0) > 0 && (clusters['us'] ?? 0) > 0);
    const counts = countBy(await requests(test.lab, CLIENT, url, 400), servedBy);
    assert.deepEqual(Object.keys(counts).sort(), ['eu/shop-0', 'eu/shop-1', 'us/shop-0', 'us/shop-1']);
    for (const [backend, count] of Object.entries(counts)) {
      assert.ok(count >= 60 && count <= 140, `${backend} got ${count} of 400: ${JSON.stringify(counts)}`);
    }
  });

  it('local: all connections stay in the region', async () => {
    await deployShop(test, withAffinity('local'));
    await until('home only', (clusters) => clusters['us'] === 40);
    assert.deepEqual(countBy(await requests(test.lab, CLIENT, url, 400), servingCluster), { us: 400 });
  });

  it('local: moves to the other region when all backends are killed, and back without a failure', async () => {
    const load = await startLoad(test.lab, CLIENT, url);
    const lately = (cluster: string, since: number) => {
      const last = load.results
        .filter((result) => result.at > since)
        .toSorted((a, b) => a.at - b.at)
        .slice(-50);
      return last.length === 50 && last.every((result) => result.cluster === cluster);
    };
    await waitFor(() => lately('us', 0), { what: 'the load to run', timeoutMs: 20_000 });
    const killedAt = systemClock.wallMs();
    await test.lab.kill('us/pod/default/shop-*');
    await waitFor(() => systemClock.wallMs() > killedAt + 5000 && lately('eu', killedAt + 3000), {
      what: 'eu to serve',
      timeoutMs: 30_000,
    });
    const backAt = systemClock.wallMs();
    await test.lab.start('us/pod/default/shop-*');
    await waitFor(() => lately('us', backAt), { what: 'us to serve again', timeoutMs: 30_000 });
    const results = await load.stop();

    const failed = results.filter((result) => result.error !== undefined);
    assert.ok(
      failed.every((result) => result.at <= killedAt + 3000),
      `failed later than 3 s after the kill: ${JSON.stringify(failed.slice(-3))}`,
    );
    const away = results.filter((result) => result.at > killedAt + 3000 && result.at < backAt);
    assert.deepEqual(Object.keys(countBy(away, servingCluster)), ['eu']);
    assert.deepEqual(
      countBy(
        results.filter((result) => result.at >= backAt),
        (result) => result.error ?? 'ok',
      )['ok'],
      results.filter((result) => result.at >= backAt).length,
    );
    console.log(
      `      ${failed.length} of ${results.length} requests failed, the last ${Math.round((failed.at(-1)?.at ?? killedAt) - killedAt)} ms after the kill`,
    );
  });
});

describe('the network', () => {
  it('answers "unreachable" for an address of the own pod CIDR that nobody has', async () => {
    const output = await runInPod(test, CLIENT, 'ping', '-c', '1', '-W', '2', '10.2.1.200');
    assert.match(output.stdout, /Host Unreachable/);
    const startedAt = performance.now();
    const connection = await runInPod(test, CLIENT, 'curl', '-s', '-m', '10', 'http://10.2.1.200:8080/');
    assert.equal(connection.code, 7, `curl ended with ${connection.code}`);
    assert.ok(performance.now() - startedAt < 5000);
  });

  it('knows every pod of the peer by identity and tunnel endpoint, on every node', async () => {
    const range = identityRange(1, 255);
    const pods = (await test.lab.pods()).filter((pod) => pod.cluster === 'eu');
    const nodeIp = (name: string) => test.topology.clusters[0]!.nodes.find((node) => node.name === name)?.ip;
    for (const node of ['us/n1', 'us/n2']) {
      const rows = await mapOf(test, node, 'ipcache');
      for (const pod of pods) {
        const row = rows.find((candidate) => candidate['prefix'] === `${pod.ip}/32`);
        assert.ok(row !== undefined, `${node} does not know ${pod.name} ${pod.ip}`);
        assert.equal(row['identity'], pod.identity);
        assert.ok((pod.identity ?? 0) >= range.first && (pod.identity ?? 0) <= range.last);
        assert.equal(row['tunnelEndpoint'], nodeIp(pod.node));
      }
    }
  });

  it("carries the sender's identity as VNI on the underlay", async () => {
    const pods = await test.lab.pods();
    const client = pods.find((pod) => pod.cluster === 'us' && pod.name === 'client-0')!;
    const server = pods.find((pod) => pod.cluster === 'eu' && pod.name === 'shop-0')!;
    const command = inNamespace(nodeNamespace(test.instance, 'us', client.node), [
      'tcpdump',
      '-l',
      '-n',
      '-i',
      'eth0',
      '-T',
      'vxlan',
      'udp',
      'port',
      '8472',
    ]);
    const capture = spawn(command[0]!, command.slice(1), { stdio: ['ignore', 'pipe', 'pipe'] });
    let text = '';
    capture.stdout.setEncoding('utf8').on('data', (chunk: string) => {
      text += chunk;
    });
    capture.stderr.setEncoding('utf8').on('data', (chunk: string) => {
      text += chunk;
    });
    try {
      await waitFor(() => text.includes('listening on'), { what: 'tcpdump to listen', timeoutMs: 10_000 });
      // Each packet is two lines: the outer header with the VNI, then what is inside.
      const vni = (from: string, to: string) =>
        new RegExp(`vni (\\d+)\\s+IP ${from}(?:\\.\\d+)? > ${to}(?:\\.\\d+)?:`).exec(text)?.[1];
      await waitFor(
        async () => {
          await runInPod(test, CLIENT, 'curl', '-s', '-m', '3', `http://${server.ip}:8080/`);
          return vni(client.ip, server.ip) !== undefined && vni(server.ip, client.ip) !== undefined;
        },
        { what: 'packets of both directions', timeoutMs: 20_000, intervalMs: 200 },
      );
      assert.equal(Number(vni(client.ip, server.ip)), client.identity, 'request');
      assert.equal(Number(vni(server.ip, client.ip)), server.identity, 'reply');
    } finally {
      capture.kill('SIGKILL');
    }
  });
});

describe('what leaves a cluster', () => {
  it('is nothing of a namespace that is not global: no endpoint, no identity, no service', async () => {
    const manifest = `apiVersion: v1
kind: Namespace
metadata: { name: private, annotations: { clustermesh.cilium.io/global: "false" } }
---
apiVersion: v1
kind: Service
metadata: { name: vault, namespace: private, annotations: { service.cilium.io/global: "true" } }
spec: { selector: { app: vault }, ports: [{ port: 80, targetPort: 8080 }] }
---
apiVersion: v1
kind: Pod
metadata: { name: vault, namespace: private, labels: { app: vault } }
spec: { containers: [{ command: [node, test-kind/demo/shop-server.mjs], ports: [{ containerPort: 8080 }] }] }
`;
    // Something public that is applied later: once the peer has it, the private part had its chance to arrive, too.
    const marker = `apiVersion: v1
kind: Service
metadata: { name: marker, annotations: { service.cilium.io/global: "true" } }
spec: { selector: { app: shop }, ports: [{ port: 80, targetPort: 8080 }] }
`;
    await test.lab.apply('eu', manifest);
    const [vault] = await test.lab.podsReady((pod) => pod.name === 'vault');
    await waitFor(
      async () =>
        (await test.lab.services()).some((service) => service.name === 'vault' && service.endpoints.length === 1),
      {
        what: 'the service inside its cluster',
        timeoutMs: 15_000,
      },
    );
    await test.lab.apply('eu', marker);
    await waitFor(
      async () =>
        (
          await etcdctl(test, 'us', 'admin', 'get', '--prefix', '--keys-only', 'cilium/cache/services/')
        ).stdout.includes('/marker'),
      {
        what: 'the marker at the peer',
        timeoutMs: 15_000,
      },
    );
    for (const [cluster, prefix] of [
      ['eu', 'cilium/state/'],
      ['us', 'cilium/cache/'],
    ] as const) {
      const { stdout } = await etcdctl(test, cluster, 'admin', 'get', '--prefix', prefix);
      assert.ok(stdout.includes('marker'), 'the control: something public is there');
      assert.ok(!/vault|private/.test(stdout), `${cluster} ${prefix} mentions the private namespace`);
      assert.ok(
        !stdout.includes(`"${vault!.ip}"`) && !stdout.includes(`/${vault!.ip}\n`),
        `${cluster} ${prefix} holds ${vault!.ip}`,
      );
      assert.ok(!stdout.includes(`/id/${vault!.identity}\n`), `${cluster} ${prefix} holds identity ${vault!.identity}`);
    }
    await test.lab.call('delete', { cluster: 'eu', text: `${manifest}---\n${marker}`, source: 'inline' });
  });

  it('may be read by a peer exactly as far as its role goes, and written by nobody', async () => {
    const readable = ['cilium/.heartbeat', 'cilium/state/', 'cilium/cluster-config/eu', 'cilium/synced/eu/'];
    for (const key of readable) {
      const prefix = key.endsWith('/eu') ? [] : ['--prefix'];
      const output = await etcdctl(test, 'eu', 'remote', 'get', ...prefix, '--keys-only', key);
      assert.equal(output.code, 0, `${key}: ${output.stderr}`);
      assert.ok(output.stdout.includes('cilium/'), `${key} shows nothing`);
    }
    for (const key of ['cilium/cache/', 'cilium/cluster-config/', 'cilium/synced/', 'clustermesh/', 'cilium/', '']) {
      const output = await etcdctl(test, 'eu', 'remote', 'get', '--prefix', '--keys-only', key);
      assert.notEqual(output.code, 0, `a peer may read ${key}`);
      assert.match(output.stderr, /permission denied/);
    }
    for (const key of ['cilium/state/nodes/v1/eu/n1', 'cilium/.heartbeat', 'clustermesh/nodes/n1/node', 'anything']) {
      for (const write of [
        ['put', key, 'x'],
        ['del', key],
      ]) {
        const output = await etcdctl(test, 'eu', 'remote', ...write);
        assert.notEqual(output.code, 0, `a peer may ${write[0]} ${key}`);
        assert.match(output.stderr, /permission denied/);
      }
    }
    for (const [role, key] of [
      ['local', 'cilium/state/'],
      ['node', 'cilium/state/'],
    ] as const) {
      assert.match((await etcdctl(test, 'eu', role, 'get', '--prefix', key)).stderr, /permission denied/);
    }
    assert.equal((await etcdctl(test, 'eu', 'local', 'get', '--prefix', '--keys-only', 'cilium/cache/')).code, 0);
    assert.match((await etcdctl(test, 'eu', 'local', 'put', 'cilium/cache/x', 'x')).stderr, /permission denied/);
    assert.match(
      (await etcdctl(test, 'eu', 'node', 'put', 'clustermesh/nodes/n2/node', 'x')).stderr,
      /permission denied/,
    );
  });

  it('is refused to a client without a certificate, and to one of another CA', async () => {
    const nobody = await etcdctl(test, 'eu', 'nobody', 'get', 'cilium/.heartbeat');
    assert.notEqual(nobody.code, 0);
    const { pki } = (await import('./netns/names.ts')).clusterPaths(test.instance, 'us');
    const foreign = { credentials: [`--cert=${pki}/admin.crt`, `--key=${pki}/admin.key`] };
    const stranger = await etcdctl(test, 'eu', foreign, 'get', 'cilium/.heartbeat');
    assert.notEqual(stranger.code, 0);
    assert.equal(
      (await etcdctl(test, 'eu', 'admin', 'get', 'cilium/.heartbeat')).code,
      0,
      'the control: with the right certificate it answers',
    );
  });
});

describe('bad input', () => {
  const problems = async (pattern: RegExp) =>
    waitFor(async () => (await statusOf(test, 'eu')).problems.find((problem) => pattern.test(problem)), {
      what: `a problem like ${pattern}`,
      timeoutMs: 15_000,
    });

  it('an unknown annotation value is reported by name and value, and the default is used', async () => {
    await deployShop(test, withAffinity('sideways'));
    const problem = await problems(/sideways/);
    assert.match(problem, /service\.cilium\.io\/affinity/);
    assert.match(problem, /shop/);
    await until('affinity none, the default', (clusters) => (clusters['eu'] ?? 0) > 0 && (clusters['us'] ?? 0) > 0);
    await deployShop(test, withAffinity('none'));
    await waitFor(async () => !(await statusOf(test, 'eu')).problems.some((text) => text.includes('sideways')), {
      what: 'the problem to go',
      timeoutMs: 15_000,
    });
  });

  it('a malformed EndpointSlice is reported, and everything else keeps working', async () => {
    const bad = `apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: broken, labels: { kubernetes.io/service-name: shop } }
addressType: IPv4
ports: [{ name: http, port: 70000 }]
endpoints: [{ addresses: ["not an address"] }]
`;
    await test.lab.apply('eu', bad);
    assert.match(await problems(/broken/), /EndpointSlice|slice/i);
    await until('answers from both regions', (clusters) => (clusters['eu'] ?? 0) > 0 && (clusters['us'] ?? 0) > 0);
    assert.deepEqual(
      countBy(await requests(test.lab, CLIENT, url, 100), (result) => result.error ?? 'ok'),
      { ok: 100 },
    );
    await test.lab.call('delete', { cluster: 'eu', text: bad, source: 'inline' });
    await converged(test);
  });
});
