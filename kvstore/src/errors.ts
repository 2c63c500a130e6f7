import { type ErrorCode, MeshError, messageOf } from '@clustermesh/contract';
import { status } from '@grpc/grpc-js';

interface GrpcError extends Error {
  readonly code: number;
  readonly details: string;
}

function isGrpcError(error: unknown): error is GrpcError {
  return error instanceof Error && typeof (error as { code?: unknown }).code === 'number' && 'details' in error;
}

/** etcd's own words for what went wrong, for the few places that must tell cases of one code apart. */
export function etcdDetails(error: unknown): string {
  const inner = error instanceof MeshError ? error.cause : error;
  return isGrpcError(inner) ? inner.details : messageOf(error);
}

const TLS_WORDS = /certificate|self[- ]signed|unable to verify|altname|SSL|TLS|EPROTO|alert/i;

interface Verdict {
  readonly code: ErrorCode;
  readonly hint?: string;
  readonly retryable?: boolean;
}

const HINTS = {
  unreachable: 'is etcd running, and is the endpoint reachable from here?',
  tls: 'compare CA, client certificate (expired? signed by the CA that etcd trusts?) and the names in the server certificate',
  permission:
    'the common name of the client certificate is the etcd user: does it exist and have a role that covers the key?',
  tooLarge: 'etcd takes 1.5 MiB in one request by default: split the object',
  space:
    "etcd's space quota is used up (NOSPACE alarm): compact, defragment and disarm the alarm, or raise --quota-backend-bytes",
};

function judge(code: number, details: string): Verdict {
  switch (code) {
    case status.UNAVAILABLE:
      if (/timed out/.test(details)) return { code: 'etcd-timeout' };
      if (TLS_WORDS.test(details)) return { code: 'tls', hint: HINTS.tls, retryable: true };
      return { code: 'etcd-unreachable', hint: HINTS.unreachable };
    case status.DEADLINE_EXCEEDED:
      return { code: 'etcd-timeout' };
    case status.PERMISSION_DENIED:
      return { code: 'etcd-permission', hint: HINTS.permission };
    case status.UNAUTHENTICATED:
      return { code: 'etcd-auth', hint: HINTS.permission };
    case status.OUT_OF_RANGE:
      // "compacted" and "future revision" mean the same to a reader: its cursor is void.
      return { code: 'etcd-compacted' };
    case status.RESOURCE_EXHAUSTED:
      if (/larger than max/.test(details)) return { code: 'etcd-too-large', hint: HINTS.tooLarge };
      if (/space exceeded/.test(details)) return { code: 'exhausted', hint: HINTS.space, retryable: true };
      return { code: 'exhausted', retryable: true };
    case status.INVALID_ARGUMENT:
      if (/too large/.test(details)) return { code: 'etcd-too-large', hint: HINTS.tooLarge };
      // 3.4 answers so while roles change under a running request; trying again is right.
      if (/revision of auth store is old|old revision/.test(details)) return { code: 'etcd-auth', retryable: true };
      if (/user name is empty|authentication failed/.test(details))
        return { code: 'etcd-auth', hint: HINTS.permission };
      return { code: 'invalid-argument' };
    case status.NOT_FOUND:
      return { code: 'not-found' };
    case status.FAILED_PRECONDITION:
      return { code: 'conflict' };
    case status.UNIMPLEMENTED:
      return { code: 'unsupported', hint: 'is this an etcd 3.4 or newer?' };
    case status.CANCELLED:
    case status.INTERNAL:
    case status.UNKNOWN:
      // Broken streams surface as any of these; a request that etcd judged has one of the codes above.
      return { code: 'etcd-unreachable', hint: HINTS.unreachable };
    default:
      return { code: 'internal' };
  }
}

/** Turns what gRPC throws into a MeshError that reads "<attempted>: <why>". */
export function toMeshError(error: unknown, attempted: string): MeshError {
  if (error instanceof MeshError) return error;
  if (!isGrpcError(error)) return MeshError.from(error, attempted);
  const verdict = judge(error.code, error.details);
  return new MeshError({ ...verdict, message: `${attempted}: ${error.details || error.message}`, cause: error });
}

/** etcd reports why it cancels a watch as text, not as a status. */
export function watchCancelError(reason: string, compactRevision: number, attempted: string): MeshError {
  if (compactRevision > 0)
    return new MeshError({
      code: 'etcd-compacted',
      message: `${attempted}: compacted up to revision ${compactRevision}`,
    });
  if (/permission denied/i.test(reason))
    return new MeshError({ code: 'etcd-permission', message: `${attempted}: ${reason}`, hint: HINTS.permission });
  return new MeshError({
    code: 'etcd-unreachable',
    message: `${attempted}: cancelled by etcd${reason === '' ? '' : `: ${reason}`}`,
  });
}

export function cancelled(attempted: string): MeshError {
  return new MeshError({ code: 'cancelled', message: `${attempted}: cancelled` });
}
