export { createRotationPorts, type RotationPorts } from './facts.ts';
export { ROTATE_STEPS } from './steps.ts';
export { createTrustReports, type TrustReports } from './trust-reports.ts';
