/** TypeScript's view of contract/proto/agent.proto. */
export interface EndpointAddRequest {
  readonly id: string;
  readonly namespace: string;
  readonly pod: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly serviceAccount: string;
  readonly interface: string;
  readonly hostMac: string;
  readonly podMac: string;
  readonly ipv4: string;
  /** Beside it; empty where pods have none. */
  readonly ipv6?: string;
  /** Ports of its containers that policies may name. */
  readonly namedPorts?: readonly { readonly name: string; readonly port: number; readonly protocol: string }[];
}

export interface EndpointInfo {
  readonly id: string;
  readonly namespace: string;
  readonly pod: string;
  readonly labels: string;
  readonly identity: number;
  readonly interface: string;
  readonly ipv4: string;
  /** Empty: none. */
  readonly ipv6: string;
  readonly state: 'ready' | 'waiting';
  readonly reason: string;
  /** Directions in which policies are enforced: `none`, `ingress`, `egress` or `ingress, egress`. */
  readonly policy: string;
  /** Changes whenever what is enforced does. */
  readonly policyRevision: number;
  /** Policies that select it: `cnp/shop/allow-web`. */
  readonly policies: readonly string[];
  /** Its number on the node, as maps and flow events have it. */
  readonly endpointId: number;
}

export interface FamilyApplied {
  readonly peer: string;
  readonly family: string;
  readonly synced: boolean;
  readonly revision: number;
  readonly count: number;
}

export interface AgentStatusReply {
  readonly node: string;
  readonly cluster: string;
  readonly version: string;
  readonly etcdConnected: boolean;
  readonly etcdError: string;
  readonly families: readonly FamilyApplied[];
  readonly problems: readonly string[];
  readonly applied: boolean;
}

export const MAP_NAMES = ['ipcache', 'services', 'backends', 'endpoints', 'nodes', 'drops', 'ct', 'nat'] as const;
export type MapName = (typeof MAP_NAMES)[number];

export interface Json {
  readonly json: string;
}

export interface WatchFlowsRequest {
  readonly verdict: readonly string[];
  readonly reason: readonly string[];
  readonly identity: readonly number[];
  readonly address: readonly string[];
  readonly port: readonly number[];
  readonly service: readonly string[];
  readonly last: number;
  readonly sampleEvery: number;
  readonly noFollow: boolean;
}

/** Which packets get from a node to another one and back. */
export interface PathProbe {
  readonly address: string;
  /** Of the largest packet that came back; 0: none did. */
  readonly mtu: number;
  /** Why it could not be tried; '': it was. */
  readonly error: string;
}

export interface AgentMethods {
  EndpointAdd: { request: EndpointAddRequest; response: EndpointInfo };
  EndpointDelete: { request: { id: string }; response: Record<string, never> };
  EndpointList: { request: Record<string, never>; response: { endpoints: readonly EndpointInfo[] } };
  GetStatus: { request: Record<string, never>; response: AgentStatusReply };
  DumpMap: { request: { map: string }; response: Json };
  ReadMap: { request: { map: string }; response: Json; stream: true };
  ListMaps: { request: Record<string, never>; response: Json };
  ReadPolicy: { request: { endpoint: string }; response: Json; stream: true };
  ProbePaths: {
    request: { paths: readonly { readonly address: string; readonly mtu: number }[] };
    response: { paths: readonly PathProbe[] };
  };
  Verify: { request: Record<string, never>; response: Json };
  WatchFlows: { request: WatchFlowsRequest; response: Json; stream: true };
}
