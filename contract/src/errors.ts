/**
 * The one error type of the project. A message reads: what was attempted, on what, why it failed.
 * `code` is stable (scripts may match on it), `hint` says what to do, `retryable` tells loops whether trying again can help.
 */
export const ERROR_CODES = [
  'invalid-argument',
  'invalid-config',
  'invalid-manifest',
  'invalid-object',
  'not-found',
  'already-exists',
  'conflict',
  'unreachable',
  'timeout',
  'permission-denied',
  'unauthenticated',
  'etcd-unreachable',
  'etcd-auth',
  'etcd-permission',
  'etcd-compacted',
  'etcd-timeout',
  'etcd-too-large',
  'redis-unreachable',
  'tls',
  'exhausted',
  'map-full',
  'map-layout',
  'kernel',
  'unsupported',
  'cancelled',
  'locked',
  'internal',
] as const;

export type ErrorCode = (typeof ERROR_CODES)[number];

export interface MeshErrorInit {
  readonly code: ErrorCode;
  readonly message: string;
  /** What the reader can do about it, one sentence. */
  readonly hint?: string | undefined;
  readonly cause?: unknown;
  readonly retryable?: boolean | undefined;
}

const RETRYABLE: ReadonlySet<ErrorCode> = new Set([
  'unreachable',
  'timeout',
  'etcd-unreachable',
  'etcd-timeout',
  'etcd-compacted',
  'redis-unreachable',
]);

export class MeshError extends Error {
  readonly code: ErrorCode;
  readonly hint: string | undefined;
  readonly retryable: boolean;

  constructor(init: MeshErrorInit) {
    super(init.message, init.cause === undefined ? undefined : { cause: init.cause });
    this.name = 'MeshError';
    this.code = init.code;
    this.hint = init.hint;
    this.retryable = init.retryable ?? RETRYABLE.has(init.code);
  }

  /** Wraps anything thrown; a MeshError passes through unchanged. */
  static from(error: unknown, attempted: string, code: ErrorCode = 'internal'): MeshError {
    if (error instanceof MeshError) return error;
    const why = error instanceof Error ? error.message : String(error);
    return new MeshError({ code, message: `${attempted}: ${why}`, cause: error });
  }
}

export function isErrorCode(value: string): value is ErrorCode {
  return (ERROR_CODES as readonly string[]).includes(value);
}

/** The message of anything thrown, for logs and statuses. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
