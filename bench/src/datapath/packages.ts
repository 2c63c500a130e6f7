/** Programs that only this benchmark needs, from the distribution. */
import { execFileSync, spawnSync } from 'node:child_process';

const PACKAGE_OF = { 'iptables-legacy-restore': 'iptables', nft: 'nftables' } as const;
export type NeededProgram = keyof typeof PACKAGE_OF;

const isThere = (program: string): boolean =>
  spawnSync('sh', ['-c', 'command -v "$0"', program], { stdio: 'ignore' }).status === 0;

/** Installs what is missing (nothing is started or enabled by these packages), or says what to install. */
export function needPrograms(programs: readonly NeededProgram[], progress: (text: string) => void): void {
  const packages = [...new Set(programs.filter((name) => !isThere(name)).map((name) => PACKAGE_OF[name]))];
  if (packages.length === 0) return;
  progress(`installing ${packages.join(', ')}: baselines of this benchmark`);
  try {
    execFileSync('apt-get', ['install', '-y', '-q', '--no-install-recommends', ...packages], {
      stdio: ['ignore', 'ignore', 'pipe'],
      env: { ...process.env, DEBIAN_FRONTEND: 'noninteractive' },
    });
  } catch (cause) {
    throw new Error(`this benchmark compares with ${packages.join(' and ')}: apt-get install ${packages.join(' ')}`, {
      cause,
    });
  }
}
