import { Counter, Gauge, type Registry } from 'prom-client';

export interface GateMetrics {
  opened(user: string): void;
  closed(user: string): void;
  refused(reason: string): void;
}

export function createGateMetrics(registry: Registry): GateMetrics {
  const registers = [registry];
  const open = new Gauge({
    name: 'clustermesh_gate_connections',
    help: 'Open connections of a peer to this etcd',
    labelNames: ['user'],
    registers,
  });
  const refusals = new Counter({
    name: 'clustermesh_gate_refusals_total',
    help: 'Connections that were refused or cut, by reason',
    labelNames: ['reason'],
    registers,
  });
  return {
    opened: (user) => open.inc({ user }),
    closed: (user) => open.dec({ user }),
    refused: (reason) => refusals.inc({ reason }),
  };
}
