/** What a cluster has of a peer: in its directories, in its etcd, among its users. */
import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { join } from 'node:path';
import { remoteUser } from '@clustermesh/pki';
import type { TestCluster } from './apiserver-process.ts';

/** Everything of `peer` in `cluster`, each as a readable string; empty when there is nothing. */
export async function leftoversOf(cluster: TestCluster, peer: string): Promise<string[]> {
  const left: string[] = [];
  const mentions = (name: string) => name === peer || name.startsWith(`${peer}.`);
  for (const name of readdirSync(join(cluster.dir, 'clustermesh')).filter(mentions)) left.push(`file ${name}`);
  if (existsSync(join(cluster.dir, 'state/pending', peer))) left.push('pending credentials');
  if (existsSync(join(cluster.dir, 'state/joins', `${peer}.json`))) left.push('unfinished join');
  const usersFile = join(cluster.dir, 'users.yaml');
  if (existsSync(usersFile) && readFileSync(usersFile, 'utf8').includes(`name: ${remoteUser(peer)}`))
    left.push('users.yaml');
  const pki = join(cluster.dir, 'pki');
  const client = cluster.etcd.client({
    caFile: join(pki, 'ca.crt'),
    certFile: join(pki, 'admin.crt'),
    keyFile: join(pki, 'admin.key'),
  });
  try {
    if ((await client.auth.listUsers()).includes(remoteUser(peer))) left.push('etcd user');
    for (const prefix of ['cilium/', 'clustermesh/peers/'])
      for (const { key } of (await client.range(prefix)).kvs)
        if (key.split('/').includes(peer)) left.push(`key ${key}`);
  } finally {
    await client.close();
  }
  return left;
}
