// Open-loop load from inside a pod: a request is started every INTERVAL ms whatever became of those before it, each on a
// connection of its own, so that every one is a fresh choice of backend and a slow answer does not hide the next.
//
//   load.mjs URL [--interval MS] [--timeout MS] [--count N]      default: every 20 ms, 1000 ms, until stdin ends
//
// One JSON line per request when it is over: {"at": wall clock ms of its start, "ms": duration, "cluster", "pod"} or
// {"at", "ms", "error"}.
import { get } from 'node:http';
import { parseArgs } from 'node:util';

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: { interval: { type: 'string' }, timeout: { type: 'string' }, count: { type: 'string' } },
});
const [url] = positionals;
const intervalMs = Number(values.interval ?? 20);
const timeoutMs = Number(values.timeout ?? 1000);
const count = Number(values.count ?? Number.POSITIVE_INFINITY);

const wallMs = () => performance.timeOrigin + performance.now();
let running = 0;
let started = 0;
let stopping = false;

function requestOnce() {
  started++;
  running++;
  const at = wallMs();
  let settled = false;
  const done = (result) => {
    if (settled) return;
    settled = true;
    clearTimeout(timer);
    running--;
    process.stdout.write(
      `${JSON.stringify({ at: Math.round(at * 10) / 10, ms: Math.round((wallMs() - at) * 10) / 10, ...result })}\n`,
    );
    maybeEnd();
  };
  const request = get(url, { agent: false }, (response) => {
    let text = '';
    response.setEncoding('utf8');
    response.on('data', (chunk) => {
      text += chunk;
    });
    response.on('error', (error) => done({ error: error.code ?? error.message }));
    response.on('end', () => {
      try {
        const { cluster, pod } = JSON.parse(text);
        done({ cluster, pod });
      } catch {
        done({ error: `unexpected answer ${response.statusCode}` });
      }
    });
  });
  request.on('error', (error) => done({ error: error.code ?? error.message }));
  const timer = setTimeout(() => {
    done({ error: 'timeout' });
    request.destroy();
  }, timeoutMs);
}

function maybeEnd() {
  if ((stopping || started >= count) && running === 0) process.exit(0);
}

// Paced by the clock: a late tick starts what is due, so that the number of requests does not depend on the machine's load.
const startedAt = performance.now();
const ticker = setInterval(
  () => {
    while (!stopping && started < count && performance.now() - startedAt >= started * intervalMs) requestOnce();
    if (stopping || started >= count) {
      clearInterval(ticker);
      maybeEnd();
    }
  },
  Math.min(intervalMs, 5),
);

process.stdin.on('end', () => {
  stopping = true;
});
process.stdin.resume();
