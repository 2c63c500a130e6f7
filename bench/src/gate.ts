/**
 *   npm run bench:gate                       what it costs a peer to come in through clustermesh-gate; about a minute
 *   npm run bench:gate -- --keys 300000      more keys
 *   npm run bench:gate -- --json             figures as JSON on the last line
 *
 * One etcd with mTLS, read by the same client straight and through the built gate in a process of its own, in turn. Progress on stderr.
 */
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { type Etcd, openEtcd } from '@clustermesh/kvstore';
import { freePorts, startEtcd } from '@clustermesh/kvstore/testing';
import { ensureClusterPki, issueClient, loadCa, remoteUser } from '@clustermesh/pki';
import { silentLog, waitFor } from '@clustermesh/runtime';
import { stringify } from 'yaml';
import { startMeasured } from './mirror/processes.ts';
import { type Figure, percentile, table } from './report.ts';

const { values: flags } = parseArgs({
  options: {
    keys: { type: 'string', default: '100000' },
    /** Lists each way, and rounds of single changes. */
    pairs: { type: 'string', default: '10' },
    json: { type: 'boolean', default: false },
  },
});
const keys = Number(flags.keys);
const pairs = Number(flags.pairs);
const PREFIX = 'cilium/state/ip/v1/default/';
const VALUE = JSON.stringify({
  IP: '10.2.1.7',
  HostIP: '172.31.2.11',
  ID: 131400,
  Key: 0,
  Metadata: '',
  pad: 'x'.repeat(100),
});
const CHANGES_A_ROUND = 100;
const progress = (text: string) => process.stderr.write(`bench: ${text}\n`);

async function fill(etcd: Etcd): Promise<void> {
  for (let at = 0; at < keys; at += 100)
    await etcd.txn({
      success: Array.from({ length: Math.min(100, keys - at) }, (_, i) => ({
        put: `${PREFIX}${at + i}`,
        value: VALUE,
      })),
    });
}

/** Milliseconds of a whole list. */
async function list(etcd: Etcd): Promise<number> {
  const since = performance.now();
  let seen = 0;
  for await (const page of etcd.pages(PREFIX)) seen += page.kvs.length;
  if (seen < keys) throw new Error(`listed ${seen} of ${keys} keys`);
  return performance.now() - since;
}

/** Milliseconds from a put, straight at etcd, to its event at the reader; one change at a time. */
async function changes(writer: Etcd, reader: Etcd): Promise<number[]> {
  const stop = new AbortController();
  const { header } = await reader.getWithHeader('bench/change');
  let arrived: (() => void) | undefined;
  const watch = reader.watch({
    prefix: 'bench/change',
    startRevision: header.revision + 1,
    signal: stop.signal,
    onEvents: () => arrived?.(),
  });
  const times: number[] = [];
  for (let i = 0; i < CHANGES_A_ROUND; i++) {
    const event = new Promise<void>((resolve) => {
      arrived = resolve;
    });
    const since = performance.now();
    await Promise.all([writer.put('bench/change', String(i)), Promise.race([event, watch.then(() => event)])]);
    times.push(performance.now() - since);
  }
  stop.abort();
  await watch.catch(() => {});
  return times;
}

const directory = mkdtempSync(join(tmpdir(), 'cm-bench-gate-'));
process.once('exit', () => rmSync(directory, { recursive: true, force: true }));
const pki = (name: string) => join(directory, name);
await ensureClusterPki({ dir: directory, cluster: 'hub' });
const pair = await issueClient({ ca: loadCa(directory), commonName: remoteUser('peer') });
const reader = { caFile: pki('ca.crt'), certFile: pki('reader.crt'), keyFile: pki('reader.key') };
writeFileSync(reader.certFile, pair.certPem);
writeFileSync(reader.keyFile, pair.keyPem, { mode: 0o600 });
writeFileSync(pki('users.yaml'), stringify({ users: [{ name: remoteUser('peer'), role: 'remote' }] }));

const server = await startEtcd({
  tls: { caFile: pki('ca.crt'), certFile: pki('server.crt'), keyFile: pki('server.key') },
  extraArgs: ['--quota-backend-bytes', String(4 << 30)],
});
const admin = server.client({ caFile: pki('ca.crt'), certFile: pki('admin.crt'), keyFile: pki('admin.key') });
const [port = 0] = await freePorts(1);
writeFileSync(
  pki('gate.yaml'),
  stringify({
    cluster: 'hub',
    listen: { host: '127.0.0.1', port },
    tls: { caFile: pki('ca.crt'), certFile: pki('server.crt'), keyFile: pki('server.key') },
    etcd: { port: server.port, caFile: pki('ca.crt'), certFile: pki('gate.crt'), keyFile: pki('gate.key') },
    usersFile: pki('users.yaml'),
    crlFile: pki('crl.pem'),
    http: { port: 0 },
  }),
);
const gate = startMeasured({ script: 'clustermesh-gate', args: ['--config', pki('gate.yaml')], nodeFlags: [] });
const client = (endpoint: string) =>
  openEtcd({ endpoints: [endpoint], ...reader, log: silentLog(), requestTimeoutMs: 60_000, connectTimeoutMs: 30_000 });
const straight = client(server.endpoint);
const through = client(`https://127.0.0.1:${port}`);
try {
  progress(`writing ${keys} keys`);
  await fill(admin);
  await waitFor(
    () =>
      through.get('nothing').then(
        () => true,
        () => false,
      ),
    { what: 'the gate', timeoutMs: 30_000 },
  );
  const lists = { straight: [] as number[], through: [] as number[] };
  const events = { straight: [] as number[], through: [] as number[] };
  let gateCpu = 0;
  for (let round = 1; round <= pairs; round++) {
    lists.straight.push(await list(straight));
    const before = gate.usage().cpuSeconds;
    lists.through.push(await list(through));
    gateCpu += gate.usage().cpuSeconds - before;
    events.straight.push(...(await changes(admin, straight)));
    events.through.push(...(await changes(admin, through)));
    progress(`round ${round} of ${pairs}`);
  }
  const median = (values: readonly number[]) =>
    percentile(
      [...values].sort((a, b) => a - b),
      0.5,
    );
  const p99 = (values: readonly number[]) =>
    percentile(
      [...values].sort((a, b) => a - b),
      0.99,
    );
  const compared = (name: string, unit: string, value: number, baseline: number): Figure => ({
    ...{ name, unit, value, baseline },
    ratio: value / baseline,
  });
  const rate = (ms: number) => keys / (ms / 1000);
  const figures: Figure[] = [
    { name: 'keys', value: keys, unit: '' },
    compared('list through the gate, median', 'keys/s', rate(median(lists.through)), rate(median(lists.straight))),
    compared('put → event through the gate, p50', 'ms', median(events.through), median(events.straight)),
    compared('put → event through the gate, p99', 'ms', p99(events.through), p99(events.straight)),
    { name: 'CPU of the gate a key listed', value: (gateCpu / (keys * pairs)) * 1e6, unit: 'µs' },
    { name: 'resident memory of the gate, peak', value: gate.usage().peakRssMb, unit: 'MB' },
  ];
  process.stdout.write(`${table(figures)}\n`);
  if (flags.json) process.stdout.write(`${JSON.stringify(figures)}\n`);
} finally {
  await Promise.all([straight.close(), through.close()]);
  await gate.stop();
  await server.close();
}
