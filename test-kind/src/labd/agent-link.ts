/**
 * The lab's side of a node's EndpointAdd / EndpointDelete: the list of endpoints that should be, compared with the agent's own
 * whenever something may have changed. An agent that is down is simply not there yet.
 */
import { existsSync } from 'node:fs';
import type { AgentMethods, EndpointAddRequest, EndpointInfo } from '@clustermesh/contract';
import { dialRpc, type Log, type RpcClient, type Runner, startRunner } from '@clustermesh/runtime';

export interface AgentLink {
  /** Resolves when the agent has programmed it, however long the agent takes to come; never when it is dropped before. */
  ensure(endpoint: EndpointAddRequest): Promise<EndpointInfo>;
  drop(id: string): void;
  /** The agent may have changed: compare again. */
  trigger(): void;
}

export interface AgentLinkOptions {
  readonly socket: string;
  readonly signal: AbortSignal;
  readonly log: Log;
  /** A pod waits for its agent: why, for its status. */
  readonly onWaiting: (id: string, reason: string) => void;
}

interface Wanted {
  readonly request: EndpointAddRequest;
  readonly done: (info: EndpointInfo) => void;
  settled: boolean;
}

export function startAgentLink(options: AgentLinkOptions): AgentLink {
  const wanted = new Map<string, Wanted>();

  const settle = (entry: Wanted, info: EndpointInfo) => {
    entry.settled = true;
    entry.done(info);
  };

  async function compare(agent: RpcClient<AgentMethods>): Promise<void> {
    const { endpoints } = await agent.EndpointList({}, { timeoutMs: 5_000 });
    const present = new Map(endpoints.map((endpoint) => [endpoint.id, endpoint]));
    // Removals first: a pod made anew may have the address of one that is to go.
    for (const id of present.keys()) if (!wanted.has(id)) await agent.EndpointDelete({ id });
    const failures: unknown[] = [];
    await Promise.all(
      [...wanted.values()].map(async (entry) => {
        const found = present.get(entry.request.id);
        if (found !== undefined && entry.settled) return;
        try {
          settle(entry, found ?? (await agent.EndpointAdd(entry.request)));
        } catch (error) {
          failures.push(error);
          options.onWaiting(entry.request.id, `agent: ${error instanceof Error ? error.message : error}`);
        }
      }),
    );
    if (failures.length > 0) throw failures[0];
  }

  async function pass(): Promise<void> {
    const waiting = [...wanted.values()].filter((entry) => !entry.settled);
    if (!existsSync(options.socket)) {
      for (const entry of waiting) options.onWaiting(entry.request.id, 'waiting for the agent of its node');
      if (waiting.length > 0) throw new Error('the agent has no socket yet');
      return;
    }
    // A connection of its own each time: a kept one would sit out a back-off after the agent's restart.
    const agent = dialRpc<AgentMethods>('agent', `unix://${options.socket}`);
    try {
      await compare(agent);
    } finally {
      agent.close();
    }
  }

  const runner: Runner = startRunner({
    run: pass,
    minIntervalMs: 20,
    retryMs: 100,
    maxIntervalMs: 2_000,
    onError: (error, failures) => {
      if (failures === 1 || failures % 30 === 0)
        options.log.info({ err: error, socket: options.socket, failures }, 'endpoints not in place yet');
    },
    signal: options.signal,
  });

  return {
    ensure: (request) =>
      new Promise((resolve) => {
        wanted.set(request.id, { request, done: resolve, settled: false });
        runner.trigger();
      }),
    drop(id) {
      if (wanted.delete(id)) runner.trigger();
    },
    trigger: () => runner.trigger(),
  };
}
