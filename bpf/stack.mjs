// How deep the stacks of an object's programs get. The kernel refuses more than 512 bytes along a chain of calls, and
// names neither the chain nor how near others are; here both are known when the object is built.
//
// Frames are what the code touches below r10 (instruction set: docs.kernel.org/bpf/standardization), rounded up to 16
// bytes as the verifier does for the JIT (check_max_stack_depth_subprog() in kernel/bpf/verifier.c, since 6.8).
import { readFileSync } from 'node:fs';

/** Bytes, of the verifier's 512: what is left is for the next change, and for another clang's frames. */
export const stackLimit = 480;

const FRAME_POINTER = 10;
const MOV = 0xbf;
const ADD_IMMEDIATE = 0x07;
const CALL = 0x85;
const CALL_LOCAL = 1; // source register of a call: a function of the object, not a helper
const LDX = 1;
const STORES = [2, 3]; // ST, STX
const LOAD_64 = 0x18; // the only instruction of two slots

/** ELF64, little-endian: sections by index, with symbols of functions and relocations read. */
function readElf(file) {
  const at = (offset, size) => Number(size === 8 ? file.readBigUInt64LE(offset) : file.readUIntLE(offset, size));
  const sections = Array.from({ length: at(60, 2) }, (_, index) => {
    const header = at(40, 8) + index * 64;
    const offset = at(header + 24, 8);
    const [type, info] = [at(header + 4, 4), at(header + 44, 4)];
    return { type, info, bytes: type === 8 ? Buffer.alloc(0) : file.subarray(offset, offset + at(header + 32, 8)) };
  });
  const rows = (section, size) =>
    Array.from({ length: section.bytes.length / size }, (_, i) => section.bytes.subarray(i * size, (i + 1) * size));
  const table = sections.find(({ type }) => type === 2);
  const names = sections[file.readUInt32LE(at(40, 8) + sections.indexOf(table) * 64 + 40)].bytes;
  const symbols = rows(table, 24).map((row) => ({
    name: names.toString('latin1', row.readUInt32LE(0), names.indexOf(0, row.readUInt32LE(0))),
    isFunction: (row[4] & 0xf) === 2,
    section: row.readUInt16LE(6),
    start: Number(row.readBigUInt64LE(8)),
    size: Number(row.readBigUInt64LE(16)),
  }));
  const relocations = new Map(); // 'section:offset' -> symbol
  for (const section of sections.filter(({ type }) => type === 9))
    for (const row of rows(section, 16))
      relocations.set(`${section.info}:${row.readBigUInt64LE(0)}`, symbols[row.readUInt32LE(12)]);
  return { sections, symbols, relocations };
}

/** A function's frame in bytes, and the places that it calls: { section, at: byte of the section }. */
function scan({ sections, relocations }, { section, start, size }) {
  const code = sections[section].bytes;
  const copies = new Set(); // registers that hold r10, nothing added yet
  const calls = [];
  let frame = 0;
  for (let pc = start; pc < start + size; pc += 8) {
    const [op, registers] = [code[pc], code[pc + 1]];
    const [target, source] = [registers & 0xf, registers >> 4];
    const [offset, immediate] = [code.readInt16LE(pc + 2), code.readInt32LE(pc + 4)];
    const base = (op & 7) === LDX ? source : STORES.includes(op & 7) ? target : undefined;
    if (base === FRAME_POINTER) frame = Math.max(frame, -offset);
    if (op === ADD_IMMEDIATE && copies.has(target)) frame = Math.max(frame, -immediate);
    if (op === MOV && source === FRAME_POINTER) copies.add(target);
    else if (base === undefined) copies.delete(target);
    if (op === CALL && source === CALL_LOCAL) {
      const symbol = relocations.get(`${section}:${pc}`);
      // Section 0: a function of the kernel, which has a stack of its own.
      if (symbol?.section === 0) continue;
      calls.push(
        symbol === undefined
          ? { section, at: pc + 8 + immediate * 8 }
          : { section: symbol.section, at: symbol.isFunction ? symbol.start : (immediate + 1) * 8 },
      );
    }
    if (op === LOAD_64) pc += 8;
  }
  return { frame: Math.ceil(frame / 16) * 16, calls };
}

/** The deepest chain of calls of an object file: { bytes, chain: ['cm_connect6 208', 'lb_select 48', …] }. */
export function deepestStack(path) {
  const elf = readElf(readFileSync(path));
  const functions = elf.symbols.filter(({ isFunction }) => isFunction);
  const known = new Map();
  const depthOf = (fn) => {
    if (known.has(fn)) return known.get(fn);
    const { frame, calls } = scan(elf, fn);
    let below = { bytes: 0, chain: [] };
    for (const { section, at } of calls) {
      const callee = functions.find((other) => other.section === section && other.start === at);
      if (!callee)
        throw new Error(`${path}: ${fn.name} calls byte ${at} of section ${section}, where no function begins`);
      const depth = depthOf(callee);
      if (depth.bytes > below.bytes) below = depth;
    }
    const depth = { bytes: frame + below.bytes, chain: [`${fn.name} ${frame}`, ...below.chain] };
    known.set(fn, depth);
    return depth;
  };
  return functions.map(depthOf).reduce((a, b) => (b.bytes > a.bytes ? b : a));
}
