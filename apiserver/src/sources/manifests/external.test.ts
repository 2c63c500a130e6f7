import assert from 'node:assert/strict';
import { test } from 'node:test';
import { readExternal } from './external.ts';
import { serviceSchema } from './schemas.ts';

function read(spec: object, status: object = {}, takenBy = new Map<string, string>()) {
  const manifest = serviceSchema.parse({ metadata: { name: 'web', namespace: 'shop' }, spec, status });
  return readExternal('shop/web', manifest, takenBy);
}
const port = { port: 80, nodePort: 30_080 };
const ingress = (...entries: object[]) => ({ loadBalancer: { ingress: entries } });

test('a NodePort service has a port of every node; one of type ClusterIP has none', () => {
  assert.equal(read({ type: 'NodePort', ports: [port] }).ports[0]?.nodePort, 30_080);
  assert.equal(read({ ports: [port] }).ports[0]?.nodePort, undefined);
});

test('a NodePort that is not given is a problem; that of a load balancer may be left out', () => {
  assert.match(read({ type: 'NodePort', ports: [{ port: 80 }] }).problems[0] ?? '', /80\/TCP has no nodePort/);
  assert.deepEqual(read({ type: 'LoadBalancer', ports: [{ port: 80 }] }).problems, []);
});

test('two services with one NodePort: the first has it, the second is told who', () => {
  const takenBy = new Map([['30080/TCP', 'shop/first']]);
  const second = read({ type: 'NodePort', ports: [port] }, {}, takenBy);
  assert.equal(second.ports[0]?.nodePort, undefined);
  assert.match(second.problems[0] ?? '', /30080\/TCP belongs to service shop\/first/);
  assert.equal(
    read({ type: 'NodePort', ports: [{ ...port, protocol: 'UDP' }] }, {}, takenBy).ports[0]?.nodePort,
    30_080,
  );
});

test('external addresses and those of its load balancer, each once; not those that are a proxy’s', () => {
  const status = ingress(
    { ip: '192.0.2.1' },
    { ip: '192.0.2.2', ipMode: 'Proxy' },
    { ip: '192.0.2.3', ipMode: 'VIP' },
    { hostname: 'lb.example' },
  );
  const spec = { type: 'LoadBalancer', externalIPs: ['192.0.2.9', '192.0.2.1'], ports: [port] };
  assert.deepEqual(read(spec, status).face, { externalIPs: ['192.0.2.9', '192.0.2.1', '192.0.2.3'] });
  assert.deepEqual(read({ ports: [port] }, status).face, {}, 'a status that was left behind by another type');
});

test('source ranges are not enforced, so their load balancer’s addresses are not served, and that is said', () => {
  const spec = { type: 'LoadBalancer', loadBalancerSourceRanges: ['198.51.100.0/24'], ports: [port] };
  const { face, problems } = read(spec, ingress({ ip: '192.0.2.1' }));
  assert.deepEqual(face, {});
  assert.match(problems[0] ?? '', /192\.0\.2\.1 is not served/);
});

test('traffic policies', () => {
  const { face } = read({
    type: 'NodePort',
    externalTrafficPolicy: 'Local',
    internalTrafficPolicy: 'Local',
    ports: [port],
  });
  assert.deepEqual(face, { externalTrafficPolicy: 'Local', internalTrafficPolicy: 'Local' });
  const { face: open } = read({ externalTrafficPolicy: 'Cluster', internalTrafficPolicy: 'Cluster', ports: [port] });
  assert.deepEqual(open, {});
});
