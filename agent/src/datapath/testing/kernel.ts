/** The inside of the datapath, for what measures it from another room. */
export * as libbpf from '../libbpf.ts';
export { build, type Frame } from './frames.ts';
