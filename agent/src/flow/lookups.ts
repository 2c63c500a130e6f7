/** What the numbers of an event stand for on this node, now. */
import type { Clock } from '@clustermesh/runtime';
import type { Datapath } from '../datapath/types.ts';
import type { FlowLookups } from './flow-event.ts';

/** Service names are read from the kernel when an unknown id comes, at most so often. */
const SERVICES_MAX_AGE_MS = 2_000;

export function createLookups(
  datapath: Pick<Datapath, 'identityOf' | 'interfaceName' | 'dump'>,
  clock: Clock,
): FlowLookups {
  let services = new Map<number, string>();
  let readAtMs = Number.NEGATIVE_INFINITY;

  function refreshServices(): void {
    if (clock.nowMs() - readAtMs < SERVICES_MAX_AGE_MS) return;
    readAtMs = clock.nowMs();
    void datapath
      .dump('services')
      .then((rows) => {
        services = new Map((rows as { id: number; service: string }[]).map(({ id, service }) => [id, service]));
      })
      // The next unknown id asks again.
      .catch(() => undefined);
  }

  return {
    identityOf: datapath.identityOf,
    interfaceName: datapath.interfaceName,
    serviceName(id) {
      const name = services.get(id);
      if (name === undefined) refreshServices();
      return name ?? `service-${id}`;
    },
    wallMs(monotonicNs) {
      const agoMs = Number(process.hrtime.bigint() - monotonicNs) / 1e6;
      return clock.wallMs() - agoMs;
    },
  };
}
