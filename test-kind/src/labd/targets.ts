/** What `kill`, `start`, `pause` and `resume` mean by `eu/agent/n1` or `eu/pod/default/shop-*`. Pure. */
import { MeshError } from '@clustermesh/contract';

/** "*" stands for any part of a name between two "/". Every pattern has to mean something, before anything is done to any. */
export function chooseTargets<T extends { readonly name: string }>(
  all: readonly T[],
  patterns: readonly string[],
  attempted: string,
): T[] {
  const chosen = new Set<T>();
  for (const pattern of patterns) {
    const literals = pattern.split('*').map((part) => part.replace(/[.+?^${}()|[\]\\]/g, '\\$&'));
    const regex = new RegExp(`^${literals.join('[^/]*')}$`);
    const found = all.filter(({ name }) => regex.test(name));
    if (found.length === 0) {
      throw new MeshError({
        code: 'not-found',
        message: `${attempted}: there is nothing named ${pattern}`,
        hint: `there are: ${all.map(({ name }) => name).join(', ')}`,
      });
    }
    for (const target of found) chosen.add(target);
  }
  return [...chosen];
}
