/** An etcd client whose requests are timed. Pure wiring: what becomes of the observations is the caller's business. */
import type { Etcd, TxnRequest } from './types.ts';

export interface Operation {
  readonly key: string;
  readonly kind: 'read' | 'set' | 'delete';
  readonly action: string;
  readonly seconds: number;
  readonly ok: boolean;
}

export type Observe = (operation: Operation) => void;

type Described = Pick<Operation, 'key' | 'kind' | 'action'>;

function describeTxn({ success }: TxnRequest): Described {
  const action = 'Txn';
  for (const operation of success) if ('put' in operation) return { key: operation.put, kind: 'set', action };
  for (const operation of success) {
    if ('delete' in operation) return { key: operation.delete, kind: 'delete', action };
    if ('deletePrefix' in operation) return { key: operation.deletePrefix, kind: 'delete', action };
    if ('get' in operation) return { key: operation.get, kind: 'read', action };
  }
  return { key: '', kind: 'read', action };
}

export function observedEtcd(etcd: Etcd, observe: Observe, nowMs: () => number): Etcd {
  const timed = async <T>(described: Described, run: () => Promise<T>): Promise<T> => {
    const startedAt = nowMs();
    let ok = false;
    try {
      const result = await run();
      ok = true;
      return result;
    } finally {
      observe({ ...described, seconds: (nowMs() - startedAt) / 1000, ok });
    }
  };
  const observed: Partial<Etcd> = {
    get: (key, options) => timed({ key, kind: 'read', action: 'Get' }, () => etcd.get(key, options)),
    range: (key, options) => timed({ key, kind: 'read', action: 'ListPrefix' }, () => etcd.range(key, options)),
    count: (key, options) => timed({ key, kind: 'read', action: 'CountPrefix' }, () => etcd.count(key, options)),
    put: (key, value, options) => timed({ key, kind: 'set', action: 'Update' }, () => etcd.put(key, value, options)),
    delete: (key, options) => timed({ key, kind: 'delete', action: 'Delete' }, () => etcd.delete(key, options)),
    deletePrefix: (key, options) =>
      timed({ key, kind: 'delete', action: 'DeletePrefix' }, () => etcd.deletePrefix(key, options)),
    txn: (request, options) => timed(describeTxn(request), () => etcd.txn(request, options)),
    async *pages(key, options) {
      const pages = etcd.pages(key, options);
      try {
        for (;;) {
          const { value, done } = await timed({ key, kind: 'read', action: 'ListPrefix' }, () => pages.next());
          if (done === true || value === undefined) return;
          yield value;
        }
      } finally {
        await pages.return();
      }
    },
  };
  return Object.create(etcd, Object.getOwnPropertyDescriptors(observed)) as Etcd;
}

/** A label for a key, as Cilium's: `<resource>/<version>` of data, else the part that says what it is. Few values, whatever the keys. */
export function scopeOf(key: string): string {
  const [base, second, resource, version] = key.split('/');
  if (second === undefined || second === '') return 'other';
  if (base !== 'cilium') return `${base}/${second}`;
  if (second !== 'state' && second !== 'cache') return second.replace(/^\./, '');
  return resource && version ? `${resource}/${version}` : 'other';
}
