/** Cilium's entities as peers. */
import type { PolicyPeer } from './model.ts';
import { inCluster, reserved } from './selector.ts';

/** Reserved identities that an entity of the same name stands for. */
const SINGLE = [
  'host',
  'remote-node',
  'init',
  'health',
  'unmanaged',
  'kube-apiserver',
  'ingress',
  'world-ipv4',
  'world-ipv6',
] as const;

export const ENTITIES = ['all', 'none', 'world', 'cluster', ...SINGLE] as const;
export type Entity = (typeof ENTITIES)[number];

const OF_THE_CLUSTER = ['host', 'remote-node', 'init', 'ingress', 'health', 'unmanaged', 'kube-apiserver'];

const one = (name: string): PolicyPeer => ({ kind: 'labels', selector: [reserved(name)] });

/** `cluster`: the one that the policy is of. Remote nodes of all clusters belong to the entity of that name, as in Cilium. */
export function entityPeers(entity: Entity, cluster: string): PolicyPeer[] {
  switch (entity) {
    case 'all':
      return [{ kind: 'all' }];
    case 'none':
      return [];
    case 'world':
      return ['world', 'world-ipv4', 'world-ipv6'].map(one);
    case 'cluster':
      return [...OF_THE_CLUSTER.map(one), { kind: 'labels', selector: [inCluster(cluster)] }];
    default:
      return [one(entity)];
  }
}
