/** What daemons and pods inherit: enough to find programs, nothing that belongs to the shell the lab was started from. */
const INHERITED = ['PATH', 'HOME', 'LANG', 'TZ', 'CM_LOG_LEVEL'] as const;

export function daemonEnvironment(more: Readonly<Record<string, string>> = {}): Record<string, string> {
  const env: Record<string, string> = {};
  for (const name of INHERITED) {
    const value = process.env[name];
    if (value !== undefined) env[name] = value;
  }
  return { ...env, ...more };
}
