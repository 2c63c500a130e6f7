/** Identity label sets and their one text form: `source:key=value;` sorted by key (wire-contract §1.5). */

export const CLUSTER_LABEL = 'io.cilium.k8s.policy.cluster';
export const NAMESPACE_LABEL = 'io.kubernetes.pod.namespace';
export const SERVICE_ACCOUNT_LABEL = 'io.cilium.k8s.policy.serviceaccount';
export const NAMESPACE_LABELS_PREFIX = 'io.cilium.k8s.namespace.labels.';
const RESERVED_PREFIX = 'io.cilium.k8s.';

export interface Label {
  readonly source: string;
  readonly key: string;
  readonly value: string;
}

/** Byte order, as Go sorts strings; `localeCompare` would order differently on another machine. */
function compare(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

export function formatLabels(labels: Iterable<Label>): string {
  return [...labels]
    .sort((a, b) => compare(a.key, b.key))
    .map((label) => `${label.source}:${label.key}=${label.value};`)
    .join('');
}

/** Reads the text form; an entry without a source or key makes the whole set invalid (undefined). */
export function parseLabels(text: string): Label[] | undefined {
  const labels: Label[] = [];
  for (const entry of text.split(';')) {
    if (entry === '') continue;
    const colon = entry.indexOf(':');
    if (colon <= 0) return undefined;
    const rest = entry.slice(colon + 1);
    const equals = rest.indexOf('=');
    const key = equals < 0 ? rest : rest.slice(0, equals);
    if (key === '') return undefined;
    labels.push({ source: entry.slice(0, colon), key, value: equals < 0 ? '' : rest.slice(equals + 1) });
  }
  return labels;
}

export interface PodLabelInput {
  readonly cluster: string;
  readonly namespace: string;
  readonly serviceAccount?: string | undefined;
  readonly podLabels: Readonly<Record<string, string>>;
}

/** Whether a key says where a pod is and whose it is: never the pod's to set, or it could pass for another one. */
export function isReservedLabel(key: string): boolean {
  return key.startsWith(RESERVED_PREFIX) || key === NAMESPACE_LABEL;
}

/**
 * The security labels of a pod: its own, but for reserved ones, plus cluster, namespace and service account (wire-contract §2.2).
 */
export function podIdentityLabels(input: PodLabelInput): Label[] {
  const own = Object.entries(input.podLabels)
    .filter(([key]) => !isReservedLabel(key))
    .map(([key, value]) => ({ source: 'k8s', key, value }));
  return [
    ...own,
    { source: 'k8s', key: CLUSTER_LABEL, value: input.cluster },
    { source: 'k8s', key: NAMESPACE_LABEL, value: input.namespace },
    { source: 'k8s', key: SERVICE_ACCOUNT_LABEL, value: input.serviceAccount ?? 'default' },
    { source: 'k8s', key: `${NAMESPACE_LABELS_PREFIX}kubernetes.io/metadata.name`, value: input.namespace },
  ];
}
