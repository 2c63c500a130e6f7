export { type Config, configSchema } from './config.ts';
export { type ControlPlane, startControlPlane } from './control-plane.ts';
