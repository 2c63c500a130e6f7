// Compiles the programs and generates the TypeScript layouts from the objects' BTF.
//
//   node bpf/build.mjs           build if anything changed
//   node bpf/build.mjs --force
//
// *.bpf.c ── clang ──► *.o ── bpftool gen object ──► build/*.bpf.o ── bpftool btf dump ──► generated/layout.ts
//
// `gen object` is a link of one file: it drops DWARF and fills in the offsets of .rodata, which clang leaves 0.
import { createHash } from 'node:crypto';
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { generateLayout } from './codegen.mjs';
import { clangFlags, compile, programs, tool } from './compile.mjs';
import { deepestStack, stackLimit } from './stack.mjs';

const here = dirname(fileURLToPath(import.meta.url));
const buildDir = join(here, 'build');
const layoutFile = join(here, 'generated', 'layout.ts');
const stampFile = join(buildDir, '.stamp');

function fingerprint() {
  const hash = createHash('sha256')
    .update(clangFlags.join(' '))
    .update(tool('clang', ['--version']));
  const inputs = ['.', 'lib', 'test'].flatMap((dir) =>
    readdirSync(join(here, dir))
      .filter((name) => /\.(c|h|mjs)$/.test(name))
      .map((name) => join(dir, name)),
  );
  for (const path of inputs.sort()) hash.update(path).update(readFileSync(join(here, path)));
  return hash.digest('hex');
}

/** By rename, so that whoever starts at this moment reads a whole file, old or new. */
function publish(from, to) {
  mkdirSync(dirname(to), { recursive: true });
  renameSync(from, to);
}

/** Prints the object's deepest stack; throws where it leaves too little of what the kernel allows. */
function checkStack(name, linked) {
  const { bytes, chain } = deepestStack(linked);
  const said = `${name}: deepest stack ${bytes} of 512 bytes: ${chain.join(' > ')}`;
  if (bytes > stackLimit) {
    throw new Error(
      `building eBPF programs: ${said}. More than ${stackLimit} are not allowed, for the sake of other compilers: ` +
        'give what is large in it to a function that is not on this chain, or to a per-CPU map (as cm_ct_scratch)',
    );
  }
  console.log(said);
}

function build() {
  const work = mkdtempSync(join(buildDir, '.work-'));
  try {
    const objects = programs.map((source) => {
      const { name, linked } = compile(source, work);
      checkStack(name, linked);
      return { name, linked, btf: JSON.parse(tool('bpftool', ['btf', 'dump', 'file', linked, '-j'])).types };
    });
    const layout = join(work, 'layout.ts');
    writeFileSync(layout, generateLayout(objects));
    for (const { name, linked } of objects) publish(linked, join(buildDir, `${name}.bpf.o`));
    publish(layout, layoutFile);
  } finally {
    rmSync(work, { recursive: true, force: true });
  }
}

mkdirSync(buildDir, { recursive: true });
const inputs = fingerprint();
const upToDate = existsSync(stampFile) && existsSync(layoutFile) && readFileSync(stampFile, 'utf8') === inputs;
if (!upToDate || process.argv.includes('--force')) {
  build();
  writeFileSync(stampFile, inputs);
}
