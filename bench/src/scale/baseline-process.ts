/**
 * The baseline: the same keys, prefix by prefix, in the same pages over the same TLS, and nothing done with them. A process of its
 * own, as the agent is, with as many lists at a time as it has.
 */
import { openEtcd } from '@clustermesh/kvstore';
import { silentLog } from '@clustermesh/runtime';
import { type LoadShape, prefixesOf } from './load.ts';
import { type AgentSettings, type BaselineResult, monotonicMs, threadCpuMs } from './messages.ts';

const settings = JSON.parse(process.argv[2]!) as AgentSettings;
const shape = JSON.parse(process.argv[3]!) as LoadShape;

const startedAt = monotonicMs();
const startedCpu = threadCpuMs();
const etcd = openEtcd({ endpoints: [settings.endpoint], ...settings.pki, log: silentLog(), requestTimeoutMs: 60_000 });
let keys = 0;
let bytes = 0;
let pages = 0;
const prefixes = prefixesOf(shape).values();
async function listAll(): Promise<void> {
  for (const prefix of prefixes) {
    for await (const page of etcd.pages(prefix)) {
      pages++;
      keys += page.kvs.length;
      for (const kv of page.kvs) bytes += kv.key.length + kv.value.length;
    }
  }
}
await Promise.all(Array.from({ length: Number(process.env.CM_BENCH_LISTS ?? 16) }, listAll));
const threadMs = threadCpuMs() - startedCpu;
const result: BaselineResult = { ms: monotonicMs() - startedAt, threadMs, keys, bytes, pages };
await etcd.close();
process.send!(result, () => process.exit(0));
