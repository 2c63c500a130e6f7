/**
 * Which backends services have let go, until the sockets that were led to them are gone: see socket-destroyer.ts. A service's swap tells
 * of both sides: `naming` before its row is in force, `letGo` after. So no socket that may be here can be younger than what is noted.
 */
import type { CmServiceKey, CmWithdrawnKey } from '@clustermesh/bpf';
import { toProtocol, toScope } from './rows.ts';
import type { Programmed } from './services-kernel.ts';
import { backendsOf } from './slots.ts';

export interface Withdrawal {
  readonly key: CmWithdrawnKey;
  readonly backendId: number;
}

/** What a service's row names, or did. */
export type Named = Pick<Programmed, 'kernelKey' | 'row' | 'backends'>;

export interface SwapObserver {
  /** This is about to be in force. */
  naming(after: Named): void;
  /** It is, or, undefined, nothing is any more. */
  letGo(before: Named, after: Named | undefined): void;
}

/** Sockets that are translated when they connect; what others have, packets say: lib/lb.h. */
const PROTOCOLS: ReadonlySet<number> = new Set([toProtocol('TCP'), toProtocol('UDP')]);

const hasSockets = ({ scope, proto }: CmServiceKey): boolean => scope === toScope(undefined) && PROTOCOLS.has(proto);

const nameOf = ({ service, addr, port }: CmWithdrawnKey): string =>
  `${service.addr}/${service.port}/${service.proto} ${addr}/${port}`;

const keyOf = (service: CmServiceKey, { ip, port }: { ip: string; port: number }): CmWithdrawnKey => ({
  service,
  addr: ip,
  port,
});

export interface Withdrawals extends SwapObserver {
  note(withdrawal: Withdrawal): void;
  readonly size: number;
  /** The oldest, which are then under way until `done`. */
  take(most: number): Withdrawal[];
  isUnderWay(withdrawal: Withdrawal): boolean;
  /** Nothing is under way any more. `again`: those that still were wait once more. */
  done(again: boolean): void;
  clear(): void;
}

/**
 * `onNoted`: there is something to do. `forget`: what is under way is not to be done, from this moment on. Beyond `most` that wait,
 * `onLost` is told of one that does not.
 */
export function createWithdrawals({
  most,
  onNoted,
  onLost,
  forget,
}: {
  readonly most: number;
  readonly onNoted: () => void;
  readonly onLost: () => void;
  readonly forget: (withdrawal: Withdrawal) => void;
}): Withdrawals {
  const waiting = new Map<string, Withdrawal>();
  const underWay = new Map<string, Withdrawal>();

  function note(withdrawal: Withdrawal): void {
    if (waiting.size >= most) {
      onLost();
      return;
    }
    waiting.set(nameOf(withdrawal.key), withdrawal);
    onNoted();
  }

  return {
    note,
    naming({ kernelKey, row }) {
      if (waiting.size + underWay.size === 0 || !hasSockets(kernelKey)) return;
      for (const backend of backendsOf(row)) {
        const name = nameOf(keyOf(kernelKey, backend));
        waiting.delete(name);
        const doing = underWay.get(name);
        if (doing === undefined) continue;
        underWay.delete(name);
        forget(doing);
      }
    },
    letGo(before, after) {
      if (!hasSockets(before.kernelKey)) return;
      const ids = new Set(after?.backends);
      const gone = before.backends.flatMap((id, i) => (ids.has(id) ? [] : [{ id, ...backendsOf(before.row)[i]! }]));
      if (gone.length === 0) return;
      // By address: what is named under another id (of another cluster) is still named.
      const kept = new Set(after === undefined ? [] : backendsOf(after.row).map(({ ip, port }) => `${ip}/${port}`));
      for (const { id, ip, port } of gone)
        if (!kept.has(`${ip}/${port}`)) note({ key: keyOf(before.kernelKey, { ip, port }), backendId: id });
    },
    get size() {
      return waiting.size;
    },
    take(most) {
      const taken: Withdrawal[] = [];
      for (const [name, withdrawal] of waiting) {
        if (taken.length === most) break;
        taken.push(withdrawal);
        waiting.delete(name);
        underWay.set(name, withdrawal);
      }
      return taken;
    },
    isUnderWay: ({ key }) => underWay.has(nameOf(key)),
    done(again) {
      if (again) for (const [name, withdrawal] of underWay) waiting.set(name, withdrawal);
      underWay.clear();
    },
    clear() {
      waiting.clear();
      underWay.clear();
    },
  };
}
