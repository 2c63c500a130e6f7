// What must not be in the repository's files: registry addresses, paths of the machine it was written on, version ranges.
import { execFileSync } from 'node:child_process';
import { existsSync, readFileSync } from 'node:fs';
import { join } from 'node:path';

/** A lock file entry's `resolved` is either a folder of ours or an address; only the first may be committed. */
function checkLockFile(root) {
  const lock = JSON.parse(readFileSync(join(root, 'package-lock.json'), 'utf8'));
  return Object.entries(lock.packages)
    .filter(([, entry]) => entry.resolved !== undefined && !(entry.link && existsSync(join(root, entry.resolved))))
    .map(([path]) => `package-lock.json: ${path} has a registry address; keep omit-lockfile-registry-resolved=true`);
}

function checkNpmrc(root) {
  const path = join(root, '.npmrc');
  if (!existsSync(path)) return [];
  return readFileSync(path, 'utf8')
    .split('\n')
    .filter((line) => /registry\s*=|_auth|:\/\//.test(line))
    .map((line) => `.npmrc: "${line.trim()}" names a registry or a credential; that belongs to each user's own npmrc`);
}

function checkVersions(root) {
  const { dependencies, devDependencies } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
  return Object.entries({ ...dependencies, ...devDependencies })
    .filter(([, version]) => !/^\d+\.\d+\.\d+$/.test(version))
    .map(([name, version]) => `package.json: ${name} is "${version}"; write the exact version`);
}

function trackedFiles(root) {
  try {
    return execFileSync('git', ['ls-files', '-z'], { cwd: root, encoding: 'utf8', stdio: ['ignore', 'pipe', 'ignore'] })
      .split('\0')
      .filter(Boolean);
  } catch {
    return []; // an unpacked archive: nothing is tracked, and nothing can be committed from it
  }
}

/** The checkout's own absolute path has no business in a file of it. */
function checkMachinePaths(root) {
  if (root.split('/').length < 3) return []; // such as /app: too short to be told from ordinary text
  return trackedFiles(root)
    .filter((file) => existsSync(join(root, file)) && readFileSync(join(root, file), 'utf8').includes(root))
    .map((file) => `${file}: contains ${root}, a path of this machine`);
}

export function checkRepositoryFiles(root) {
  return [...checkLockFile(root), ...checkNpmrc(root), ...checkVersions(root), ...checkMachinePaths(root)];
}
