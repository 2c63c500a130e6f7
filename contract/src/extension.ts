import { z } from 'zod';

/**
 * The one object that we add to Cilium's JSON values; its readers ignore it. Absent means "the peer is plain Cilium".
 * It is left out of the comparison that decides whether a value is written again (wire-contract, top).
 */
export const EXTENSION_FIELD = 'x-clustermesh';

export const extensionSchema = z.looseObject({
  region: z.string().optional(),
  zone: z.string().optional(),
  /** Wall-clock time of the last semantic change, RFC3339. */
  changedAt: z.string().optional(),
});
