import { connect, createServer, type Socket } from 'node:net';

export interface TcpProxy {
  readonly port: number;
  /** Where new connections go. */
  target: { host: string; port: number };
  /** Ends all connections and refuses new ones. */
  cut(): void;
  /** Keeps connections open and accepts new ones, but nothing gets through in either direction any more. */
  blackhole(): void;
  /**
   * Every chunk arrives later: by `delayMs`, and by `stallMs` more where a packet would have been lost, with that probability (TCP
   * waits for the retransmission, and so does all that is behind it). 0 ends it.
   */
  slow(options: { readonly delayMs: number; readonly loss?: number; readonly stallMs?: number }): void;
  /** Back to normal. Connections that went through a black hole are ended: their bytes are lost. */
  heal(): void;
  /** Connections open now. */
  readonly connections: number;
  close(): Promise<void>;
}

/** A TCP proxy on a loopback port that can be made to fail in the two ways that networks fail. */
export async function startProxy(target: { host: string; port: number }): Promise<TcpProxy> {
  const pairs = new Set<{ near: Socket; far: Socket | undefined }>();
  let mode: 'open' | 'cut' | 'blackhole' = 'open';
  let slow = { delayMs: 0, loss: 0, stallMs: 0 };

  /** In order: what comes later must not overtake what was held up. */
  const forward = (to: Socket) => {
    let lastAt = 0;
    return (data: Buffer) => {
      if (mode !== 'open') return;
      const stall = Math.random() < slow.loss ? slow.stallMs : 0;
      const now = performance.now();
      const at = Math.max(lastAt, now + slow.delayMs + stall);
      if (at <= now) return void to.write(data);
      lastAt = at;
      setTimeout(() => mode === 'open' && !to.destroyed && to.write(data), at - now);
    };
  };

  const endAll = () => {
    for (const { near, far } of pairs) {
      near.destroy();
      far?.destroy();
    }
    pairs.clear();
  };

  const server = createServer((near) => {
    near.on('error', () => {});
    if (mode === 'cut') return near.destroy();
    const pair: { near: Socket; far: Socket | undefined } = { near, far: undefined };
    pairs.add(pair);
    near.on('close', () => {
      pair.far?.destroy();
      pairs.delete(pair);
    });
    if (mode === 'blackhole') return near.resume();
    const far = connect(proxy.target);
    pair.far = far;
    far.on('error', () => near.destroy());
    far.on('close', () => mode !== 'blackhole' && near.destroy());
    near.on('data', forward(far));
    far.on('data', forward(near));
    return undefined;
  });
  await new Promise<void>((resolve, reject) => {
    server.once('error', reject);
    server.listen(0, '127.0.0.1', resolve);
  });

  const proxy: TcpProxy = {
    port: (server.address() as { port: number }).port,
    target,
    cut() {
      mode = 'cut';
      endAll();
    },
    blackhole() {
      mode = 'blackhole';
    },
    slow({ delayMs, loss = 0, stallMs = 0 }) {
      slow = { delayMs, loss, stallMs };
    },
    heal() {
      slow = { delayMs: 0, loss: 0, stallMs: 0 };
      if (mode === 'blackhole') endAll();
      mode = 'open';
    },
    get connections() {
      return pairs.size;
    },
    async close() {
      endAll();
      await new Promise((resolve) => server.close(resolve));
    },
  };
  return proxy;
}
