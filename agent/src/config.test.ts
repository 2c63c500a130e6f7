import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { type TestContext, test } from 'node:test';
import { loadAgentConfig } from './config.ts';

const GOOD = `
cluster: { name: eu, id: 1 }
node: { name: n1, ip: 172.31.1.11, zone: eu-west-a, region: eu-west, podCIDR: 10.1.1.0/24, gatewayIP: 10.1.1.1 }
etcd: { endpoints: ["https://172.31.1.2:2379"], caFile: ca.crt, certFile: node.crt, keyFile: node.key, hostAliases: [{ hostname: eu.mesh.cilium.io, ips: [172.31.1.2] }] }
socket: /run/agent.sock
stateDir: /run/state
datapath: { bpffs: /run/bpf, cgroup: /sys/fs/cgroup/unified/x, vxlanDevice: cm_vxlan }
`;

function load(t: TestContext, text: string) {
  const dir = mkdtempSync(join(tmpdir(), 'cm-config-'));
  t.after(() => rmSync(dir, { recursive: true, force: true }));
  writeFileSync(join(dir, 'agent.yaml'), text);
  return loadAgentConfig(join(dir, 'agent.yaml'));
}

test('a config gets its defaults and is frozen', (t) => {
  const config = load(t, GOOD);
  assert.deepEqual(
    [config.cluster.maxConnectedClusters, config.http.port, config.timers.minPassIntervalMs],
    [255, 9879, 5],
  );
  assert.throws(() => Object.assign(config.cluster, { id: 2 }));
});

test('all that is wrong is reported together, each with its field', (t) => {
  const bad = GOOD.replace('id: 1', 'id: 300')
    .replace('172.31.1.11', 'nowhere')
    .replace('10.1.1.0/24', 'x')
    .replace('socket:', 'sokket:');
  assert.throws(
    () => load(t, bad),
    (error: Error) => {
      for (const field of ['node.ip', 'node.podCIDR', 'socket', 'sokket'])
        assert.ok(error.message.includes(field), `${error.message} names ${field}`);
      return true;
    },
  );
});

test('a cluster id out of range, a bad name and missing certificates are refused', (t) => {
  assert.throws(() => load(t, GOOD.replace('id: 1', 'id: 256')), /cluster\.id: cluster id 256 is not in 1…255/);
  assert.throws(() => load(t, GOOD.replace('name: eu', 'name: Eu')), /cluster\.name/);
  assert.throws(() => load(t, GOOD.replace('keyFile: node.key, ', '')), /etcd\.keyFile: is needed for https/);
});

test('sizes are taken for maps that there are, and whose rows come and go', (t) => {
  const sized = (sizes: string) =>
    load(t, GOOD.replace('vxlanDevice: cm_vxlan', `vxlanDevice: cm_vxlan, mapSizes: ${sizes}`));
  assert.deepEqual(sized('{ cm_ipcache: 1000 }').datapath.mapSizes, { cm_ipcache: 1000 });
  for (const wrong of ['{ cm_ipcash: 1000 }', '{ cm_drops: 1000 }', '{ cm_ipcache: 0 }'])
    assert.throws(() => sized(wrong), /datapath\.mapSizes/);
});

test('services are served to other hosts by exchanging addresses, unless direct server return is asked for', (t) => {
  const of = (nodePort: string) =>
    load(t, GOOD.replace('vxlanDevice: cm_vxlan', `vxlanDevice: cm_vxlan${nodePort}`)).datapath.nodePort.mode;
  assert.equal(of(''), 'snat');
  assert.equal(of(', nodePort: { mode: dsr }'), 'dsr');
  assert.throws(() => of(', nodePort: { mode: hybrid }'), /datapath\.nodePort\.mode/);
});
