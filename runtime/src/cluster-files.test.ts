import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { parseClusterFile, readClusterFiles } from './cluster-files.ts';

const TLS = 'trusted-ca-file: /ca\ncert-file: /cert\nkey-file: /key\n';

describe('the files of remote clusters', () => {
  let dir: string;
  beforeEach(() => {
    dir = mkdtempSync(join(tmpdir(), 'cm-cluster-files-'));
  });
  afterEach(() => rmSync(dir, { recursive: true, force: true }));

  test('are read as Cilium writes them: behind symlinks, with aliases, with options that are not ours', () => {
    const text = `endpoints:\n- https://us.mesh.cilium.io:2379\n${TLS}dial-timeout: 5\ncilium-host-aliases:\n- { hostname: us.mesh.cilium.io, ips: ["172.31.2.2"] }\n`;
    mkdirSync(join(dir, '..1'));
    writeFileSync(join(dir, '..1', 'us'), text);
    symlinkSync('..1', join(dir, '..data'));
    symlinkSync('..data/us', join(dir, 'us'));
    assert.deepEqual(
      [...readClusterFiles(dir, 'eu').clusters.values()],
      [
        {
          name: 'us',
          endpoints: ['https://us.mesh.cilium.io:2379'],
          hostAliases: [{ hostname: 'us.mesh.cilium.io', ips: ['172.31.2.2'] }],
          caFile: '/ca',
          certFile: '/cert',
          keyFile: '/key',
          agreed: undefined,
          text,
        },
      ],
    );
  });

  test('of this cluster itself, of no cluster, and half a swap are passed over', () => {
    writeFileSync(join(dir, 'eu'), `endpoints: [https://eu:1]\n${TLS}`);
    writeFileSync(join(dir, 'us.etcd-client.key'), 'secret');
    mkdirSync(join(dir, 'endpoints:'));
    symlinkSync('..data/gone', join(dir, 'gone'));
    assert.deepEqual(readClusterFiles(dir, 'eu'), { clusters: new Map(), unusable: new Map() });
  });

  test('that cannot be used are named with all that is wrong, and the others go on', () => {
    writeFileSync(join(dir, 'us'), 'endpoints: [http://127.0.0.1:2379]\n');
    writeFileSync(join(dir, 'ap'), 'endpoints: []\nx-clustermesh: { id: 2, podCIDR: nowhere }\n');
    writeFileSync(join(dir, 'sa'), 'endpoints: [\n');
    writeFileSync(join(dir, 'UPPER'), `endpoints: [https://x:1]\n${TLS}`);
    const { clusters, unusable } = readClusterFiles(dir, 'eu');
    assert.deepEqual([...clusters.keys()], ['us']);
    assert.deepEqual([...unusable.keys()], ['UPPER', 'ap', 'sa']);
    assert.match(
      unusable.get('ap')?.reason ?? '',
      /^endpoints: .*; x-clustermesh\.podCIDR: is no CIDR; trusted-ca-file: is needed.*; cert-file: .*; key-file: /,
    );
  });

  test('in a directory that is gone are not an empty set', () => {
    rmSync(dir, { recursive: true });
    assert.throws(() => readClusterFiles(dir, 'eu'), /ENOENT/);
  });

  test('of ours say what was agreed', () => {
    const agreed = (cidr: string) =>
      parseClusterFile('us', `endpoints: [https://x:1]\n${TLS}x-clustermesh: { id: 2${cidr} }\n`).agreed;
    assert.deepEqual(agreed(', podCIDR: 10.2.0.0/16'), { id: 2, podCidr: '10.2.0.0/16', podCidrV6: '' });
    const both = agreed(', podCIDR: 10.2.0.0/16, podCIDRv6: "fd00:2::/32"');
    assert.deepEqual(both, { id: 2, podCidr: '10.2.0.0/16', podCidrV6: 'fd00:2::/32' });
    assert.throws(() => agreed(', podCIDRv6: 10.3.0.0/16'), /x-clustermesh\.podCIDRv6: is no IPv6 CIDR/);
    assert.deepEqual(agreed(''), { id: 2, podCidr: '', podCidrV6: '' });
  });
});
