/** A writer under election in a process of its own, which a test can stop with SIGSTOP. Says on stdout what its election does. */
import { silentLog } from '@clustermesh/runtime';
import { startElection } from '../election.ts';
import { openEtcd } from '../etcd.ts';
import { startWriter } from '../writer.ts';

const [endpoint, name, prefix, electionKey] = process.argv.slice(2) as [string, string, string, string];
const log = silentLog();
const stop = new AbortController();
process.once('SIGTERM', () => stop.abort());

const common = { etcd: openEtcd({ endpoints: [endpoint], log }), log, signal: stop.signal };
const leadership = startElection({ ...common, key: electionKey, replica: name, ttlSeconds: 1 });
const say = () => process.stdout.write(`${leadership.status().state}\n`);
leadership.onChange(say);
const writer = startWriter({ ...common, owned: [prefix], leadership, backoff: { minMs: 10, maxMs: 50 } });
let count = 0;
const timer = setInterval(() => {
  for (let i = 0; i < 20; i++) writer.set(`${prefix}${i}`, `${name} ${count}`);
  count++;
}, 2);
await Promise.all([writer.done, leadership.done]);
clearInterval(timer);
await common.etcd.close();
