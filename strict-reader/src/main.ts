/** Reads a cluster as a remote Cilium would and says everything that such a reader would stumble over. See README.md. */
import { parseArgs } from 'node:util';
import { messageOf } from './follow.ts';
import { type ReaderOptions, readStrictly } from './reader.ts';
import { formatReport } from './report.ts';

const USAGE = `usage: strict-reader --endpoint URL --cluster NAME --layout state|cache [options]
  --ca FILE --cert FILE --key FILE   for https endpoints; the certificate's common name is the etcd user
  --server-name NAME                 the name in the server's certificate, where the endpoint is an address
  --follow-ms N                      go on for so long after everything was listed (default 0)
  --own-id N                         the reader's own cluster id
  --max-clusters 255|511             the reader's maxConnectedClusters (default 255)
  --sync-timeout-ms N                for every canary and list (default 60000)
  --config-timeout-ms N              for the cluster config (default 180000)
  --connect-timeout-ms N             for the first answer (default 15000)
  --heartbeat-limit-ms N             silence that readers put up with (default 120000)
  --unchanging                       the source has not changed since it was started: hold the canaries to that
  --allow-unknown-fields             fields of a newer writer are no violation
  -o json|text                       default text
SIGINT and SIGTERM end the following early; the report is printed then, too
exit code: 0 no violations, 1 violations, 64 bad usage`;

class UsageError extends Error {}

function parse(args: string[]): { options: ReaderOptions; output: string } {
  const text = { type: 'string' } as const;
  const { values } = parseArgs({
    args,
    options: {
      ...{ endpoint: text, cluster: text, layout: text, ca: text, cert: text, key: text, 'server-name': text },
      ...{ 'follow-ms': text, 'own-id': text, 'max-clusters': text, 'sync-timeout-ms': text },
      ...{ 'config-timeout-ms': text, 'connect-timeout-ms': text, 'heartbeat-limit-ms': text },
      unchanging: { type: 'boolean', default: false },
      'allow-unknown-fields': { type: 'boolean', default: false },
      output: { type: 'string', short: 'o', default: 'text' },
    },
  });
  const required = (name: 'endpoint' | 'cluster' | 'layout') => {
    const value = values[name];
    if (value === undefined) throw new UsageError(`--${name} is missing`);
    return value;
  };
  const number = (name: keyof typeof values) => {
    const value = values[name];
    if (value === undefined) return undefined;
    if (!/^\d+$/.test(String(value))) throw new UsageError(`--${name} ${value} is no number`);
    return Number(value);
  };
  const layout = required('layout');
  if (layout !== 'state' && layout !== 'cache') throw new UsageError(`--layout ${layout} is neither state nor cache`);
  const max = number('max-clusters') ?? 255;
  if (max !== 255 && max !== 511) throw new UsageError(`--max-clusters ${max} is neither 255 nor 511`);
  if (values.output !== 'json' && values.output !== 'text') throw new UsageError(`-o ${values.output} is unknown`);
  const endpoint = required('endpoint');
  if (!/^https?:\/\/[^/]+$/.test(endpoint)) throw new UsageError(`--endpoint ${endpoint} is no http(s)://host:port`);
  const options: ReaderOptions = {
    endpoint,
    layout,
    cluster: required('cluster'),
    ...{ caFile: values.ca, certFile: values.cert, keyFile: values.key, serverName: values['server-name'] },
    followMs: number('follow-ms') ?? 0,
    ownId: number('own-id'),
    maxConnectedClusters: max,
    syncTimeoutMs: number('sync-timeout-ms'),
    configTimeoutMs: number('config-timeout-ms'),
    connectTimeoutMs: number('connect-timeout-ms'),
    heartbeatLimitMs: number('heartbeat-limit-ms'),
    isUnchanging: values.unchanging,
    allowUnknownFields: values['allow-unknown-fields'],
  };
  return { options, output: values.output };
}

try {
  const { options, output } = parse(process.argv.slice(2));
  const stop = new AbortController();
  process.once('SIGINT', () => stop.abort());
  process.once('SIGTERM', () => stop.abort());
  const onSynced = () => console.error('strict-reader: everything is listed');
  const report = await readStrictly({ ...options, onSynced, signal: stop.signal });
  console.log(output === 'json' ? JSON.stringify(report, null, 2) : formatReport(report));
  process.exitCode = report.violations.length > 0 ? 1 : 0;
} catch (error) {
  // parseArgs throws TypeErrors of its own for what it does not know.
  const isUsage = error instanceof UsageError || (error instanceof TypeError && 'code' in error);
  if (!isUsage) throw error;
  console.error(`strict-reader: ${messageOf(error)}\n${USAGE}`);
  process.exitCode = 64;
}
