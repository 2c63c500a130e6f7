// The demonstration's shop: answers every request with who served it. Also the source of the transfer that a restart of the
// agent must not disturb.
//
//   GET  /                 {"cluster": "eu", "pod": "shop-0", "node": "n1"}
//   POST /stream?rate=B    deterministic bytes at B bytes per second until the request ends; then, as trailers, how many
//                          they were and their SHA-256
import { createHash } from 'node:crypto';
import { createServer } from 'node:http';
import { setTimeout as sleep } from 'node:timers/promises';

const port = Number(process.env.PORT ?? 8080);
const who = { cluster: process.env.CLUSTER_NAME, pod: process.env.POD_NAME, node: process.env.NODE_NAME };
const answer = JSON.stringify(who);

const CHUNK = 64 * 1024;
/** Numbered per chunk below, so that a lost or doubled piece shows in the sum. */
const pattern = Buffer.alloc(CHUNK);
for (let i = 0; i < CHUNK; i += 4) pattern.writeUInt32BE(Math.imul(i + 1, 2654435761) >>> 0, i);

/** Paced by the clock, not by sleeping a fixed time per chunk: what a slow tick missed is made up for in the next. */
async function stream(request, response, rate) {
  const hash = createHash('sha256');
  let ended = false;
  request.on('end', () => {
    ended = true;
  });
  request.resume();
  response.writeHead(200, {
    'content-type': 'application/octet-stream',
    trailer: 'x-bytes, x-sha256',
    'x-served-by': answer,
  });
  const startedAt = performance.now();
  let sent = 0;
  let sequence = 0;
  while (!ended && !response.destroyed) {
    const due = ((performance.now() - startedAt) / 1000) * rate;
    while (sent < due && !ended && !response.destroyed) {
      const chunk = Buffer.from(pattern);
      chunk.writeUInt32BE(sequence++, 0);
      hash.update(chunk);
      sent += chunk.length;
      if (!response.write(chunk)) {
        await new Promise((resolve) => {
          response.once('drain', resolve);
          response.once('close', resolve);
        });
      }
    }
    await sleep(2);
  }
  response.addTrailers({ 'x-bytes': String(sent), 'x-sha256': hash.digest('hex') });
  response.end();
}

const server = createServer((request, response) => {
  const url = new URL(request.url ?? '/', 'http://shop');
  if (url.pathname === '/stream') {
    stream(request, response, Number(url.searchParams.get('rate') ?? 20e6)).catch(() => response.destroy());
    return;
  }
  // One request per connection: each one is a fresh choice of backend.
  response.writeHead(200, { 'content-type': 'application/json', connection: 'close' }).end(`${answer}\n`);
});
server.listen(port);
process.on('SIGTERM', () => {
  server.close(() => process.exit(0));
  server.closeIdleConnections();
});
