/** Where a service is reached from outside of the cluster: NodePorts, external addresses, its load balancer's. Pure. */
import type { LocalService } from '@clustermesh/contract';
import type { ServiceManifest } from './schemas.ts';

type Port = LocalService['ports'][number];

export interface ExternalFace {
  readonly ports: readonly Port[];
  readonly face: Pick<LocalService, 'externalIPs' | 'externalTrafficPolicy' | 'internalTrafficPolicy'>;
  /** Sentences without the place. */
  readonly problems: readonly string[];
}

/** `takenBy`: which service a NodePort (`30080/TCP`) was given to before; entered here for this one. */
export function readExternal(name: string, manifest: ServiceManifest, takenBy: Map<string, string>): ExternalFace {
  const { spec, status } = manifest;
  const problems: string[] = [];
  const hasNodePorts = spec.type === 'NodePort' || spec.type === 'LoadBalancer';

  function nodePortOf({ port, protocol, nodePort }: (typeof spec.ports)[number]): Pick<Port, 'nodePort'> {
    if (!hasNodePorts || nodePort == null) {
      if (spec.type === 'NodePort')
        problems.push(
          `port ${port}/${protocol} has no nodePort, and none is allocated here: set one; no node has a port for it`,
        );
      return {};
    }
    const key = `${nodePort}/${protocol}`;
    const holder = takenBy.get(key);
    if (holder !== undefined) {
      problems.push(`nodePort ${key} belongs to service ${holder}; no node has a port for port ${port}`);
      return {};
    }
    takenBy.set(key, name);
    return { nodePort };
  }

  const ports = spec.ports.map((port) => ({
    name: port.name ?? '',
    protocol: port.protocol,
    port: port.port,
    ...nodePortOf(port),
  }));

  // ipMode Proxy: what arrives is addressed to a node already (KEP-1860), and the load balancer must not be passed by.
  const given = spec.type === 'LoadBalancer' ? (status?.loadBalancer?.ingress ?? []) : [];
  let ingress = given.flatMap(({ ip, ipMode }) => (ip == null || ipMode === 'Proxy' ? [] : [ip]));
  if (ingress.length > 0 && (spec.loadBalancerSourceRanges ?? []).length > 0) {
    problems.push(
      `loadBalancerSourceRanges are not enforced: ${ingress.join(', ')} is not served by the nodes. Leave them out and restrict the pods by a policy (fromCIDR)`,
    );
    ingress = [];
  }
  const externalIPs = [...new Set([...(spec.externalIPs ?? []), ...ingress])];
  return {
    ports,
    face: {
      ...(externalIPs.length === 0 ? {} : { externalIPs }),
      ...(spec.externalTrafficPolicy === 'Local' ? { externalTrafficPolicy: 'Local' } : {}),
      ...(spec.internalTrafficPolicy === 'Local' ? { internalTrafficPolicy: 'Local' } : {}),
    },
    problems,
  };
}
