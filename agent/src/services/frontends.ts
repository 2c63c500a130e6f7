/**
 * Where a service is reached on this node, and whether all of its backends may answer there. Pure.
 *
 *   cluster addresses             from pods and sockets of the node; internalTrafficPolicy
 *   node's own addresses : port   NodePorts: from within, any backend; from outside, externalTrafficPolicy
 *   external addresses            those of the service and of its load balancer: the same
 *
 * From within, a service's external addresses lead to any backend, whatever the policy (as kube-proxy does it): the client's address is
 * not lost there, and a node without a backend is no reason to refuse its own pods.
 */
import type { LocalService } from '@clustermesh/contract';
import type { Frontend } from '../datapath/types.ts';
import { isIpv6 } from './groups.ts';

export interface NodeAddresses {
  /** Underlay addresses, of either family: NodePorts are there. */
  readonly own: readonly string[];
  /** Is a backend of this address on this node? */
  readonly isHere: (ip: string) => boolean;
}

export const NO_NODE: NodeAddresses = { own: [], isHere: () => false };

export interface ServiceFrontend {
  readonly frontend: Frontend;
  /** The service's port, by its name. */
  readonly portName: string;
  /** Only backends of this node may answer. */
  readonly isOnlyHere: boolean;
}

export function frontendsOf(service: LocalService, node: NodeAddresses): ServiceFrontend[] {
  const found: ServiceFrontend[] = [];
  const isOnlyHere = {
    inside: service.internalTrafficPolicy === 'Local',
    outside: service.externalTrafficPolicy === 'Local',
  };
  for (const ip of service.clusterIPs) {
    for (const { name, protocol, port } of service.ports)
      found.push({ frontend: { ip, port, protocol }, portName: name, isOnlyHere: isOnlyHere.inside });
  }
  // A service of one family has no backends of the other.
  const families = new Set(service.clusterIPs.map(isIpv6));
  for (const { name, protocol, port, nodePort } of service.ports) {
    const reached = [
      ...(service.externalIPs ?? []).map((ip) => ({ ip, port })),
      ...(nodePort === undefined ? [] : node.own.map((ip) => ({ ip, port: nodePort }))),
    ];
    for (const { ip, port } of reached) {
      if (!families.has(isIpv6(ip))) continue;
      const frontend: Frontend = { ip, port, protocol };
      found.push({ frontend, portName: name, isOnlyHere: false });
      found.push({ frontend: { ...frontend, scope: 'outside' }, portName: name, isOnlyHere: isOnlyHere.outside });
    }
  }
  return found;
}
