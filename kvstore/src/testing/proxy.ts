import { connect, createServer, type Socket } from 'node:net';

export interface TcpProxy {
  readonly port: number;
  /** Where new connections go. */
  target: { host: string; port: number };
  /** Ends all connections and refuses new ones. */
  cut(): void;
  /** Keeps connections open and accepts new ones, but nothing gets through in either direction any more. */
  blackhole(): void;
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
    near.on('data', (data) => mode === 'open' && far.write(data));
    far.on('data', (data) => mode === 'open' && near.write(data));
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
    heal() {
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
