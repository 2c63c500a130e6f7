import { execFile } from 'node:child_process';
import { join } from 'node:path';
import type { TestCluster } from './control-plane.ts';

/** Runs etcdctl as admin-<cluster>: what our own client has no business with. Resolves to what it prints. */
export function etcdctl(cluster: TestCluster, ...args: readonly string[]): Promise<string> {
  const file = (name: string) => join(cluster.root, 'pki', name);
  const credentials = ['--cacert', file('ca.crt'), '--cert', file('admin.crt'), '--key', file('admin.key')];
  const command = ['--endpoints', cluster.server.endpoint, ...credentials, ...args];
  return new Promise((resolve, reject) => {
    execFile('etcdctl', command, (error, stdout, stderr) =>
      error === null ? resolve(stdout) : reject(new Error(`etcdctl ${args.join(' ')}: ${stderr}`)),
    );
  });
}
