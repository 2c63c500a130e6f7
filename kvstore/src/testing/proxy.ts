import { connect, createServer, type Socket } from 'node:net';

export interface SlowLink {
  readonly delayMs?: number;
  readonly loss?: number;
  readonly stallMs?: number;
  readonly bytesPerSecond?: number;
}

export interface TcpProxy {
  readonly port: number;
  /** Where new connections go. */
  target: { host: string; port: number };
  /** Ends all connections and refuses new ones. */
  cut(): void;
  /** Keeps connections open and accepts new ones, but nothing gets through in either direction any more. */
  blackhole(): void;
  /** Takes nothing off the connections there are, so that who sends is held up; nothing is lost. */
  hold(): void;
  /**
   * Every chunk arrives later: by `delayMs`, and by `stallMs` more where a packet would have been lost, with that probability (TCP
   * waits for the retransmission, and so does all that is behind it). `bytesPerSecond` bounds each direction of a connection.
   */
  slow(options: SlowLink): void;
  /** Back to normal. Connections that went through a black hole are ended: their bytes are lost. */
  heal(): void;
  /** Connections open now. */
  readonly connections: number;
  close(): Promise<void>;
}

const FAST = { delayMs: 0, loss: 0, stallMs: 0, bytesPerSecond: Number.POSITIVE_INFINITY };

/** A TCP proxy on a loopback port that can be made to fail in the two ways that networks fail. */
export async function startProxy(target: { host: string; port: number }): Promise<TcpProxy> {
  const pairs = new Set<{ near: Socket; far: Socket | undefined }>();
  let mode: 'open' | 'cut' | 'blackhole' = 'open';
  let slow: Required<SlowLink> = FAST;

  /** In order: what comes later must not overtake what was held up. */
  const forward = (to: Socket) => {
    const queue: { readonly at: number; readonly data: Buffer }[] = [];
    let lastAt = 0;
    let timer: NodeJS.Timeout | undefined;
    const flush = () => {
      timer = undefined;
      const now = performance.now();
      while (queue.length > 0 && queue[0]!.at <= now) {
        const { data } = queue.shift()!;
        if (mode === 'open' && !to.destroyed) to.write(data);
      }
      if (queue.length > 0) timer = setTimeout(flush, Math.ceil(queue[0]!.at - now));
    };
    return (data: Buffer) => {
      if (mode !== 'open') return;
      const stall = Math.random() < slow.loss ? slow.stallMs : 0;
      const now = performance.now();
      lastAt = Math.max(lastAt, now + slow.delayMs + stall) + (data.length / slow.bytesPerSecond) * 1000;
      queue.push({ at: lastAt, data });
      if (timer === undefined) flush();
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
    hold() {
      for (const { near, far } of pairs) {
        near.pause();
        far?.pause();
      }
    },
    slow(options) {
      slow = { ...FAST, ...options };
    },
    heal() {
      slow = FAST;
      if (mode === 'blackhole') endAll();
      mode = 'open';
      for (const { near, far } of pairs) {
        near.resume();
        far?.resume();
      }
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
