/** The doctor's look at this cluster, taken now and then without being asked: what it finds is logged once, and counted. */
import type { Diagnosis } from '@clustermesh/contract';
import type { Log } from '@clustermesh/runtime';

export interface SelfAudit {
  /** Returns what there is to say that was not said before; undefined when there is nothing. */
  run(): Promise<string | undefined>;
  /** Of the last run. Undefined: there was none yet. */
  findings(): { readonly failed: number; readonly warning: number } | undefined;
}

export function createSelfAudit(diagnose: () => Promise<readonly Diagnosis[]>, log: Log): SelfAudit {
  let known: ReadonlySet<string> = new Set();
  let counts: { failed: number; warning: number } | undefined;
  return {
    async run() {
      const found = new Set<string>();
      const now = { failed: 0, warning: 0 };
      for (const { subject, checks } of await diagnose()) {
        for (const { state, name, what, fix } of checks) {
          if (state === 'ok') continue;
          now[state]++;
          const finding = `${subject} ${name}`;
          found.add(finding);
          if (!known.has(finding))
            log.warn({ subject, check: name, state, what, fix }, 'the audit has found something');
        }
      }
      const gone = [...known].filter((finding) => !found.has(finding));
      known = found;
      counts = now;
      return gone.length === 0 ? undefined : `mended since the last audit: ${gone.join(', ')}`;
    },
    findings: () => counts,
  };
}
