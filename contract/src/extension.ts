import { z } from 'zod';
import { MAX_WEIGHT } from './annotations.ts';

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
  /**
   * Of a service: since when this value is an old one, because the present one is larger than etcd takes. All backends are in the
   * endpoint slices, if there are any.
   */
  outgrownAt: z.string().optional(),
  /**
   * Of a service: the weight of each backend, by address, that has another than the default. What is no weight is not worth the
   * service: the field then counts as absent.
   */
  weights: z.record(z.string(), z.number().int().min(0).max(MAX_WEIGHT)).optional().catch(undefined),
});
