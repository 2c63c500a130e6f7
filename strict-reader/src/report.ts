/** What was read, and everything that a reader would have stumbled over. */

export interface Violation {
  /** Which rule: `value`, `key`, `canary`, `config`, `heartbeat`, `order`, `page`, `watch`, `revision`, `header`, `permission`, `timeout`. */
  readonly rule: string;
  /** The key, or the call. */
  readonly where: string;
  readonly revision?: number;
  readonly reason: string;
}

export interface FamilyReport {
  /** Read because the cluster config says that it is published. */
  expected: boolean;
  /** create_revision of the canary. */
  canaryRevision: number | null;
  synced: boolean;
  /** Rows held: accepted, and not deleted since. */
  count: number;
  /** Rows there now whose latest value was refused. */
  refused: number;
  pages: number;
  upserts: number;
  deletes: number;
  /** Deletes that only a later list told of. */
  synthesisedDeletes: number;
}

export interface ReportData {
  readonly endpoint: string;
  readonly cluster: string;
  readonly layout: 'state' | 'cache';
  etcdClusterId: string | null;
  revision: number;
  config: unknown;
  readonly heartbeat: { events: number };
  readonly families: Record<string, FamilyReport>;
  /** Connections, lists and watches begun again, and why. No violations in themselves. */
  readonly restarts: { readonly where: string; readonly reason: string }[];
  readonly violations: Violation[];
}

export interface Report {
  readonly data: ReportData;
  family(name: string): FamilyReport;
  violation(rule: string, where: string, reason: string, revision?: number): void;
  restart(where: string, reason: string): void;
}

export function createReport({
  endpoint,
  cluster,
  layout,
}: Pick<ReportData, 'endpoint' | 'cluster' | 'layout'>): Report {
  const data: ReportData = {
    ...{ endpoint, cluster, layout },
    etcdClusterId: null,
    revision: 0,
    config: null,
    heartbeat: { events: 0 },
    families: {},
    restarts: [],
    violations: [],
  };
  /** The same thing found again (by a relist, say) is one violation. */
  const known = new Set<string>();
  return {
    data,
    family(name) {
      data.families[name] ??= {
        expected: false,
        canaryRevision: null,
        synced: false,
        count: 0,
        refused: 0,
        pages: 0,
        upserts: 0,
        deletes: 0,
        synthesisedDeletes: 0,
      };
      return data.families[name];
    },
    violation(rule, where, reason, revision) {
      const key = JSON.stringify([rule, where, revision, reason]);
      if (known.has(key)) return;
      known.add(key);
      data.violations.push({ rule, where, ...(revision === undefined ? {} : { revision }), reason });
    },
    restart(where, reason) {
      data.restarts.push({ where, reason });
    },
  };
}

export function formatReport(data: ReportData): string {
  const lines = [
    `${data.cluster} at ${data.endpoint} (${data.layout} layout), etcd ${data.etcdClusterId ?? 'unknown'}, revision ${data.revision}`,
    `heartbeats ${data.heartbeat.events}, restarts ${data.restarts.length}`,
  ];
  for (const [name, family] of Object.entries(data.families)) {
    const state = !family.expected ? 'not published' : family.synced ? 'synced' : 'NOT SYNCED';
    const counts = `${family.count} rows, ${family.refused} refused, ${family.pages} pages, ${family.upserts} upserts, ${family.deletes}+${family.synthesisedDeletes} deletes`;
    lines.push(`  ${name.padEnd(15)} ${state.padEnd(13)} ${counts}`);
  }
  for (const { where, reason } of data.restarts) lines.push(`  restart: ${where}: ${reason}`);
  for (const { rule, where, revision, reason } of data.violations) {
    lines.push(`  VIOLATION (${rule}) ${where}${revision === undefined ? '' : ` at revision ${revision}`}: ${reason}`);
  }
  lines.push(data.violations.length === 0 ? 'no violations' : `${data.violations.length} violations`);
  return lines.join('\n');
}
