export { housekeeping } from './housekeeping.ts';
export { createMeshSwitch, disableMesh } from './mesh-switch.ts';
export { type Operations, type OperationsOptions, startOperations } from './operations.ts';
export { createPeerDirectory, parsePeerFile } from './peer-directory.ts';
export { startSchedule } from './schedule.ts';
