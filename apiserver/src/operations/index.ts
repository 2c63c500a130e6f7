export { type Operations, type OperationsOptions, startOperations } from './operations.ts';
export type { OwnCluster } from './peer-checks.ts';
export { createPeerDirectory, parsePeerFile } from './peer-directory.ts';
