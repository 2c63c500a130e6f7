/** The compiled programs and the layouts generated from them (both made by `node bpf/build.mjs`). */
import { createRequire } from 'node:module';
import { dirname, join } from 'node:path';

export * from '../generated/layout.ts';
export * from './codec.ts';

export type ProgramObject = 'sock' | 'pod' | 'overlay' | 'netdev' | 'xdp' | 'destroy' | 'seam' | 'xdp-seam';

/** Path of a compiled object; found through the package, so also from a bundle in dist/. */
export function objectPath(name: ProgramObject): string {
  const root = dirname(createRequire(import.meta.url).resolve('@clustermesh/bpf/package.json'));
  return join(root, 'build', `${name}.bpf.o`);
}
