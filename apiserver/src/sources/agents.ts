/** Live agents of this cluster: their status keys are leased, so a key that is there is an agent that lives. */
import { AGENTS_PREFIX, type AgentStatus, decodeAgentStatus } from '@clustermesh/contract';
import { type Etcd, startReflector } from '@clustermesh/kvstore';
import type { Log } from '@clustermesh/runtime';
import type { AgentView } from '../ports.ts';

export interface AgentSourceOptions {
  readonly etcd: Etcd;
  readonly log: Log;
  readonly signal: AbortSignal;
}

export interface AgentSource extends AgentView {
  /** The agents have been listed once. */
  synced(): boolean;
  readonly ended: Promise<void>;
}

export function startAgentSource(options: AgentSourceOptions): AgentSource {
  const rows = new Map<string, AgentStatus>();
  const log = options.log.child({ subsystem: 'agents' });
  const reflector = startReflector({
    etcd: options.etcd,
    prefix: AGENTS_PREFIX,
    log,
    signal: options.signal,
    backoff: { minMs: 100, maxMs: 5_000 },
    sink: {
      apply({ upserts, removes }) {
        for (const key of removes) rows.delete(key);
        for (const { key, value } of upserts) {
          const decoded = decodeAgentStatus(value.toString('utf8'));
          if (decoded.ok && decoded.value.node === key.slice(AGENTS_PREFIX.length)) rows.set(key, decoded.value);
          else {
            rows.delete(key);
            log.warn({ key, reason: decoded.ok ? 'it names another node' : decoded.reason }, 'agent status ignored');
          }
        }
      },
    },
  });
  return {
    agents: () => [...rows].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, status]) => status),
    synced: () => reflector.status().everSynced,
    ended: reflector.done,
  };
}
