/** Tables, JSON, errors and progress of the lab's commands. */
import { MeshError } from '@clustermesh/contract';
import { table } from '@clustermesh/runtime';

export type Format = 'table' | 'json';

export function tableText(head: readonly string[], rows: readonly (readonly string[])[]): string {
  return `${table(head, rows).join('\n')}\n`;
}

export function printJson(value: unknown): void {
  process.stdout.write(`${JSON.stringify(value, null, 2)}\n`);
}

/** What was attempted, on what, why it failed; then what to do. */
export function errorText(error: unknown): string {
  const mesh = MeshError.from(error, 'unexpected');
  return `error: ${mesh.message}\n${mesh.hint === undefined ? '' : `  hint: ${mesh.hint}\n`}`;
}

/** One line on stderr that says what is going on, once it has taken two seconds: quick commands stay quiet. */
export async function withProgress<T>(
  title: string,
  body: (progress: (text: string) => void) => Promise<T>,
): Promise<T> {
  const startedAt = performance.now();
  const live = process.stderr.isTTY === true;
  let text = '';
  let printed = '';
  const show = () => {
    const seconds = Math.floor((performance.now() - startedAt) / 1000);
    const line = `${title}: ${text || 'working'}`;
    if (live) process.stderr.write(`\r\x1b[K${line} … ${seconds} s`.slice(0, (process.stderr.columns ?? 120) + 3));
    else if (line !== printed) process.stderr.write(`${line} … ${seconds} s\n`);
    printed = line;
  };
  let timer: NodeJS.Timeout | undefined = setTimeout(() => {
    show();
    timer = setInterval(show, 1000);
  }, 2000);
  try {
    return await body((next) => {
      text = next;
    });
  } finally {
    clearInterval(timer);
    timer = undefined;
    if (live && printed !== '') process.stderr.write('\r\x1b[K');
  }
}
