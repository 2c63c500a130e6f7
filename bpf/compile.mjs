// How the programs are compiled, by whichever clang.
import { execFileSync } from 'node:child_process';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const here = dirname(fileURLToPath(import.meta.url));

export const programs = [
  ...['sock.bpf.c', 'pod.bpf.c', 'overlay.bpf.c', 'netdev.bpf.c', 'xdp.bpf.c', 'destroy.bpf.c'],
  ...['test/seam.bpf.c', 'test/xdp-seam.bpf.c'],
];

const multiarch = { x64: 'x86_64-linux-gnu', arm64: 'aarch64-linux-gnu' }[process.arch];
if (!multiarch) throw new Error(`building eBPF programs: architecture ${process.arch} is not supported (x64, arm64)`);
export const clangFlags = [
  ...['-O2', '-g', '-Wall', '-Wextra', '-Werror', '-Wno-unused-parameter', '-Wno-missing-field-initializers'],
  ...['-target', 'bpf', '-mcpu=v3', `-I/usr/include/${multiarch}`],
];

export function tool(program, args) {
  try {
    return execFileSync(program, args, { encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'], maxBuffer: 64 << 20 });
  } catch (error) {
    if (error.code === 'ENOENT') {
      throw new Error(
        `building eBPF programs: ${program} is not installed (Debian: apt-get install clang libbpf-dev bpftool)`,
      );
    }
    throw new Error(`${program} ${args.join(' ')}\n${error.stderr ?? error.message}`);
  }
}

/** Compiles one source into `directory`; returns the object's name and path. */
export function compile(source, directory, clang = 'clang') {
  const name = basename(source, '.bpf.c');
  const compiled = join(directory, `${name}.o`);
  const linked = join(directory, `${name}.bpf.o`);
  tool(clang, [...clangFlags, '-c', join(here, source), '-o', compiled]);
  tool('bpftool', ['gen', 'object', linked, compiled]);
  return { name, linked };
}
