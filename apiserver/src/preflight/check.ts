import type { ErrorCode, PreflightCheck } from '@clustermesh/contract';

/** What a check says when it is not satisfied. */
export interface Finding {
  readonly code: ErrorCode;
  readonly what: string;
  readonly why: string;
  readonly fix: string;
}

export const passed = (name: string, what: string): PreflightCheck => ({
  name,
  state: 'ok',
  what,
  why: '',
  fix: '',
  code: '',
});
export const refused = (name: string, finding: Finding): PreflightCheck => ({ name, state: 'failed', ...finding });
export const doubtful = (name: string, finding: Omit<Finding, 'code'>): PreflightCheck => ({
  name,
  state: 'warning',
  code: '',
  ...finding,
});
