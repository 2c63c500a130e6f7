import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import type { ClusterInfo, MeshError } from '@clustermesh/contract';
import { checkPeer, type KnownPeer, type OwnCluster } from './agreement.ts';

const own: OwnCluster = {
  name: 'eu',
  id: 1,
  maxConnectedClusters: 255,
  podCidr: '10.1.0.0/16',
  podCidrV6: 'fd00:1::/32',
  serviceCidrs: ['10.96.0.0/16', 'fd00:96::/112'],
};
const us: ClusterInfo = {
  name: 'us',
  id: 2,
  maxConnectedClusters: 255,
  region: '',
  endpoints: ['https://us:2379'],
  hostAliases: [],
  caPem: 'CA us\n',
  version: '',
  podCidr: '10.2.0.0/16',
  podCidrV6: 'fd00:2::/32',
};
const known = (more: Partial<KnownPeer>): KnownPeer => ({
  name: 'us',
  id: 2,
  podCidr: '10.2.0.0/16',
  podCidrV6: 'fd00:2::/32',
  caPem: 'CA us',
  ...more,
});

describe('a peer', () => {
  const fine: readonly [string, Partial<ClusterInfo>, readonly KnownPeer[]][] = [
    ['that is new', {}, []],
    ['beside another one', {}, [known({ name: 'ap', id: 3, podCidr: '10.3.0.0/16', podCidrV6: '' })]],
    ['that is connected already, with another address', { endpoints: ['https://other:2379'] }, [known({})]],
    ['that is connected already, in a file that is not ours', {}, [known({ id: 0, podCidr: '', caPem: '' })]],
    ['that names no pod CIDR', { podCidr: '', podCidrV6: '' }, []],
    ['that has no IPv6', { podCidrV6: '' }, []],
  ];
  for (const [what, more, peers] of fine) {
    it(`${what} is accepted`, () => checkPeer(own, { ...us, ...more }, peers));
  }

  const refused: readonly [string, Partial<ClusterInfo>, readonly KnownPeer[], RegExp][] = [
    [
      'with our name',
      { name: 'eu' },
      [],
      /connecting cluster eu \(id 1\) with cluster eu \(id 2\): both clusters are named eu/,
    ],
    ['with our id', { id: 1 }, [], /both clusters have cluster id 1/],
    ['with another maximum', { maxConnectedClusters: 511 }, [], /eu has maxConnectedClusters 255, us has 511/],
    ['with an id out of range', { id: 256 }, [], /cluster id 256 is not in 1…255/],
    ['with an impossible name', { name: '../etc' }, [], /cluster name "\.\.\/etc" must consist of/],
    ['without an endpoint', { endpoints: [] }, [], /us advertises no etcd endpoint/],
    [
      'F21 whose pods have our addresses',
      { podCidr: '10.1.128.0/17' },
      [],
      /the pod CIDRs 10\.1\.0\.0\/16 of eu and 10\.1\.128\.0\/17 of us overlap/,
    ],
    [
      'F21 whose pods have our IPv6 addresses',
      { podCidrV6: 'fd00:1:1::/48' },
      [],
      /the pod CIDRs fd00:1::\/32 of eu and fd00:1:1::\/48 of us overlap/,
    ],
    [
      'F21 whose pods have addresses of our services',
      { podCidr: '10.96.128.0/17' },
      [],
      /the pod CIDR 10\.96\.128\.0\/17 of us overlaps the service CIDR 10\.96\.0\.0\/16 of eu/,
    ],
    [
      'F21 whose pods have IPv6 addresses of our services',
      { podCidrV6: 'fd00:96::/64' },
      [],
      /the pod CIDR fd00:96::\/64 of us overlaps the service CIDR fd00:96::\/112 of eu/,
    ],
    [
      "F21 whose pods have a connected cluster's IPv6 addresses",
      {},
      [known({ name: 'ap', id: 3, podCidr: '10.3.0.0/16', podCidrV6: 'fd00:2:7::/48' })],
      /fd00:2::\/32 of us overlaps fd00:2:7::\/48 of the connected cluster ap/,
    ],
    [
      'whose pods may have any IPv6 address',
      { podCidrV6: '::/0' },
      [],
      /the pod CIDR of us: ::\/0 is wider than a \/32/,
    ],
    ['whose pods may have most', { podCidrV6: '2000::/16' }, [], /2000::\/16 is wider than a \/32/],
    ['whose pods may be link-local', { podCidrV6: 'fe80::/64' }, [], /fe80::\/64 is link-local/],
    ['whose IPv6 is none', { podCidrV6: '10.9.0.0/16' }, [], /10\.9\.0\.0\/16 is no IPv6 range/],
    ['whose pod CIDR is none', { podCidr: 'nowhere' }, [], /"nowhere" is no CIDR/],
    [
      'with the id of a connected cluster',
      {},
      [known({ name: 'ap', podCidr: '' })],
      /cluster id 2 is already used by the connected cluster ap/,
    ],
    ['with the name of a connected cluster', {}, [known({ id: 7 })], /a cluster us with id 7 is connected already/],
    [
      'that replaces a connected cluster',
      {},
      [known({ caPem: 'another CA' })],
      /a cluster us with id 2 but another CA is connected already/,
    ],
    [
      "F21 whose pods have a connected cluster's addresses",
      {},
      [known({ name: 'ap', id: 3, podCidr: '10.0.0.0/8' })],
      /10\.2\.0\.0\/16 of us overlaps 10\.0\.0\.0\/8 of the connected cluster ap/,
    ],
  ];
  for (const [what, more, peers, message] of refused) {
    it(`${what} is refused`, () => {
      assert.throws(
        () => checkPeer(own, { ...us, ...more }, peers),
        (error: MeshError) => {
          assert.match(error.message, message);
          assert.ok((error.hint ?? '').length > 0, 'a hint');
          assert.equal(error.retryable, false);
          return true;
        },
      );
    });
  }
});
