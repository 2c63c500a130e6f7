/** How checks read: of a preflight and of a diagnosis alike. Pure but for the colours that the terminal gives. */
import { type ErrorCode, MeshError, type PreflightCheck } from '@clustermesh/contract';
import { table } from '@clustermesh/runtime';
import type { Terminal } from './terminal.ts';

export interface Subject {
  /** Cells before the check's name. */
  readonly cells: readonly string[];
  /** Whom a finding is about, in a sentence. */
  readonly name: string;
  readonly checks: readonly PreflightCheck[];
}

/** One line per check, then why each finding matters and what to do. */
export function checkTable(head: readonly string[], subjects: readonly Subject[], paint: Terminal['paint']): string {
  const rows = subjects.flatMap(({ cells, checks }) => checks.map((check) => ({ cells, check })));
  const [title, ...lines] = table(
    [...head, 'CHECK', 'RESULT', 'FOUND'],
    rows.map(({ cells, check }) => [...cells, check.name, check.state, check.what]),
  );
  const advice = subjects.flatMap(({ name, checks }) =>
    checks
      .filter((check) => check.state !== 'ok')
      .flatMap((check) => [
        '',
        paint(`${check.state === 'failed' ? 'failed' : 'warning'}: ${name}: ${check.what}`, check.state),
        `   why: ${check.why}`,
        `   fix: ${check.fix}`,
      ]),
  );
  return [title!, ...lines.map((line, index) => paint(line, rows[index]!.check.state)), ...advice].join('\n');
}

/** The first failed check as an error; undefined when there is none. */
export function firstFailure(subjects: readonly Subject[], showAll: string): MeshError | undefined {
  const failed = subjects.flatMap(({ name, checks }) =>
    checks.filter((check) => check.state === 'failed').map((check) => ({ name, check })),
  );
  const [first] = failed;
  if (first === undefined) return undefined;
  const more = failed.length === 1 ? '' : ` (and ${failed.length - 1} more: ${showAll})`;
  return new MeshError({
    code: (first.check.code || 'conflict') as ErrorCode,
    message: `${first.name}: ${first.check.what}${more}`,
    hint: first.check.fix,
  });
}
