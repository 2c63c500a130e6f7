// Asks, from a node's namespace, which pods' ports answer: one TCP connection per target and interval.
//
//   stdin   one JSON array per line: the complete list of targets [{"key": "…", "ip": "10.1.1.2", "ports": [8080]}]
//   stdout  one JSON object per change: {"key": "…", "ready": true} or {"key": "…", "ready": false, "reason": "…"}
//
// Ends when stdin does. Plain JavaScript on node's own modules: it starts in 40 ms, and there is one per node.
import { connect } from 'node:net';
import { createInterface } from 'node:readline';

/** A port that was ready is asked less often than one that is awaited. */
const READY_INTERVAL_MS = 250;
const AWAITED_INTERVAL_MS = 100;
const TIMEOUT_MS = 1000;
/** A busy machine may delay an answer; only a refusal counts at once. */
const TIMEOUTS_ALLOWED = 2;

/** @type {Map<string, { key: string, ip: string, ports: number[], ready: boolean | undefined, reason: string, timeouts: number, timer: NodeJS.Timeout | undefined }>} */
const targets = new Map();

/** Resolves to undefined when the port answers, otherwise to the reason. */
function probe(ip, port) {
  return new Promise((resolve) => {
    const socket = connect({ host: ip, port });
    const end = (reason) => {
      socket.destroy();
      resolve(reason);
    };
    socket.setTimeout(TIMEOUT_MS, () => end('timeout'));
    socket.on('connect', () => end(undefined));
    socket.on('error', (error) => end(error.code ?? error.message));
  });
}

async function probeTarget(target) {
  const reasons = await Promise.all(target.ports.map(async (port) => [port, await probe(target.ip, port)]));
  if (targets.get(target.key) !== target) return;
  const failed = reasons.find(([, reason]) => reason !== undefined);
  target.timeouts = failed?.[1] === 'timeout' ? target.timeouts + 1 : 0;
  const ready =
    failed === undefined || (target.ready === true && target.timeouts > 0 && target.timeouts < TIMEOUTS_ALLOWED);
  const reason = failed === undefined || ready ? '' : `port ${failed[0]}: ${failed[1]}`;
  if (ready !== target.ready || reason !== target.reason)
    process.stdout.write(`${JSON.stringify({ key: target.key, ready, reason })}\n`);
  target.ready = ready;
  target.reason = reason;
  target.timer = setTimeout(probeTarget, ready ? READY_INTERVAL_MS : AWAITED_INTERVAL_MS, target);
}

function setTargets(wanted) {
  const keys = new Set(wanted.map((target) => target.key));
  for (const [key, target] of targets) {
    if (keys.has(key)) continue;
    clearTimeout(target.timer);
    targets.delete(key);
  }
  for (const { key, ip, ports } of wanted) {
    if (targets.has(key)) continue;
    const target = { key, ip, ports, ready: undefined, reason: '', timeouts: 0, timer: undefined };
    targets.set(key, target);
    void probeTarget(target);
  }
}

createInterface({ input: process.stdin })
  .on('line', (line) => setTargets(JSON.parse(line)))
  .on('close', () => process.exit(0));
