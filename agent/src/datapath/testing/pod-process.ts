/** Sockets inside a pod: servers that say who they are, clients that tell what they saw. */
import { createHash, randomBytes } from 'node:crypto';
import dgram from 'node:dgram';
import { once } from 'node:events';
import net from 'node:net';
import { setTimeout as sleep } from 'node:timers/promises';
import { serve } from './remote.ts';

export interface Ask {
  ip: string;
  port: number;
  timeoutMs?: number;
  /** UDP: connect() first, so that errors come back. */
  connected?: boolean;
  /** UDP: an IPv6 socket, also for an IPv4 address (given as ::ffff:a.b.c.d). Default: of the family of `ip`. */
  family?: 4 | 6;
}

/** What a client saw: an answer and whom it believes to talk to, or an error code; and after how long. */
export interface Seen {
  answer?: string;
  peer?: string;
  error?: string;
  ms: number;
}

async function timed(body: () => Promise<{ answer: string; peer: string }>): Promise<Seen> {
  const start = performance.now();
  const ms = () => performance.now() - start;
  try {
    const seen = await body();
    return { ...seen, ms: ms() };
  } catch (error) {
    return { error: (error as NodeJS.ErrnoException).code ?? String(error), ms: ms() };
  }
}

const timeout = (ms: number) => AbortSignal.timeout(ms);

function tcpAsk({ ip, port, timeoutMs = 2000 }: Ask): Promise<Seen> {
  return timed(async () => {
    const socket = net.connect({ host: ip, port });
    try {
      socket.setTimeout(timeoutMs, () => socket.destroy(Object.assign(new Error(), { code: 'TIMEOUT' })));
      await once(socket, 'connect');
      const peer = `${socket.remoteAddress}:${socket.remotePort}`;
      let answer = '';
      for await (const part of socket) answer += part;
      return { answer, peer };
    } finally {
      socket.destroy();
    }
  });
}

function udpAsk({ ip, port, connected, timeoutMs = 2000, family = net.isIPv6(ip) ? 6 : 4 }: Ask): Promise<Seen> {
  return timed(async () => {
    const socket = dgram.createSocket(family === 6 ? 'udp6' : 'udp4');
    try {
      const answered = once(socket, 'message', { signal: timeout(timeoutMs) });
      answered.catch(() => undefined);
      if (connected) {
        socket.connect(port, ip);
        await once(socket, 'connect');
        const peer = socket.remoteAddress();
        socket.send('hello');
        const [message] = (await answered) as [Buffer];
        return { answer: message.toString(), peer: `${peer.address}:${peer.port}` };
      }
      await new Promise<void>((resolve, reject) =>
        socket.send('hello', port, ip, (error) => (error ? reject(error) : resolve())),
      );
      const [message, from] = (await answered) as [Buffer, dgram.RemoteInfo];
      return { answer: message.toString(), peer: `${from.address}:${from.port}` };
    } finally {
      socket.close();
    }
  });
}

/** Connections and connected UDP sockets by the name that the test gives them. */
const held = new Map<string, { say(text: string): void; heard: string; error: string | undefined }>();

async function holdTcp(name: string, { ip, port }: Ask): Promise<void> {
  const socket = net.connect({ host: ip, port });
  await once(socket, 'connect', { signal: timeout(5000) });
  const one = { say: (text: string) => void socket.write(text), heard: '', error: undefined as string | undefined };
  socket.on('data', (part) => {
    one.heard += part;
  });
  socket.on('error', (error: NodeJS.ErrnoException) => {
    one.error ??= error.code ?? String(error);
  });
  socket.on('close', () => {
    one.error ??= 'closed';
  });
  held.set(name, one);
}

async function holdUdp(name: string, { ip, port }: Ask): Promise<void> {
  const socket = dgram.createSocket(net.isIPv6(ip) ? 'udp6' : 'udp4');
  socket.connect(port, ip);
  await once(socket, 'connect', { signal: timeout(5000) });
  const one = { say: (text: string) => socket.send(text), heard: '', error: undefined as string | undefined };
  socket.on('message', (part) => {
    one.heard += part;
  });
  socket.on('error', (error: NodeJS.ErrnoException) => {
    one.error ??= error.code ?? String(error);
  });
  held.set(name, one);
}

const servers = new Map<number, { closed: Promise<Received> }>();
let opened: net.Socket | undefined;

export interface Received {
  bytes: number;
  sha256: string;
  longestGapMs: number;
}

