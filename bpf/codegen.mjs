// BTF (as `bpftool btf dump -j` prints it) to TypeScript: an interface and a codec per struct that a map or .rodata
// holds, a constant per enum, and a table of the maps. Nothing about the layout is known here but what BTF says:
// byte order comes from the typedef (`__be16`, `__be32`), padding is whatever member is called pad*.
import { createHash } from 'node:crypto';

const camel = (name) => name.replace(/_([a-z0-9])/g, (_, c) => c.toUpperCase());
const pascal = (name) => camel(`_${name}`);

function reader(types) {
  const byId = new Map(types.map((type) => [type.id, type]));
  const get = (id) => byId.get(id);
  const bare = (id) => {
    const type = get(id);
    return ['CONST', 'VOLATILE', 'RESTRICT'].includes(type.kind) ? bare(type.type_id) : type;
  };
  /** One of: scalar {bytes, bigEndian}, enum, struct, array. */
  const shape = (id, bigEndian = false) => {
    const type = bare(id);
    switch (type.kind) {
      case 'TYPEDEF':
        return shape(type.type_id, bigEndian || /^__be(16|32|64)$/.test(type.name));
      case 'INT':
        return { kind: 'scalar', bytes: type.size, bigEndian };
      case 'ENUM':
        return { kind: 'enum', bytes: type.size, bigEndian: false, type };
      case 'STRUCT':
        return { kind: 'struct', bytes: type.size, type };
      case 'ARRAY':
        return { kind: 'array', length: type.nr_elems, of: shape(type.type_id, bigEndian) };
      default:
        throw new Error(`layout: ${type.kind} ${type.name} is not supported in a shared struct`);
    }
  };
  /** Clang leaves types out that no function of an object takes. */
  const named = (name) => {
    const type = types.find((t) => t.kind === 'STRUCT' && t.name === name);
    return type ? shape(type.id) : NOTHING;
  };
  return { get, bare, shape, named };
}

/** The key and value of a map that has none. */
const NOTHING = { kind: 'nothing', bytes: 0 };
const RINGBUF = 27;

/** Maps are declared as BTF: a struct whose members are pointers, to the type or to an array of so many elements. */
function readMaps({ btf }) {
  const r = reader(btf);
  const section = btf.find((type) => type.kind === 'DATASEC' && type.name === '.maps');
  return (section?.vars ?? []).map(({ type_id }) => {
    const variable = r.get(type_id);
    const member = Object.fromEntries(r.bare(variable.type_id).members.map((m) => [m.name, r.get(m.type_id)]));
    const number = (name) => (member[name] ? r.get(member[name].type_id).nr_elems : 0);
    return {
      name: variable.name,
      type: number('type'),
      flags: number('map_flags'),
      maxEntries: number('max_entries'),
      key: member.key ? r.shape(member.key.type_id) : NOTHING,
      value: member.value ? r.shape(member.value.type_id) : NOTHING,
      // Records of a ring buffer are of the struct that is called as it is, without the plural's s.
      record: number('type') === RINGBUF ? r.named(variable.name.replace(/s$/, '')) : NOTHING,
      shape: r.shape,
    };
  });
}

function readRodata({ btf }) {
  const r = reader(btf);
  const section = btf.find((type) => type.kind === 'DATASEC' && type.name === '.rodata');
  return (section?.vars ?? []).map(({ type_id, offset }) => {
    const variable = r.get(type_id);
    return { name: variable.name, offset, value: r.shape(variable.type_id), shape: r.shape };
  });
}

const accessor = (s) => {
  if (s.bytes === 1) return 'UInt8';
  if (s.bytes === 8) return `BigUInt64${s.bigEndian ? 'BE' : 'LE'}`;
  return `UInt${s.bytes * 8}${s.bigEndian ? 'BE' : 'LE'}`;
};

/** Structs whose codec is written by hand (src/codec.ts): the TypeScript type, which is not one of their members. */
const VALUE_TYPES = { cm_addr: 'string' };
const isValueType = (s) => s.kind === 'struct' && s.type.name in VALUE_TYPES;

const codecName = (s) => {
  if (s.kind === 'nothing') return 'nothing';
  return s.kind === 'struct' ? camel(s.type.name) : 'u32';
};

function tsType(s) {
  if (isValueType(s)) return VALUE_TYPES[s.type.name];
  if (s.kind === 'struct') return pascal(s.type.name);
  if (s.kind === 'array') return s.of.bytes === 1 ? 'Uint8Array' : `${tsType(s.of)}[]`;
  return s.bytes === 8 ? 'bigint' : 'number';
}

function encodeMember(s, expression, at) {
  if (s.kind === 'struct') return [`${codecName(s)}.encode(${expression}, b, o + ${at});`];
  if (s.kind === 'array' && s.of.bytes === 1) return [`b.set(${expression}.subarray(0, ${s.length}), o + ${at});`];
  if (s.kind === 'array') {
    const zero = tsType(s.of) === 'bigint' ? '0n' : '0';
    return Array.from({ length: s.length }, (_, i) =>
      encodeMember(s.of, `(${expression}[${i}] ?? ${zero})`, at + i * s.of.bytes),
    ).flat();
  }
  return [`b.write${accessor(s)}(${expression}, o + ${at});`];
}

