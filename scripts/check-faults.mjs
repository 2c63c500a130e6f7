// docs/faults.md says which test shows which fault: each file that a row names has a test with the number of that fault in its title.
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

const TABLE = 'docs/faults.md';

/** The faults that titles in a test file begin with: 'F10 a writer …', `F26, F27: …`. */
export function faultsIn(source) {
  const titles = [...source.matchAll(/['"`](F\d\d(?:, F\d\d)*)[ :]/g)];
  return new Set(titles.flatMap(([, faults]) => faults.split(', ')));
}

export function checkFaults(root) {
  const rows = readFileSync(join(root, TABLE), 'utf8')
    .split('\n')
    .filter((line) => /^\| F\d\d /.test(line));
  if (rows.length === 0) return [`${TABLE}: names no fault`];
  return rows.flatMap((row) => {
    const [, first, tests] = row.split('|');
    const fault = first.trim().slice(0, 3);
    const files = [...tests.matchAll(/`([^`]+)`/g)].map(([, file]) => file);
    if (files.length === 0) return [`${TABLE}: ${fault} has no test`];
    return files.flatMap((file) => {
      if (!existsSync(join(root, file))) return [`${TABLE}: ${fault} names ${file}, which is not there`];
      const found = faultsIn(readFileSync(join(root, file), 'utf8')).has(fault);
      return found ? [] : [`${TABLE}: ${fault} names ${file}, in which no test's title begins with ${fault}`];
    });
  });
}
