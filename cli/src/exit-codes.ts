import { MeshError } from '@clustermesh/contract';

/** Documented in docs/cli.md and in --help; scripts rely on them. */
export const EXIT = { ok: 0, failed: 1, usage: 2, notReady: 3, interrupted: 130 } as const;

export const EXIT_CODES_HELP = `Exit codes:
  0    done
  1    failed: refused, unreachable, or ended with an error
  2    wrong usage: unknown option, unknown or unsupported context
  3    not ready: the time given by --timeout or --wait-duration is over
  130  interrupted (what was started goes on in the clusters)`;

/** A mistake on the command line, or in what it names. */
export class UsageError extends MeshError {}

/** The time that --timeout or --wait-duration gave is over. A cluster's own time-outs are failures like any other. */
export class OutOfTime extends MeshError {
  constructor(init: { readonly message: string; readonly hint?: string | undefined }) {
    super({ code: 'timeout', ...init });
  }
}

export function exitCodeOf(error: unknown): number {
  if (error instanceof UsageError) return EXIT.usage;
  if (error instanceof OutOfTime) return EXIT.notReady;
  return EXIT.failed;
}
