/** Builders for tests of services. */
import {
  type ClusterEndpointSlice,
  type GlobalService,
  type LocalService,
  type LocalSlice,
  SERVICE_NAME_LABEL,
} from '@clustermesh/contract';
import type { Backend } from '../datapath/types.ts';

export const OWN_ID = 1;

export function localService(overrides: Partial<LocalService> = {}): LocalService {
  return {
    namespace: 'default',
    name: 'shop',
    clusterIPs: ['10.96.0.10'],
    ports: [{ name: 'http', protocol: 'TCP', port: 80 }],
    global: true,
    shared: true,
    affinity: 'none',
    labels: {},
    selector: { app: 'shop' },
    ...overrides,
  };
}

export type EndpointState = 'ready' | 'terminating' | 'not-ready';

export function slice(
  endpoints: Readonly<Record<string, EndpointState>>,
  overrides: Partial<LocalSlice> = {},
): LocalSlice {
  return {
    namespace: 'default',
    name: 'shop-1',
    service: 'shop',
    endpoints: Object.entries(endpoints).map(([ip, state]) => ({
      addresses: [ip],
      ready: state === 'ready',
      serving: state !== 'not-ready',
      terminating: state === 'terminating',
    })),
    ports: [{ name: 'http', protocol: 'TCP', port: 8080 }],
    ...overrides,
  };
}

export function remoteService(
  cluster: string,
  clusterId: number,
  ips: readonly string[],
  overrides: Partial<GlobalService> = {},
): GlobalService {
  return {
    cluster,
    namespace: 'default',
    name: 'shop',
    frontends: { [`10.${90 + clusterId}.0.1`]: { http: { Protocol: 'TCP', Port: 80 } } },
    backends: Object.fromEntries(ips.map((ip) => [ip, { http: { Protocol: 'TCP', Port: 8080 } }])),
    labels: {},
    selector: {},
    includeExternal: true,
    shared: true,
    clusterID: clusterId,
    ...overrides,
  };
}

export function remoteSlice(
  cluster: string,
  clusterId: number,
  endpoints: Readonly<Record<string, EndpointState>>,
  overrides: Partial<ClusterEndpointSlice> = {},
): ClusterEndpointSlice {
  return {
    cluster,
    clusterID: clusterId,
    namespace: 'default',
    name: 'shop-1',
    labels: { [SERVICE_NAME_LABEL]: 'shop' },
    addressType: 'IPv4',
    endpoints: Object.entries(endpoints).map(([ip, state]) => ({
      addresses: [ip],
      conditions: { ready: state === 'ready', serving: state !== 'not-ready', terminating: state === 'terminating' },
    })),
    ports: [{ name: 'http', protocol: 'TCP', port: 8080 }],
    ...overrides,
  };
}

export function backend(ip: string, clusterId = OWN_ID, port = 8080): Backend {
  return { ip, port, clusterId };
}
