/** What the lab daemon offers on its socket, shared by server and client. */

import type { Partition, Plane } from '../netns/partition.ts';
import type { ProcessState } from '../netns/process.ts';
import type { Topology } from '../topology.ts';

export interface DaemonStatus {
  /** `eu/etcd`, `eu/agent/n1` */
  readonly name: string;
  readonly state: ProcessState;
  readonly pid: number | undefined;
  readonly restarts: number;
  readonly lastExit: string | undefined;
}

export type PodPhase = 'creating' | 'running' | 'paused' | 'restarting' | 'stopped' | 'finished' | 'terminating';

export interface PodStatus {
  readonly cluster: string;
  readonly namespace: string;
  readonly name: string;
  readonly node: string;
  readonly ip: string;
  readonly ipv6?: string;
  readonly phase: PodPhase;
  readonly ready: boolean;
  /** Why it is not ready, when there is something to say. */
  readonly reason: string;
  readonly identity: number | undefined;
  readonly restarts: number;
  readonly pid: number | undefined;
  readonly labels: Readonly<Record<string, string>>;
}

export interface ServiceStatus {
  readonly cluster: string;
  readonly namespace: string;
  readonly name: string;
  readonly clusterIP: string;
  /** Of each address family. */
  readonly clusterIPs: readonly string[];
  readonly ports: readonly { readonly name: string; readonly protocol: string; readonly port: number }[];
  readonly global: boolean;
  readonly shared: boolean;
  readonly affinity: string;
  /** Own pods: `address:port`, ready ones only. */
  readonly endpoints: readonly string[];
  readonly notReady: number;
}

export interface LabStatus {
  readonly instance: string;
  /** Of the lab daemon. */
  readonly pid: number;
  readonly phase: 'starting' | 'up' | 'failed';
  readonly topology: Topology | undefined;
  readonly daemons: readonly DaemonStatus[];
  readonly pods: { readonly total: number; readonly ready: number };
  readonly partitions: readonly Partition[];
  readonly upSince: string;
}

export interface ObjectResult {
  /** `Service default/shop`, or where in the file it stands when it could not be read. */
  readonly object: string;
  readonly action: 'created' | 'configured' | 'unchanged' | 'deleted' | 'absent' | 'failed';
  readonly message: string;
}

export interface PodEnvironment {
  readonly cgroup: string;
  readonly namespace: string;
  readonly env: Readonly<Record<string, string>>;
}

/** Method name → request and response. */
export interface LabMethods {
  up: { request: { topology: Topology }; response: { ms: number } };
  status: { request: Record<string, never>; response: LabStatus };
  apply: { request: { cluster: string; text: string; source: string }; response: { results: readonly ObjectResult[] } };
  delete: {
    request: { cluster: string; text: string; source: string };
    response: { results: readonly ObjectResult[] };
  };
  pods: { request: Record<string, never>; response: { pods: readonly PodStatus[] } };
  services: {
    request: Record<string, never>;
    response: { services: readonly ServiceStatus[]; problems: readonly string[] };
  };
  control: {
    request: { action: 'kill' | 'start' | 'pause' | 'resume'; targets: readonly string[] };
    response: { done: readonly string[] };
  };
  partition: {
    request: { from: string; to: string; planes: readonly Plane[]; oneWay: boolean };
    response: { partitions: readonly Partition[] };
  };
  heal: { request: { a: string; b: string }; response: { partitions: readonly Partition[] } };
  podEnvironment: { request: { pod: string }; response: PodEnvironment };
}

export type LabMethod = keyof LabMethods;

/** One line of a response: any number of `progress`, then `result` or `error`. */
export type ResponseLine =
  | { readonly progress: string }
  | { readonly result: unknown }
  | { readonly error: { readonly code: string; readonly message: string; readonly hint: string | undefined } };
