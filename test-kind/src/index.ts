export { holderOf, LabClient, type Progress, type StartOptions, startLab } from './client.ts';
export type { LabStatus, ObjectResult, PodStatus, ServiceStatus } from './labd/api.ts';
export { remains, teardown } from './netns/instance.ts';
export { instancePaths } from './netns/names.ts';
export { findCluster, type LabCluster, type LabNode, parseTopology, type Topology } from './topology.ts';
