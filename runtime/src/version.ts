import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { repoRoot } from './files.ts';

let cached: string | undefined;

/** The release that this process belongs to. */
export function version(): string {
  cached ??= (JSON.parse(readFileSync(join(repoRoot(), 'package.json'), 'utf8')) as { version: string }).version;
  return cached;
}