function decodeMember(s, at) {
  if (s.kind === 'struct') return `${codecName(s)}.decode(b, o + ${at})`;
  if (s.kind === 'array' && s.of.bytes === 1) return `Uint8Array.from(b.subarray(o + ${at}, o + ${at + s.length}))`;
  if (s.kind === 'array') {
    return `[${Array.from({ length: s.length }, (_, i) => decodeMember(s.of, at + i * s.of.bytes)).join(', ')}]`;
  }
  return `b.read${accessor(s)}(o + ${at})`;
}

function structSource(s, shape) {
  const members = s.type.members
    .filter((m) => !/^pad\d*$/.test(m.name))
    .map((m) => ({ name: camel(m.name), at: m.bits_offset / 8, shape: shape(m.type_id) }));
  const type = pascal(s.type.name);
  return `export interface ${type} {
${members.map((m) => `  ${m.name}: ${tsType(m.shape)};`).join('\n')}
}

export const ${camel(s.type.name)}: Codec<${type}> = {
  name: '${s.type.name}',
  size: ${s.bytes},
  encode(v, b = Buffer.alloc(${s.bytes}), o = 0) {
    b.fill(0, o, o + ${s.bytes});
${members.flatMap((m) => encodeMember(m.shape, `v.${m.name}`, m.at).map((line) => `    ${line}`)).join('\n')}
    return b;
  },
  decode: (b, o = 0) => ({
${members.map((m) => `    ${m.name}: ${decodeMember(m.shape, m.at)},`).join('\n')}
  }),
};
`;
}

/** CM_R_TO_STACK becomes TO_STACK: what all names of the enum share is left out. */
function enumSource(type) {
  const names = type.values.map((v) => v.name);
  const parts = names[0].split('_');
  let shared = '';
  for (const part of parts.slice(0, -1)) {
    if (!names.every((name) => name.startsWith(`${shared}${part}_`))) break;
    shared += `${part}_`;
  }
  const rows = type.values.map((v) => `  ${v.name.slice(shared.length)}: ${v.val},`);
  return `export const ${pascal(type.name)} = {\n${rows.join('\n')}\n} as const;\n`;
}

/** Text that says everything about the bytes of a shape, nested structs included. */
function describe(s, shape) {
  if (s.kind === 'struct') {
    return `{${s.type.members.map((m) => `${m.name}@${m.bits_offset}:${describe(shape(m.type_id), shape)}`).join(',')}}`;
  }
  if (s.kind === 'array') return `${describe(s.of, shape)}[${s.length}]`;
  if (s.kind === 'nothing') return '';
  // Enums grow by appending (see reasons.h), which leaves older rows readable.
  if (s.kind === 'enum') return `enum${s.bytes * 8}`;
  return `${s.bigEndian ? 'be' : 'u'}${s.bytes * 8}`;
}

/** BPF_MAP_TYPE_ARRAY and _PERCPU_ARRAY: what stands where depends on how many there are. */
const ARRAYS = new Set([2, 6]);

const fingerprint = (map) =>
  createHash('sha256')
    .update(ARRAYS.has(map.type) ? `${map.maxEntries}/` : '')
    .update(`${map.type}/${map.flags}/${describe(map.key, map.shape)}/${describe(map.value, map.shape)}`)
    .digest('hex')
    .slice(0, 16);

export function generateLayout(objects) {
  const maps = new Map();
  const structs = new Map();
  const enums = new Map();
  const collect = (s, shape) => {
    if (s.kind === 'array') collect(s.of, shape);
    if (s.kind === 'enum') enums.set(s.type.name, s.type);
    if (s.kind !== 'struct' || isValueType(s) || structs.has(s.type.name)) return;
    for (const member of s.type.members) collect(shape(member.type_id), shape);
    structs.set(s.type.name, { s, shape });
  };
  for (const object of objects) {
    for (const map of readMaps(object)) {
      maps.set(map.name, map);
      collect(map.key, map.shape);
      collect(map.value, map.shape);
      collect(map.record, map.shape);
    }
    for (const variable of readRodata(object)) collect(variable.value, variable.shape);
  }
  const sorted = (map) => [...map.values()].sort((a, b) => (a.name < b.name ? -1 : 1));

  return `// Generated by bpf/build.mjs from the BTF of bpf/build/*.bpf.o. Not to be edited.
import { type Codec, cmAddr, type MapLayout, nothing, u32 } from '../src/codec.ts';

${[...enums.values()].map(enumSource).join('\n')}
${[...structs.values()].map(({ s, shape }) => structSource(s, shape)).join('\n')}
const map = <K, V>(layout: MapLayout<K, V>): MapLayout<K, V> => layout;

export const maps = {
${sorted(maps)
  .map(
    (m) =>
      `  ${m.name}: map({ type: ${m.type}, flags: ${m.flags}, maxEntries: ${m.maxEntries}, key: ${codecName(m.key)}, value: ${codecName(m.value)}, fingerprint: '${fingerprint(m)}' }),`,
  )
  .join('\n')}
} as const;

export type MapName = keyof typeof maps;

/** Settings in .rodata, by object and variable. */
export const rodata = {
${objects
  .map(
    (o) =>
      `  '${o.name}': { ${readRodata(o)
        .map((v) => `${v.name}: { offset: ${v.offset}, codec: ${codecName(v.value)} }`)
        .join(', ')} },`,
  )
  .join('\n')}
} as const;
`;
}
