/** Rows of the report from what was compared. */
import type { Figure } from '../report.ts';
import type { Compared } from './pairs.ts';

/** Rounds swing: a row that only has to be as good as another is met from here. */
const AS_GOOD = 0.97;

export const atMost = (name: string, unit: string, compared: Compared, limit: number): Figure => ({
  name,
  unit,
  ...compared,
  aim: `≤ ${limit.toFixed(2)} ×`,
  ok: compared.ratio <= limit,
});

export const atLeast = (name: string, unit: string, compared: Compared, limit: number): Figure => ({
  name,
  unit,
  ...compared,
  aim: `≥ ${limit.toFixed(2)} ×`,
  ok: compared.ratio >= (limit === 1 ? AS_GOOD : limit),
});

/** For information. */
export const beside = (name: string, unit: string, compared: Compared): Figure => ({ name, unit, ...compared });
