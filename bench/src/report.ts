/** Figures as a table for people and, as the last line, as JSON for machines. */

export interface Figure {
  readonly name: string;
  readonly value: number;
  readonly unit: string;
  /** Measured in the same run. */
  readonly baseline?: number | undefined;
  readonly ratio?: number | undefined;
  /** As text, for people. */
  readonly aim?: string | undefined;
  /** Undefined: for information. */
  readonly ok?: boolean | undefined;
  /** Why there is no value. */
  readonly failed?: string | undefined;
}

/** Takes figures as they come, so that what was measured is not lost with what was not. */
export type Emit = (...figures: Figure[]) => void;

const short = (value: number | undefined): string =>
  value === undefined || Number.isNaN(value)
    ? ''
    : Math.abs(value) >= 1000
      ? String(Math.round(value))
      : String(Math.round(value * 100) / 100);

const verdict = ({ ok, failed }: Figure): string =>
  failed !== undefined ? 'FAILED' : ok === undefined ? '' : ok ? 'ok' : 'MISSED';

/** One figure as a line, for who waits for the table. */
export function line(figure: Figure): string {
  const { name, value, unit, baseline, ratio, aim, failed } = figure;
  if (failed !== undefined) return `${name}: FAILED: ${failed}`;
  const compared = ratio === undefined ? '' : `, ${short(ratio)} × ${short(baseline)}`;
  const aimed = aim === undefined ? '' : `, aim ${aim}: ${verdict(figure)}`;
  return `${name}: ${short(value)} ${unit}${compared}${aimed}`;
}

export function table(figures: readonly Figure[]): string {
  const rows = [
    ['', 'value', 'unit', 'baseline', 'ratio', 'aim', ''],
    ...figures.map((figure) => [
      figure.name,
      short(figure.value),
      figure.unit,
      short(figure.baseline),
      short(figure.ratio),
      figure.aim ?? '',
      verdict(figure),
    ]),
  ];
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map((row) => row[column]!.length)));
  const isNumber = (column: number) => [1, 3, 4].includes(column);
  return rows
    .map((row) =>
      row
        .map((cell, column) => (isNumber(column) ? cell.padStart(widths[column]!) : cell.padEnd(widths[column]!)))
        .join('  ')
        .trimEnd(),
    )
    .join('\n');
}

export function percentile(sorted: readonly number[], share: number): number {
  return sorted[Math.min(sorted.length - 1, Math.floor(sorted.length * share))] ?? Number.NaN;
}

export const mean = (values: readonly number[]): number =>
  values.reduce((sum, value) => sum + value, 0) / Math.max(1, values.length);
