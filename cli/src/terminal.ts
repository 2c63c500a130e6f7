/** Where a command speaks. Results go to stdout, what happens meanwhile and errors to stderr. */
import { createInterface } from 'node:readline/promises';
import { MeshError, messageOf } from '@clustermesh/contract';

export interface Terminal {
  out(line: string): void;
  err(line: string): void;
  /** Shows what is going on right now; replaced by the next call, and by any line. */
  progress(text: string): void;
  /** Asks a question that is answered by yes or no; undefined where nobody can be asked. */
  ask?(question: string, signal: AbortSignal): Promise<boolean>;
  /** Colours a line of results by what it says; on a terminal only. */
  paint(line: string, state: 'ok' | 'warning' | 'failed'): string;
}

const COLOURS = { ok: '', warning: '\u001b[33m', failed: '\u001b[31m' } as const;

export const plain: Terminal['paint'] = (line) => line;

/** Without a terminal a state is told only when it lasts: a log wants to know what is slow, not every step. */
const TELL_AFTER_MS = 2000;

export function processTerminal(): Terminal {
  const live = process.stderr.isTTY;
  // https://no-color.org
  const coloured = process.stdout.isTTY && (process.env.NO_COLOR ?? '') === '';
  let shown = '';
  let timer: NodeJS.Timeout | undefined;
  const wipe = () => {
    if (live && shown !== '') process.stderr.write('\r\u001b[K');
    shown = '';
  };
  return {
    out: (line) => {
      wipe();
      process.stdout.write(`${line}\n`);
    },
    err: (line) => {
      wipe();
      process.stderr.write(`${line}\n`);
    },
    ...(process.stdin.isTTY && live ? { ask } : {}),
    paint: (line, state) => (coloured && state !== 'ok' ? `${COLOURS[state]}${line}\u001b[0m` : line),
    progress: (text) => {
      if (text === shown) return;
      clearTimeout(timer);
      wipe();
      shown = text;
      if (text === '') return;
      if (live) {
        const width = process.stderr.columns ?? 80;
        process.stderr.write(text.length < width ? text : `${text.slice(0, width - 2)}…`);
      } else {
        timer = setTimeout(() => process.stderr.write(`${text}\n`), TELL_AFTER_MS).unref();
      }
    },
  };
}

async function ask(question: string, signal: AbortSignal): Promise<boolean> {
  const lines = createInterface({ input: process.stdin, output: process.stderr });
  try {
    return /^y(es)?$/i.test((await lines.question(`${question} [y/N] `, { signal })).trim());
  } finally {
    lines.close();
  }
}

/** `error:` says what failed, `hint:` what to do about it. */
export function printError(terminal: Terminal, error: unknown): void {
  terminal.err(`error: ${messageOf(error)}`);
  if (error instanceof MeshError && error.hint !== undefined && error.hint !== '') terminal.err(`hint: ${error.hint}`);
}
