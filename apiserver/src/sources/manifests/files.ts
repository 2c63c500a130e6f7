/**
 * The manifest files in force. A file that becomes malformed keeps its last good objects until it is fixed or removed, also
 * across a restart (the last good text is kept in the state directory). A file that is written in place is left alone for a
 * moment, so that the truncated half of a slow write never withdraws a service; files that are renamed into place count at once.
 */
import { readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import { join } from 'node:path';
import { messageOf } from '@clustermesh/contract';
import { atomicWrite } from '@clustermesh/runtime';
import { type LocatedObject, type ParsedFile, parseManifestFile } from './parse.ts';

export interface FilesInForce {
  readonly objects: readonly LocatedObject[];
  readonly problems: readonly string[];
  readonly notes: readonly string[];
  readonly brokenNamespaces: readonly string[];
  /** Nothing has changed since the read before. */
  readonly isUnchanged: boolean;
  /** A file was changed or removed too recently to be believed: read again after this time. */
  readonly againInMs: number | undefined;
}

interface FileState {
  /** inode, size and times: unchanged means not read again. */
  readonly stamp: string;
  readonly inode: number;
  readonly parsed: ParsedFile;
  readonly inForce: readonly LocatedObject[];
  missingSinceMs: number | undefined;
}

const MANIFEST_FILE = /^[^.].*\.(ya?ml|json)$/;
/** How long an in-place write or a removal must have been quiet. */
const SETTLE_MS = 100;

/** Objects in force: the good ones of a file, and while any document is bad, the earlier ones that are not in it now. */
export function withLastGood(parsed: ParsedFile, lastGood: readonly LocatedObject[]): readonly LocatedObject[] {
  if (parsed.problems.length === 0) return parsed.objects;
  const present = new Set(parsed.objects.map((object) => object.key));
  return [...parsed.objects, ...lastGood.filter((object) => !present.has(object.key))];
}

export class ManifestFiles {
  readonly #dir: string;
  readonly #lastGoodDir: string;
  readonly #files = new Map<string, FileState>();
  #unreadable = '';
  #changed = true;

  constructor(dir: string, lastGoodDir: string) {
    this.#dir = dir;
    this.#lastGoodDir = lastGoodDir;
  }

  /** Reads what changed. `nowMs` is wall-clock time, because file times are. Throws only when the directory cannot be read. */
  read(nowMs: number): FilesInForce {
    const names = readdirSync(this.#dir).filter((name) => MANIFEST_FILE.test(name));
    const unreadable: string[] = [];
    let again = false;
    for (const name of names) {
      try {
        again = this.#readFile(name, nowMs) === 'later' || again;
      } catch (error) {
        const vanished = (error as NodeJS.ErrnoException).code === 'ENOENT';
        if (vanished) again = this.#missing(name, nowMs) || again;
        else unreadable.push(`${name}: cannot be read (${messageOf(error)})`);
      }
    }
    const present = new Set(names);
    for (const name of [...this.#files.keys()]) {
      if (!present.has(name)) again = this.#missing(name, nowMs) || again;
    }

    const isUnchanged = !this.#changed && this.#unreadable === unreadable.join();
    this.#changed = false;
    this.#unreadable = unreadable.join();
    const sorted = [...this.#files].sort(([a], [b]) => (a < b ? -1 : 1)).map(([, state]) => state);
    const objects = sorted.flatMap((state) => state.inForce);
    return {
      objects,
      problems: [...unreadable, ...sorted.flatMap((state) => state.parsed.problems)],
      notes: sorted.flatMap((state) => state.parsed.notes),
      brokenNamespaces: sorted.flatMap((state) => state.parsed.brokenNamespaces),
      isUnchanged,
      againInMs: again ? SETTLE_MS : undefined,
    };
  }

  #readFile(name: string, nowMs: number): 'read' | 'later' {
    const path = join(this.#dir, name);
    const stat = statSync(path);
    const stamp = `${stat.ino} ${stat.size} ${stat.mtimeMs} ${stat.ctimeMs}`;
    const known = this.#files.get(name);
    if (known !== undefined) known.missingSinceMs = undefined;
    if (known?.stamp === stamp) return 'read';
    const age = nowMs - stat.mtimeMs;
    if (known !== undefined && known.inode === stat.ino && age >= 0 && age < SETTLE_MS) return 'later';

    const text = readFileSync(path, 'utf8');
    const parsed = parseManifestFile(name, text);
    const lastGood = known?.inForce ?? (parsed.problems.length > 0 ? this.#storedLastGood(name) : []);
    this.#changed = true;
    this.#files.set(name, {
      stamp,
      inode: stat.ino,
      parsed,
      inForce: withLastGood(parsed, lastGood),
      missingSinceMs: undefined,
    });
    if (parsed.problems.length === 0) atomicWrite(join(this.#lastGoodDir, name), text);
    return 'read';
  }

  /** True while the file may still come back; after that it is forgotten. */
  #missing(name: string, nowMs: number): boolean {
    const known = this.#files.get(name);
    if (known === undefined) return false;
    known.missingSinceMs ??= nowMs;
    const age = nowMs - known.missingSinceMs;
    if (age >= 0 && age < SETTLE_MS) return true;
    this.#changed = true;
    this.#files.delete(name);
    rmSync(join(this.#lastGoodDir, name), { force: true });
    return false;
  }

  #storedLastGood(name: string): readonly LocatedObject[] {
    try {
      return parseManifestFile(name, readFileSync(join(this.#lastGoodDir, name), 'utf8')).objects;
    } catch {
      return []; // none was ever stored
    }
  }
}
