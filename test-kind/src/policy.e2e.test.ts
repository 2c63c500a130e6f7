/** Network policy between real sockets of two regions: who may begin a flow, that replies pass, and what becomes of a running flow. */
import assert from 'node:assert/strict';
import { after, before, describe, it } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { waitFor } from '@clustermesh/runtime';
import { connect, openLab, runInPod, type TestLab } from './testing/e2e.ts';
import { startTransfer } from './traffic.ts';

/** Equal labels in both regions: only the cluster tells the clients apart. */
const CLIENT = `
kind: Pod
metadata: { name: client, labels: { app: client } }
spec: { containers: [{ command: [sleep, infinity] }] }
`;
const SERVER = `
kind: Pod
metadata: { name: shop, labels: { app: shop } }
spec: { containers: [{ command: [node, test-kind/demo/shop-server.mjs], ports: [{ name: http, containerPort: 8080 }] }] }
`;
const onlyFrom = (cluster: string) => `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: { name: shop }
spec:
  endpointSelector: { matchLabels: { app: shop } }
  ingress:
    - fromEndpoints: [{ matchLabels: { app: client, io.cilium.k8s.policy.cluster: ${cluster} } }]
      toPorts: [{ ports: [{ port: http, protocol: TCP }] }]
`;
/** What the name stands for is told by the region of the pod that has it. */
const outwards = (port: string) => `
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: { name: out }
spec:
  endpointSelector: { matchLabels: { app: client } }
  egress:
    - toEndpoints: [{ matchLabels: { app: shop, io.cilium.k8s.policy.cluster: eu } }]
      toPorts: [{ ports: [{ port: ${port}, protocol: TCP }] }]
`;
const CLOSED_CLIENT = `
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: client }
spec: { podSelector: { matchLabels: { app: client } }, policyTypes: [Ingress] }
`;

let test: TestLab;
const ips: Record<string, string> = {};
before(async () => {
  test = await openLab({ topology: 'clusters: [{ name: eu, id: 1, nodes: 1 }, { name: us, id: 2, nodes: 1 }]' });
  await test.lab.apply('eu', `${CLIENT}---${SERVER}`);
  await test.lab.apply('us', CLIENT);
  for (const { cluster, name, ip } of await test.lab.podsReady()) ips[`${cluster}/${name}`] = ip;
  await connect(test);
});
after(() => test?.close());

const TIMED_OUT = 28;
/** Which regions' clients the shop of eu answers; the others hear nothing at all. */
async function answered(): Promise<string> {
  const url = `http://${ips['eu/shop']}:8080/`;
  const outcomes = ['eu', 'us'].map(async (cluster) => {
    const { code, stderr } = await runInPod(test, `${cluster}/default/client`, 'curl', '-sS', '--max-time', '2', url);
    assert.ok(code === 0 || code === TIMED_OUT, `${cluster}: ${code} ${stderr}`);
    return code === 0 ? [cluster] : [];
  });
  return (await Promise.all(outcomes)).flat().join(' ');
}
const eventually = (what: string, condition: () => Promise<boolean>) => waitFor(condition, { what, timeoutMs: 30_000 });
const apply = async (cluster: string, text: string) => void (await test.lab.apply(cluster, text));
const reachesClientOfUs = async () =>
  (await runInPod(test, 'eu/default/client', 'ping', '-c', '1', '-W', '1', ips['us/client']!)).code === 0;

describe('policy between regions', () => {
  it('without one, everybody is answered', async () => {
    assert.equal(await answered(), 'eu us');
    assert.ok(await reachesClientOfUs());
  });

  it('pods with equal labels are told apart by their cluster', async () => {
    await apply('eu', onlyFrom('us'));
    await eventually('us alone to be answered', async () => (await answered()) === 'us');
    await apply('eu', onlyFrom('eu'));
    await eventually('eu alone to be answered', async () => (await answered()) === 'eu');
  });

  it('replies reach a pod that nobody may begin a flow to', async () => {
    await apply('eu', onlyFrom('us'));
    await apply('us', CLOSED_CLIENT);
    await eventually('the client of us to be closed', async () => !(await reachesClientOfUs()));
    await eventually('us to be answered', async () => (await answered()) === 'us');
  });

  it('a port by the name that another region has for it', async () => {
    await apply('us', outwards('metrics'));
    await eventually('nobody to be answered', async () => (await answered()) === '');
    await apply('us', outwards('http'));
    await eventually('us to be answered', async () => (await answered()) === 'us');
  });

  it('a running flow stops when it is denied, and goes on whole when it is allowed again', async () => {
    const transfer = await startTransfer(
      test.lab,
      'us/default/client',
      `http://${ips['eu/shop']}:8080/stream?rate=1000000`,
    );
    const moves = async () => {
      const before = transfer.bytesSoFar();
      await sleep(1000); // ten reports of progress
      return transfer.bytesSoFar() > before;
    };
    await eventually('the transfer to run', moves);
    await apply('eu', onlyFrom('eu'));
    await eventually('the transfer to stop', async () => !(await moves()));
    assert.equal(await answered(), 'eu');
    assert.equal(await moves(), false);
    await apply('eu', onlyFrom('us'));
    await eventually('the transfer to go on', moves);
    const { intact, error } = await transfer.finish();
    assert.deepEqual({ intact, error }, { intact: true, error: undefined });
  });
});
