export { openAudit } from './audit.ts';
export { readClusterFacts, readClusterInfo } from './cluster-info.ts';
export { type AdminOptions, adminHandlers, startAdmin } from './server.ts';
export { composeStatus, type StatusFacts } from './status.ts';
export { listenForAdmin } from './tls.ts';
