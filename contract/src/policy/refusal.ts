/**
 * What becomes of a part that is not supported: never more traffic than without it. An allow rule then allows nothing (the default
 * deny that it brings stays), a deny rule denies its whole direction, and both are said.
 */
import type { PolicyDirection, PolicyRule } from './model.ts';

export type Effect = PolicyRule['effect'];

export interface Refusals {
  /** `path` as in `spec.ingress[0].toPorts[1].rules`. Undefined is returned for an allow rule: it is left out. */
  rule(direction: PolicyDirection, effect: Effect, path: string, why: string): PolicyRule | undefined;
  readonly sentences: readonly string[];
}

export function createRefusals(): Refusals {
  const sentences: string[] = [];
  return {
    rule(direction, effect, path, why) {
      const instead = effect === 'allow' ? 'the rule allows nothing' : `the rule denies all ${direction}`;
      sentences.push(`${path}: ${why}; ${instead}`);
      return effect === 'allow' ? undefined : { direction, effect, peers: [{ kind: 'all' }], layer4: null };
    },
    sentences,
  };
}

/** The first field of `object` that is set and none of `known`. */
export function unknownField(object: object, known: readonly string[]): string | undefined {
  return Object.entries(object).find(
    ([name, value]) => value !== undefined && value !== null && !known.includes(name),
  )?.[0];
}