serve({
  async tcpServe({ port, name, ip = '0.0.0.0' }: { port: number; name: string; ip?: string }) {
    const server = net.createServer((socket) => {
      socket.on('error', () => undefined);
      socket.end(`${name} ${socket.remoteAddress}`);
    });
    server.listen(port, ip);
    await once(server, 'listening');
  },

  async udpServe({ port, name, ip = '0.0.0.0' }: { port: number; name: string; ip?: string }) {
    const socket = dgram.createSocket(net.isIPv6(ip) ? 'udp6' : 'udp4');
    socket.on('message', (_, from) => socket.send(`${name} ${from.address}`, from.port, from.address));
    socket.bind(port, ip);
    await once(socket, 'listening');
  },

  tcpAsk,
  udpAsk,

  /** A server that says back what it is told, and never ends a connection. */
  async tcpHold({ port, ip }: { port: number; ip: string }) {
    const server = net.createServer((socket) => {
      socket.on('error', () => undefined);
      socket.pipe(socket);
    });
    server.listen(port, ip);
    await once(server, 'listening');
  },

  /** Opens a connection for tcpSay(). */
  async tcpOpen({ ip, port }: Ask) {
    opened = net.connect({ host: ip, port });
    await once(opened, 'connect', { signal: timeout(5000) });
  },

  /** What is said back, or an error code. */
  async tcpSay({ text }: { text: string }) {
    opened!.write(text);
    try {
      const [answer] = (await once(opened!, 'data', { signal: timeout(10_000) })) as [Buffer];
      return answer.toString();
    } catch (error) {
      return (error as NodeJS.ErrnoException).code ?? String(error);
    }
  },

  /** Opens a connection, or a connected UDP socket, that is then left alone. */
  hold: ({ name, protocol, ...ask }: Ask & { name: string; protocol: 'TCP' | 'UDP' }) =>
    protocol === 'TCP' ? holdTcp(name, ask) : holdUdp(name, ask),
  say: ({ name, text }: { name: string; text: string }) => held.get(name)!.say(text),
  /** What became of it, without touching it. `error`: its reader was told. */
  held: ({ name }: { name: string }) => ({ heard: held.get(name)!.heard, error: held.get(name)!.error ?? null }),

  /** A server of datagrams that says back what it is told. */
  async udpEcho({ port, ip }: { port: number; ip: string }) {
    const socket = dgram.createSocket(net.isIPv6(ip) ? 'udp6' : 'udp4');
    socket.on('message', (message, from) => socket.send(message, from.port, from.address));
    socket.bind(port, ip);
    await once(socket, 'listening');
  },

  /** Who answers `n` datagrams of one unconnected socket. */
  async udpAskOften({ ip, port, n }: Ask & { n: number }) {
    const socket = dgram.createSocket(net.isIPv6(ip) ? 'udp6' : 'udp4');
    const from: string[] = [];
    try {
      for (let i = 0; i < n; i++) {
        const answered = once(socket, 'message', { signal: timeout(2000) });
        socket.send('hello', port, ip);
        const [message] = (await answered) as [Buffer];
        from.push(message.toString().split(' ')[0]!);
      }
    } finally {
      socket.close();
    }
    return { from };
  },

  /** Which backends answered `n` connections, and how often. */
  async tcpSpread({ n, ...ask }: Ask & { n: number }) {
    const hits: Record<string, number> = {};
    for (let i = 0; i < n; i++) {
      const { answer, error } = await tcpAsk(ask);
      const who = answer?.split(' ')[0] ?? error ?? '';
      hits[who] = (hits[who] ?? 0) + 1;
    }
    return hits;
  },

  /** Receives one connection; `received` tells what came. */
  async sink({ port, ip = '0.0.0.0' }: { port: number; ip?: string }) {
    const server = net.createServer();
    server.listen(port, ip);
    await once(server, 'listening');
    const closed = (async () => {
      const [socket] = (await once(server, 'connection')) as [net.Socket];
      server.close();
      const hash = createHash('sha256');
      let [bytes, longestGapMs, last] = [0, 0, performance.now()];
      for await (const part of socket as AsyncIterable<Buffer>) {
        const now = performance.now();
        longestGapMs = Math.max(longestGapMs, now - last);
        last = now;
        bytes += part.length;
        hash.update(part);
      }
      return { bytes, sha256: hash.digest('hex'), longestGapMs };
    })();
    closed.catch(() => undefined);
    servers.set(port, { closed });
  },
  received: ({ port }: { port: number }) => servers.get(port)!.closed,

  /** Sends random bytes at the given rate for so long. */
  async pump({ ip, port, ms, bytesPerSecond }: { ip: string; port: number; ms: number; bytesPerSecond: number }) {
    const socket = net.connect({ host: ip, port });
    const patience = { signal: timeout(ms + 5000) };
    await once(socket, 'connect', patience);
    const hash = createHash('sha256');
    const tickMs = 10;
    let bytes = 0;
    const start = performance.now();
    while (performance.now() - start < ms) {
      const due = ((performance.now() - start + tickMs) / 1000) * bytesPerSecond - bytes;
      if (due > 0) {
        const part = randomBytes(Math.ceil(due));
        hash.update(part);
        bytes += part.length;
        if (!socket.write(part)) await once(socket, 'drain', patience);
      }
      await sleep(tickMs);
    }
    socket.end();
    await once(socket, 'finish', patience);
    return { bytes, sha256: hash.digest('hex') };
  },
});
