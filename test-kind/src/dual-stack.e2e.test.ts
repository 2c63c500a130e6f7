/** Two regions whose pods have IPv6 beside IPv4, and a global service that answers on both. */
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { waitFor } from '@clustermesh/runtime';
import { connect, inNode, openLab, runInPod, type TestLab } from './testing/e2e.ts';

const TOPOLOGY = `
ipv6: true
clusters:
  - { name: eu, id: 1, nodes: 1 }
  - { name: us, id: 2, nodes: 1 }
`;

/** A region's ClusterIPs are its own; the second is given by the control plane. */
const app = (clusterIP: string, replicas: number) => `
apiVersion: v1
kind: Service
metadata: { name: shop, annotations: { service.cilium.io/global: "true" } }
spec:
  clusterIP: ${clusterIP}
  ipFamilyPolicy: RequireDualStack
  selector: { app: shop }
  ports: [{ name: http, port: 80, targetPort: 8080 }]
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: shop }
spec:
  replicas: ${replicas}
  template:
    metadata: { labels: { app: shop } }
    spec: { containers: [{ command: [node, test-kind/demo/shop-server.mjs], ports: [{ containerPort: 8080 }] }] }
---
apiVersion: v1
kind: Pod
metadata: { name: client }
spec: { containers: [{ command: [sleep, infinity] }] }
`;

let test: TestLab;
before(async () => {
  test = await openLab({ topology: TOPOLOGY });
  await test.lab.apply('eu', app('10.96.0.10', 0));
  await test.lab.apply('us', app('10.97.0.10', 1));
  await test.lab.podsReady();
  await connect(test);
});
after(() => test?.close());

/** The address of us' only server, in IPv6. */
async function serverIpv6(): Promise<string> {
  const pods = await test.lab.pods();
  const ipv6 = pods.find((pod) => pod.cluster === 'us' && pod.name === 'shop-0')?.ipv6;
  assert.match(ipv6 ?? '', /^fd00:2:1::/);
  return ipv6!;
}

const inClient = (...command: string[]) => runInPod(test, 'eu/default/client', ...command);
const curl = (host: string, port: number) => inClient('curl', '-sS', '--max-time', '5', `http://${host}:${port}/`);

describe('two regions with IPv4 and IPv6', () => {
  it('pods reach those of the other region by IPv6: ping and HTTP', async () => {
    const ip = await serverIpv6();
    const ping = await inClient('ping', '-6', '-c', '1', '-W', '5', ip);
    assert.equal(ping.code, 0, ping.stdout + ping.stderr);
    const answer = await curl(`[${ip}]`, 8080);
    assert.equal(JSON.parse(answer.stdout).cluster, 'us', answer.stderr);
  });

  it('nodes reach each other by IPv6 on the underlay', async () => {
    const ping = await inNode(
      test,
      'eu',
      'n1',
      'ping',
      '-6',
      '-c',
      '1',
      '-W',
      '5',
      test.topology.clusters[1]!.nodes[0]!.ipv6!.ip,
    );
    assert.equal(ping.code, 0, ping.stdout + ping.stderr);
  });

  it("a dual-stack global service without own backends answers from the other region's, on both of its addresses", async () => {
    const service = (await test.lab.services()).find(({ cluster, name }) => cluster === 'eu' && name === 'shop');
    const [ipv4, ipv6] = service!.clusterIPs;
    assert.equal(ipv4, '10.96.0.10');
    assert.match(ipv6!, /^fd96:1::/);
    for (const host of [ipv4!, `[${ipv6}]`]) {
      const answered = async () => (await curl(host, 80)).stdout.includes('"us"');
      await waitFor(answered, { what: `${host} to answer from us`, timeoutMs: 30_000 });
    }
  });
});
