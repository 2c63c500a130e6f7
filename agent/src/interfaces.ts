import { readFileSync } from 'node:fs';

/**
 * Names of the network interfaces in this process's network namespace. From /proc/net/dev, because /sys/class/net shows the
 * namespace in which sysfs was mounted, not that of the reader.
 */
export function readInterfaces(): ReadonlySet<string> | undefined {
  try {
    const lines = readFileSync('/proc/self/net/dev', 'utf8').split('\n').slice(2);
    return new Set(lines.map((line) => line.slice(0, line.indexOf(':')).trim()).filter((name) => name !== ''));
  } catch {
    return undefined;
  }
}
