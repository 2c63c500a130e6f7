import assert from 'node:assert/strict';
import {
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { silentLog, waitFor } from '@clustermesh/runtime';
import { ManifestFiles } from './files.ts';
import { type ManifestSource, startManifestSource } from './manifests.ts';

const service = (name: string, extra = '') => `apiVersion: v1
kind: Service
metadata:
  name: ${name}
  namespace: shop
  annotations: { service.cilium.io/global: "true"${extra} }
spec: { ports: [{ name: http, port: 80 }] }
`;

const slice = (name: string, addresses: readonly string[]) => `apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: { name: ${name}-1, namespace: shop, labels: { kubernetes.io/service-name: ${name} } }
addressType: IPv4
endpoints: [${addresses.map((ip) => `{ addresses: ["${ip}"] }`).join(', ')}]
ports: [{ name: http, port: 8080 }]
`;

function fixture(t: TestContext) {
  const root = mkdtempSync(join(tmpdir(), 'cm-manifests-'));
  const dir = join(root, 'manifests');
  let stop = new AbortController();
  t.after(() => {
    stop.abort();
    rmSync(root, { recursive: true, force: true });
  });
  return {
    dir,
    root,
    start(options: { defaultGlobalNamespace?: boolean; ipv6?: string } = {}): ManifestSource {
      stop.abort();
      stop = new AbortController();
      return startManifestSource({
        dir,
        lastGoodDir: join(root, 'last-good'),
        clusterIpsFile: join(root, 'cluster-ips.json'),
        serviceCidrs: { IPv4: '10.96.0.0/16', IPv6: options.ipv6 },
        policies: { cluster: 'eu', defaultLocalCluster: true },
        defaultGlobalNamespace: options.defaultGlobalNamespace ?? true,
        log: silentLog(),
        signal: stop.signal,
        onChange: () => {},
      });
    },
    /** As kubectl-like tools do: never half a file. */
    put(name: string, text: string) {
      mkdirSync(dir, { recursive: true });
      writeFileSync(join(root, 'incoming'), text);
      renameSync(join(root, 'incoming'), join(dir, name));
    },
  };
}

const names = (source: ManifestSource) => [...(source.snapshot()?.services.keys() ?? [])].sort().join(' ');
const eventually = (what: string, condition: () => boolean) =>
  waitFor(condition, { what, timeoutMs: 5000, intervalMs: 5 });

test('a service appears, changes and goes with its file', async (t) => {
  const { dir, put, start } = fixture(t);
  const source = start();
  await eventually('an empty snapshot', () => source.snapshot() !== undefined);
  put('web.yaml', `${service('web')}---\n${slice('web', ['10.1.0.5'])}`);
  await eventually('the service', () => names(source) === 'shop/web');
  const web = source.snapshot()?.services.get('shop/web');
  assert.equal(web?.global, true);
  assert.match(web?.clusterIPs[0] ?? '', /^10\.96\./);
  put('web.yaml', `${service('web')}---\n${slice('web', ['10.1.0.5', '10.1.0.6'])}`);
  await eventually('the second address', () => source.snapshot()?.slices.get('shop/web-1')?.endpoints.length === 2);
  rmSync(join(dir, 'web.yaml'));
  await eventually('nothing', () => names(source) === '' && source.snapshot()?.slices.size === 0);
});

test('a malformed document keeps its last good object, others go on, and the fix is taken', async (t) => {
  const { put, start } = fixture(t);
  const source = start();
  put('app.yaml', `${service('web')}---\n${service('api')}`);
  put('other.yaml', service('other'));
  await eventually('three services', () => names(source) === 'shop/api shop/other shop/web');
  put(
    'app.yaml',
    `${service('web', ', service.cilium.io/affinity: local')}---\n${service('api').replace('port: 80', 'port: eighty')}`,
  );
  await eventually('the problem', () =>
    source.problems().some((problem) => /app\.yaml, document 2: Service api: spec\.ports\.0\.port/.test(problem)),
  );
  assert.equal(names(source), 'shop/api shop/other shop/web');
  assert.equal(
    source.snapshot()?.services.get('shop/web')?.affinity,
    'local',
    'the good document of the file is in force',
  );
  put('app.yaml', service('web'));
  await eventually('the fix', () => names(source) === 'shop/other shop/web' && source.problems().length === 0);
});

test('a file that is malformed at a restart keeps what it said before', async (t) => {
  const { dir, put, start } = fixture(t);
  put('app.yaml', service('web'));
  const first = start();
  await eventually('the service', () => names(first) === 'shop/web');
  put('app.yaml', 'kind: [');
  const second = start();
  await eventually('the problem', () => second.problems().length === 1);
  assert.equal(names(second), 'shop/web');
  rmSync(join(dir, 'app.yaml'));
  await eventually('its removal', () => names(second) === '');
});

test('a file that is truncated and written in place never withdraws its services', (t) => {
  const { dir, root, put } = fixture(t);
  const path = join(dir, 'app.yaml');
  put('app.yaml', service('web'));
  const files = new ManifestFiles(dir, join(root, 'last-good'));
  /** What is in force so long after the file was written last: the time is the test's, and a slow machine changes nothing. */
  const after = (ms: number) =>
    files.read(statSync(path).mtimeMs + ms).objects.map(({ key }) => key.slice(key.lastIndexOf('/') + 1));
  assert.deepEqual(after(0), ['web']);
  for (let round = 0; round < 3; round++) {
    const before = after(200);
    writeFileSync(path, '');
    assert.deepEqual(after(90), before);
    writeFileSync(path, `${service('web')}---\n${service(`extra-${round}`)}`);
    assert.deepEqual(after(90), before);
    assert.deepEqual(after(110), ['web', `extra-${round}`]);
  }
  writeFileSync(path, '');
  assert.deepEqual(after(110), [], 'empty for so long, it is meant');
});

test('ClusterIPs survive a restart, and a lost state file is made again', async (t) => {
  const { put, root, start } = fixture(t);
  for (const name of ['a', 'b', 'c']) put(`${name}.yaml`, service(name));
  const addresses = (source: ManifestSource) =>
    [...(source.snapshot()?.services.values() ?? [])].map((s) => `${s.name} ${s.clusterIPs[0]}`).sort();
  const first = start();
  await eventually('three services', () => names(first) === 'shop/a shop/b shop/c');
  const before = addresses(first);
  const second = start();
  await eventually('three services again', () => names(second) === 'shop/a shop/b shop/c');
  assert.deepEqual(addresses(second), before);
  writeFileSync(join(root, 'cluster-ips.json'), '{"version":1,');
  const third = start();
  await eventually('three services, third time', () => names(third) === 'shop/a shop/b shop/c');
  assert.match(third.problems().join(), /cluster-ips\.json is unreadable/);
  assert.equal(JSON.parse(readFileSync(join(root, 'cluster-ips.json'), 'utf8')).version, 1);
});

test('of two definitions of one object the first file counts, and both places are named', async (t) => {
  const { put, start } = fixture(t);
  put('a.yaml', service('web', ', service.cilium.io/affinity: local'));
  put('b.yaml', service('web', ', service.cilium.io/affinity: remote'));
  const source = start();
  await eventually('the problem', () => source.problems().length > 0);
  assert.deepEqual(source.problems(), [
    'b.yaml, document 1: Service shop/web is already defined in a.yaml, document 1, which stays in force',
  ]);
  assert.equal(source.snapshot()?.services.get('shop/web')?.affinity, 'local');
});

test('how connections are spread is read from service and slice; what cannot be done is reported', async (t) => {
  const { put, start } = fixture(t);
  const spec = `spec:
  sessionAffinity: ClientIP
  ports: [{ name: http, port: 80 }, { name: signal, port: 99, targetPort: 100, protocol: SCTP }]
`;
  const web = service('web', ', service.cilium.io/lb-algorithm: maglev').replace(/spec: .*\n/, spec);
  const timed = web
    .replaceAll('web', 'timed')
    .replace('ports:', 'sessionAffinityConfig: { clientIP: { timeoutSeconds: 60 } }\n  ports:');
  const weighted = slice('web', ['10.1.1.1']).replace(
    'labels:',
    'annotations: { service.cilium.io/weight: "7" }, labels:',
  );
  put('a.yaml', [web, timed, weighted].join('---\n'));
  const source = start();
  await eventually('the services', () => source.snapshot()?.services.size === 2);
  const { services, slices } = source.snapshot()!;
  assert.deepEqual(
    [services.get('shop/web')?.lbAlgorithm, services.get('shop/web')?.sessionAffinitySeconds],
    ['maglev', 10_800],
  );
  assert.equal(services.get('shop/timed')?.sessionAffinitySeconds, 60);
  assert.equal(slices.get('shop/web-1')?.weight, 7);
  assert.match(source.problems()[0]!, /Service shop\/web: port 99\/SCTP has the targetPort 100: SCTP ports cannot be/);
});

test('F41 an unknown annotation value is reported and the service is there with the default', async (t) => {
  const { put, start } = fixture(t);
  put('a.yaml', service('web', ', service.cilium.io/affinity: nearby'));
  const source = start();
  await eventually('the service', () => names(source) === 'shop/web');
  assert.match(
    source.problems().join(),
    /a\.yaml, document 1: Service shop\/web: annotation service\.cilium\.io\/affinity has value "nearby"/,
  );
  assert.equal(source.snapshot()?.services.get('shop/web')?.affinity, 'none');
});

test('a service in a namespace that is not global is not global, whatever it says', async (t) => {
  const { put, start } = fixture(t);
  put(
    'ns.yaml',
    'apiVersion: v1\nkind: Namespace\nmetadata: { name: shop, annotations: { clustermesh.cilium.io/global: "false" } }\n',
  );
  put('web.yaml', service('web'));
  const source = start();
  await eventually('the service', () => names(source) === 'shop/web');
  const web = source.snapshot()?.services.get('shop/web');
  assert.deepEqual([web?.global, web?.shared], [false, false]);
});

test('a namespace whose document is malformed is closed when nothing better is known', async (t) => {
  const { put, start } = fixture(t);
  put(
    'ns.yaml',
    'apiVersion: v1\nkind: Namespace\nmetadata: { name: shop, annotations: { clustermesh.cilium.io/global: false } }\n',
  );
  put('web.yaml', service('web'));
  const source = start();
  await eventually('the service', () => names(source) === 'shop/web');
  assert.equal(source.snapshot()?.services.get('shop/web')?.global, false);
  assert.match(source.problems().join('\n'), /Namespace shop: kept out of the mesh/);
});

test('headless and ExternalName services get no address', async (t) => {
  const { put, start } = fixture(t);
  put('a.yaml', service('headless').replace('spec: { ', 'spec: { clusterIP: None, '));
  put(
    'b.yaml',
    'apiVersion: v1\nkind: Service\nmetadata: { name: away, namespace: shop }\nspec: { type: ExternalName, externalName: example.org }\n',
  );
  const source = start();
  await eventually('the service', () => names(source) === 'shop/headless');
  assert.deepEqual(source.snapshot()?.services.get('shop/headless')?.clusterIPs, []);
  assert.match(source.snapshot()?.notes.join() ?? '', /Service shop\/away: an ExternalName service has no backends/);
});

test('Kubernetes-style symlink swaps are followed', async (t) => {
  const { dir, root, start } = fixture(t);
  mkdirSync(join(root, 'v1'), { recursive: true });
  mkdirSync(join(root, 'v2'));
  mkdirSync(dir);
  writeFileSync(join(root, 'v1', 'app.yaml'), service('web'));
  writeFileSync(join(root, 'v2', 'app.yaml'), service('web', ', service.cilium.io/affinity: local'));
  symlinkSync(join(root, 'v1'), join(dir, '..data'));
  symlinkSync('..data/app.yaml', join(dir, 'app.yaml'));
  const source = start();
  await eventually('the service', () => names(source) === 'shop/web');
  symlinkSync(join(root, 'v2'), join(dir, '..data_tmp'));
  renameSync(join(dir, '..data_tmp'), join(dir, '..data'));
  await eventually('the new version', () => source.snapshot()?.services.get('shop/web')?.affinity === 'local');
});

test('a directory that is replaced whole is watched again', async (t) => {
  const { dir, root, put, start } = fixture(t);
  put('a.yaml', service('a'));
  const source = start();
  await eventually('the first service', () => names(source) === 'shop/a');
  mkdirSync(join(root, 'next'));
  writeFileSync(join(root, 'next', 'b.yaml'), service('b'));
  renameSync(dir, join(root, 'old'));
  renameSync(join(root, 'next'), dir);
  await waitFor(() => names(source) === 'shop/b', { what: 'the other directory', timeoutMs: 8000 });
});

test('a directory that vanishes withdraws nothing, is reported, and is followed again when it is back', async (t) => {
  const { dir, root, put, start } = fixture(t);
  put('web.yaml', service('web'));
  const source = start();
  await eventually('the service', () => names(source) === 'shop/web');
  renameSync(dir, join(root, 'away'));
  await eventually('the problem', () => /manifests: the directory is gone/.test(source.problems().join()));
  assert.equal(names(source), 'shop/web');
  renameSync(join(root, 'away'), dir);
  await eventually('no problem', () => source.problems().length === 0);
  assert.equal(names(source), 'shop/web');
  put('api.yaml', service('api'));
  await eventually('a change', () => names(source) === 'shop/api shop/web');
});

test('a service that asks for both families has an address of each, over restarts and while the IPv6 range is away', async (t) => {
  const { put, start } = fixture(t);
  const ipv6 = 'fd96:1::/112';
  put('web.yaml', service('web').replace('spec: {', 'spec: { ipFamilyPolicy: RequireDualStack,'));
  const addresses = async (source: ManifestSource) => {
    await eventually('the service', () => names(source) === 'shop/web');
    return source.snapshot()?.services.get('shop/web')?.clusterIPs ?? [];
  };
  const both = await addresses(start({ ipv6 }));
  assert.match(both.join(' '), /^10\.96\.\S+ fd96:1::\S+$/);
  const without = start();
  assert.deepEqual(await addresses(without), both.slice(0, 1));
  assert.match(
    without.problems().join(),
    /Service shop\/web: IPv6 is asked for, and cluster\.serviceCIDRv6 is not set/,
  );
  assert.deepEqual(await addresses(start({ ipv6 })), both);
});

test('families and addresses that contradict each other are refused', async (t) => {
  const { put, start } = fixture(t);
  const source = start();
  const spec = (more: string) => service('web').replace('spec: {', `spec: { ${more},`);
  for (const [more, problem] of [
    ['clusterIPs: [10.96.0.9, 10.96.0.8]', /clusterIPs\.1: is of the family of the first/],
    ['ipFamilies: [IPv6], clusterIPs: [10.96.0.9]', /clusterIPs\.0: 10\.96\.0\.9 is no IPv6 address/],
    ['ipFamilies: [IPv4, IPv4]', /ipFamilies\.1: repeats IPv4/],
    ['ipFamilyPolicy: SingleStack, ipFamilies: [IPv4, IPv6]', /ipFamilyPolicy: is SingleStack/],
  ] as const) {
    put('web.yaml', spec(more));
    await eventually(String(problem), () => problem.test(source.problems().join()));
  }
});
