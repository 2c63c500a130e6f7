/** What benchmarks start: the core, and the kernel side. The daemon is `main.ts`. */
export { type Agent, type AgentPorts, startAgent } from './agent.ts';
export { type AgentConfig, parseAgentConfig } from './config.ts';
export { openDatapath } from './datapath/index.ts';
export type {
  Datapath,
  DatapathConfig,
  EndpointRow,
  IpcacheRow,
  MapOps,
  NodeRow,
  OpResult,
  ServiceRow,
} from './datapath/types.ts';
export type { PolicyRow, PolicyStateRow } from './policy/types.ts';
