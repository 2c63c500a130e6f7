export { type Election, type ElectionOptions, startElection } from './election.ts';
export { openEtcd } from './etcd.ts';
export { type Observe, type Operation, observedEtcd, scopeOf } from './observed.ts';
export { prefixEnd } from './ranges.ts';
export { startReflector } from './reflector.ts';
export type * from './types.ts';
export { startWriter } from './writer.ts';
export type * from './writer-types.ts';
