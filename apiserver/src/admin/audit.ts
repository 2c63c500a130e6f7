/** The audit log: who asked this apiserver for what, and what came of it. JSON lines, 0600, the last few files kept. */
import { appendFileSync, chmodSync, existsSync, renameSync, statSync } from 'node:fs';
import { redactTokens } from '@clustermesh/pki';
import { type Caller, type Clock, systemClock } from '@clustermesh/runtime';

export interface AuditEntry {
  readonly caller: Caller;
  readonly role: string;
  readonly method: string;
  /** Of the request, what names its subject; never a certificate, a key or a token. */
  readonly subject: Readonly<Record<string, string>>;
  readonly outcome: 'done' | 'failed' | 'refused';
  /** Of what failed or was refused. */
  readonly error?: string | undefined;
}

export interface Audit {
  write(entry: AuditEntry): void;
}

export interface AuditOptions {
  readonly file: string;
  /** Size at which the file becomes `<file>.1` (default 10 MiB). */
  readonly maxBytes?: number;
  /** Older files kept: `.1` (the youngest) … `.N` (default 5). */
  readonly keep?: number;
  readonly clock?: Clock;
}

export function openAudit(options: AuditOptions): Audit {
  const { file } = options;
  const clock = options.clock ?? systemClock;
  const maxBytes = options.maxBytes ?? 10 * 1024 * 1024;
  const keep = options.keep ?? 5;

  function rotate(): void {
    for (let index = keep - 1; index >= 1; index--)
      if (existsSync(`${file}.${index}`)) renameSync(`${file}.${index}`, `${file}.${index + 1}`);
    renameSync(file, `${file}.1`);
  }

  return {
    write({ caller, ...entry }) {
      const who = caller.via === 'socket' ? { via: 'socket' } : { ...caller, user: caller.user ?? null };
      const line = { time: new Date(clock.wallMs()).toISOString(), ...who, ...entry };
      const size = statSync(file, { throwIfNoEntry: false })?.size ?? 0;
      if (size >= maxBytes) rotate();
      // Synchronous: an operation that is not written down does not begin.
      appendFileSync(file, `${redactTokens(JSON.stringify(line))}\n`, { mode: 0o600 });
      if (size === 0) chmodSync(file, 0o600);
    },
  };
}
