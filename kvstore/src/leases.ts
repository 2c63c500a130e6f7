import { MeshError } from '@clustermesh/contract';
import { type Clock, type Log, systemClock } from '@clustermesh/runtime';
import type { Connection } from './connection.ts';
import { toMeshError } from './errors.ts';
import type { WireHeader } from './proto.ts';
import { childOf } from './signals.ts';
import type { CallOptions, Lease, LeaseRequest } from './types.ts';

interface GrantResponse {
  readonly header: WireHeader;
  readonly ID: string;
  readonly TTL: string;
}

export interface LeasePorts {
  acquire(): Promise<Connection>;
  call<Response extends { readonly header: WireHeader }>(
    method: string,
    request: object,
    attempted: string,
    options?: CallOptions,
  ): Promise<Response>;
  readonly log: Log;
  readonly clock?: Clock;
  readonly closed: AbortSignal;
}

const RETRY_MS = 500;

/** One ping over a stream of its own: rare enough (every third of the TTL), and nothing to keep alive in between. */
async function keepAliveOnce(ports: LeasePorts, id: string, timeoutMs: number): Promise<number> {
  const connection = await ports.acquire();
  const stream = connection.duplex<{ ID: string }, GrantResponse>('Lease.LeaseKeepAlive', true);
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => stream.cancel(), timeoutMs);
    stream.once('data', (response: GrantResponse) => {
      clearTimeout(timer);
      stream.end();
      connection.lastReceivedAt = (ports.clock ?? systemClock).nowMs();
      resolve(Number(response.TTL));
    });
    // Stays for good: an error after the answer must not become an uncaught one.
    stream.on('error', (error) => {
      clearTimeout(timer);
      reject(toMeshError(error, `keeping lease ${id} alive`));
    });
    // A server that stops may end the stream without an answer and without an error. Behind an answer this is nothing new.
    const ended = () => {
      clearTimeout(timer);
      const message = `keeping lease ${id} alive: etcd ended the stream without an answer`;
      reject(new MeshError({ code: 'etcd-unreachable', message, retryable: true }));
    };
    stream.once('end', ended);
    stream.once('close', ended);
    stream.write({ ID: id });
  });
}

/**
 * A lease that is kept until `close`. When etcd says that it is gone (expired while we were away, or etcd was rebuilt) a new one is
 * granted under the same handle and `onRegranted` tells the owner, whose keys are gone.
 */
export async function openLease(ports: LeasePorts, request: LeaseRequest, options?: CallOptions): Promise<Lease> {
  const clock = ports.clock ?? systemClock;
  const { ttlSeconds } = request;
  const grant = async (callOptions?: CallOptions) =>
    (
      await ports.call<GrantResponse>(
        'Lease.LeaseGrant',
        { TTL: ttlSeconds, ID: 0 },
        `granting a lease of ${ttlSeconds} s`,
        callOptions,
      )
    ).ID;
  const { controller: stop, release } = childOf(ports.closed);
  const { signal } = stop;
  let id = await grant(options);

  let renewing: Promise<void> | undefined;

  /** One at a time: two that find the lease gone would grant two. */
  const renew = () =>
    (renewing ??= renewOnce().finally(() => {
      renewing = undefined;
    }));

  async function renewOnce(): Promise<void> {
    const left = await keepAliveOnce(ports, id, (ttlSeconds * 1000) / 3);
    if (left > 0 || signal.aborted) return;
    ports.log.warn({ lease: id }, 'lease lost; granting another');
    id = await grant({ signal });
    request.onRegranted?.(id);
  }

  const loop = (async () => {
    while (!signal.aborted) {
      let delay = (ttlSeconds * 1000) / 3;
      try {
        await renew();
      } catch (error) {
        if (signal.aborted) return;
        const mesh = MeshError.from(error, `keeping lease ${id} alive`);
        ports.log.debug({ lease: id, err: mesh }, 'lease not renewed yet');
        delay = Math.min(delay, RETRY_MS);
      }
      await clock.sleep(delay, signal);
    }
  })();

  return {
    get id() {
      return id;
    },
    ttlSeconds,
    renew,
    async close(options = {}) {
      if (stop.signal.aborted) return;
      stop.abort();
      release();
      await loop;
      if (options.revoke === false) return;
      // Best effort: without an answer the lease ends by itself after its TTL.
      await ports.call('Lease.LeaseRevoke', { ID: id }, `revoking lease ${id}`, { timeoutMs: 1000 }).catch(() => {});
    },
  };
}
