import { MeshError } from '@clustermesh/contract';
import { sizeOf } from './row-index.ts';
import type { ReflectorOptions } from './types.ts';

type Limited = Pick<ReflectorOptions, 'etcd' | 'prefix' | 'limits'>;

/** Ends a session; the next one is not begun before what is there fits again. */
export class OverLimit extends MeshError {
  constructor(message: string) {
    super({ code: 'exhausted', message, hint: 'raise the limit, or find out why there is so much' });
  }
}

/** Throws OverLimit when there is more than is allowed. */
export function checkLimits({ prefix, limits }: Limited, keys: number, bytes: number): void {
  const { maxKeys, maxBytes } = limits ?? {};
  const over =
    maxKeys !== undefined && keys > maxKeys
      ? `${maxKeys} keys`
      : maxBytes !== undefined && bytes > maxBytes
        ? `${maxBytes} bytes`
        : undefined;
  if (over === undefined) return;
  throw new OverLimit(
    `reading ${prefix}: there are more than the ${over} allowed; what was applied stays, the rest is not taken in`,
  );
}

/** Looks, without taking anything in, whether what is there fits. */
export async function measure(limited: Limited, session: AbortSignal): Promise<void> {
  const { etcd, prefix, limits } = limited;
  if (limits?.maxKeys !== undefined) checkLimits(limited, await etcd.count(prefix, { signal: session }), 0);
  if (limits?.maxBytes === undefined) return;
  let bytes = 0;
  for await (const page of etcd.pages(prefix, { signal: session })) {
    bytes += page.kvs.reduce((sum, kv) => sum + sizeOf(kv), 0);
    checkLimits(limited, 0, bytes);
  }
}
