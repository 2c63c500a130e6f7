/**
 * Ports and protocols of one peer as rows of a longest-prefix match. What allow and deny rules say about one peer is resolved here,
 * so that the row found is the verdict: a deny is never hidden behind a longer allow. Pure.
 *
 *   any protocol ── TCP ── TCP 8000/6 … TCP 8080/16      each row covers what is below it
 */
import type { Layer4 } from '@clustermesh/contract';

/** A node of that tree. */
export interface PortBlock {
  /** IP protocol number; 0: any, then `port` and `bits` are 0. */
  readonly protocol: number;
  /** Host order; bits behind the first `bits` are zero. ICMP: type × 256, 8 bits. */
  readonly port: number;
  readonly bits: number;
}

export interface PortVerdict extends PortBlock {
  readonly deny: boolean;
}

export const PROTOCOL_NUMBERS = { TCP: 6, UDP: 17, SCTP: 132 } as const;
export const ICMP_NUMBERS = { 4: 1, 6: 58 } as const;

const ANY: PortBlock = { protocol: 0, port: 0, bits: 0 };

/** The fewest aligned blocks that make up `first … last`. */
export function blocksOf(protocol: number, first: number, last: number): PortBlock[] {
  const blocks: PortBlock[] = [];
  for (let port = first; port <= last; ) {
    let size = port === 0 ? 65536 : port & -port;
    while (port + size - 1 > last) size /= 2;
    blocks.push({ protocol, port, bits: 16 - Math.log2(size) });
    port += size;
  }
  return blocks;
}

/** Ports that a name stands for. */
export type NamedPorts = (protocol: keyof typeof PROTOCOL_NUMBERS, name: string) => Iterable<number>;

function blocksOfEntry(entry: Layer4, named: NamedPorts): PortBlock[] {
  if (entry.kind === 'icmp') return [{ protocol: ICMP_NUMBERS[entry.family], port: entry.type << 8, bits: 8 }];
  const protocol = PROTOCOL_NUMBERS[entry.protocol];
  if (entry.kind === 'ports') return blocksOf(protocol, entry.first, entry.last);
  return [...named(entry.protocol, entry.name)].map((port) => ({ protocol, port, bits: 16 }));
}

/** A name that stands for nothing covers nothing. */
export function blocksOfLayer4(layer4: readonly Layer4[] | null, named: NamedPorts): PortBlock[] {
  return layer4 === null ? [ANY] : layer4.flatMap((entry) => blocksOfEntry(entry, named));
}

const keyOf = ({ protocol, port, bits }: PortBlock): number => (protocol * 65536 + port) * 32 + bits;

/** The blocks that cover `block`, from the next larger one up to "any". */
function* above({ protocol, port, bits }: PortBlock): Generator<PortBlock> {
  if (protocol === 0) return;
  for (let length = bits - 1; length >= 0; length--) {
    yield { protocol, port: length === 0 ? 0 : port & (0xffff << (16 - length)) & 0xffff, bits: length };
  }
  yield ANY;
}

/** The rows that say: deny what is in `deny`, else allow what is in `allow`. */
export function resolve(allow: readonly PortBlock[], deny: readonly PortBlock[]): PortVerdict[] {
  const allowed = new Map(allow.map((block) => [keyOf(block), block]));
  const denied = new Map(deny.map((block) => [keyOf(block), block]));
  const isBelow = (block: PortBlock, set: ReadonlyMap<number, PortBlock>) => {
    for (const larger of above(block)) if (set.has(keyOf(larger))) return true;
    return false;
  };
  const rows: PortVerdict[] = [];
  for (const block of denied.values()) if (!isBelow(block, denied)) rows.push({ ...block, deny: true });
  for (const [key, block] of allowed)
    if (!denied.has(key) && !isBelow(block, denied) && !isBelow(block, allowed)) rows.push({ ...block, deny: false });
  return rows;
}
