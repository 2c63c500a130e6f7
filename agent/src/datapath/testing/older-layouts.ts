/** Makes pins look as an older version of the agent would have left them: see older-layouts.bpf.c. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { MapName } from '@clustermesh/bpf';
import * as libbpf from '../libbpf.ts';
import { carryOver, type Succession } from '../migrate.ts';
import { sh } from './sandbox.ts';

const SOURCE = fileURLToPath(new URL('older-layouts.bpf.c', import.meta.url));

/** Rows of the pinned maps that the older version had otherwise go into its layout, pins and all. Returns their names. */
export async function makeOlder(pinDir: string): Promise<MapName[]> {
  const work = mkdtempSync(join(tmpdir(), 'older-layouts-'));
  const compiled = join(work, 'older.o');
  const multiarch = process.arch === 'arm64' ? 'aarch64-linux-gnu' : 'x86_64-linux-gnu';
  sh('clang', '-O2', '-g', '-target', 'bpf', `-I/usr/include/${multiarch}`, '-c', SOURCE, '-o', compiled);
  const object = libbpf.openObject(compiled);
  const successions: Succession[] = [];
  try {
    libbpf.loadMaps(object);
    for (const [name, pointer] of libbpf.objectMaps(object)) {
      const pin = join(pinDir, name);
      successions.push({ name: name as MapName, pin, from: libbpf.pinned(pin)!, to: libbpf.mapFd(pointer) });
    }
    await carryOver(successions, () => {});
    return successions.map(({ name }) => name).sort();
  } finally {
    for (const { from } of successions) libbpf.closeFd(from);
    libbpf.closeObject(object);
    rmSync(work, { recursive: true });
  }
}
