// One long download inside a pod, checked byte by byte through its SHA-256, with the longest time without data.
//
//   download.mjs URL      POSTs to it; the server sends until our request ends, which is when our stdin does
//
// Prints {"progress": bytes} about every 100 ms, and at the end
// {"bytes", "sentBytes", "intact", "ms", "longestStallMs", "stallAt": wall clock ms, "servedBy"} or {"error", …}.
import { createHash } from 'node:crypto';
import { request } from 'node:http';

const [url] = process.argv.slice(2);
const print = (value) => process.stdout.write(`${JSON.stringify(value)}\n`);
const wallMs = () => performance.timeOrigin + performance.now();

const hash = createHash('sha256');
let bytes = 0;
let lastDataAt = 0;
let longestStallMs = 0;
let stallAt = 0;
let servedBy;
const startedAt = performance.now();

function finish(more) {
  print({
    bytes,
    longestStallMs: Math.round(longestStallMs * 10) / 10,
    stallAt: Math.round(stallAt),
    servedBy,
    ms: Math.round(performance.now() - startedAt),
    ...more,
  });
  process.exit(more.error === undefined ? 0 : 1);
}

const outgoing = request(url, { method: 'POST', agent: false }, (response) => {
  servedBy = response.headers['x-served-by'];
  const ticker = setInterval(() => print({ progress: bytes }), 100);
  response.on('data', (chunk) => {
    const now = performance.now();
    if (lastDataAt > 0 && now - lastDataAt > longestStallMs) {
      longestStallMs = now - lastDataAt;
      stallAt = wallMs();
    }
    lastDataAt = now;
    hash.update(chunk);
    bytes += chunk.length;
  });
  response.on('error', (error) => finish({ error: error.code ?? error.message }));
  response.on('end', () => {
    clearInterval(ticker);
    const sentBytes = Number(response.trailers['x-bytes'] ?? -1);
    finish({ sentBytes, intact: response.trailers['x-sha256'] === hash.digest('hex') && sentBytes === bytes });
  });
});
outgoing.on('error', (error) => finish({ error: error.code ?? error.message }));
outgoing.flushHeaders();
process.stdin.on('end', () => outgoing.end());
process.stdin.resume();
