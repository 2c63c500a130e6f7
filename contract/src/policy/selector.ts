/** Label selectors in one form, whatever kind of policy they come from, and what they select. */
import { z } from 'zod';
import { CLUSTER_LABEL, type Label, NAMESPACE_LABEL, NAMESPACE_LABELS_PREFIX } from '../labels.ts';

export const requirementSchema = z.object({
  /** `k8s`, `reserved`, …; `any` stands for every source. */
  source: z.string().min(1),
  key: z.string().min(1),
  operator: z.enum(['In', 'NotIn', 'Exists', 'DoesNotExist']),
  values: z.array(z.string()),
});
export type Requirement = z.infer<typeof requirementSchema>;
/** All of them must hold; an empty selector selects everything. */
export type Selector = readonly Requirement[];

/** An identity's labels, by key. */
export type LabelSet = ReadonlyMap<string, readonly Label[]>;

export function labelSet(labels: Iterable<Label>): LabelSet {
  const byKey = new Map<string, Label[]>();
  for (const label of labels) {
    const same = byKey.get(label.key);
    if (same === undefined) byKey.set(label.key, [label]);
    else same.push(label);
  }
  return byKey;
}

/** Kubernetes' meaning: what is not there is in no list (`NotIn` holds). */
function holds({ source, key, operator, values }: Requirement, labels: LabelSet): boolean {
  const found = (labels.get(key) ?? []).filter((label) => source === 'any' || label.source === source);
  switch (operator) {
    case 'In':
      return found.some((label) => values.includes(label.value));
    case 'NotIn':
      return !found.some((label) => values.includes(label.value));
    case 'Exists':
      return found.length > 0;
    case 'DoesNotExist':
      return found.length === 0;
  }
}

export function selects(selector: Selector, labels: LabelSet): boolean {
  return selector.every((requirement) => holds(requirement, labels));
}

/** One text per meaning of `selector`, up to the order of requirements and values. */
export function selectorText(selector: Selector): string {
  const parts = selector.map(({ source, key, operator, values }) =>
    JSON.stringify([source, key, operator, ...[...values].sort()]),
  );
  return [...new Set(parts)].sort().join();
}

/** `k8s:app` → source and key; without a prefix `bare` is the source. */
function splitKey(text: string, bare: string): Pick<Requirement, 'source' | 'key'> {
  const colon = text.indexOf(':');
  return colon < 0 ? { source: bare, key: text } : { source: text.slice(0, colon), key: text.slice(colon + 1) };
}

const labelValue = z.string({ error: 'must be a string (quote it)' });

/** metav1.LabelSelector. An unknown field might be a restriction: it is malformed. */
export const labelSelectorSchema = z.strictObject({
  matchLabels: z.record(z.string().regex(/^[^:]*:?[^:]+$/, 'is no label key'), labelValue).nullish(),
  matchExpressions: z
    .array(
      z
        .strictObject({
          key: z.string().regex(/^[^:]*:?[^:]+$/, 'is no label key'),
          operator: requirementSchema.shape.operator,
          values: z.array(labelValue).nullish(),
        })
        .refine(
          ({ operator, values }) => (operator === 'In' || operator === 'NotIn') === (values ?? []).length > 0,
          'values are needed with In and NotIn, and not allowed with Exists and DoesNotExist',
        ),
    )
    .nullish(),
});
export type LabelSelector = z.infer<typeof labelSelectorSchema>;

/** `bare` is the source of keys that have none: `any` in Cilium's policies, `k8s` in Kubernetes'. */
export function toSelector(raw: LabelSelector, bare: 'any' | 'k8s'): Requirement[] {
  return [
    ...Object.entries(raw.matchLabels ?? {}).map(
      ([key, value]): Requirement => ({ ...splitKey(key, bare), operator: 'In', values: [value] }),
    ),
    ...(raw.matchExpressions ?? []).map(
      ({ key, operator, values }): Requirement => ({ ...splitKey(key, bare), operator, values: [...(values ?? [])] }),
    ),
  ];
}

/** The same selector over the labels of a pod's namespace, as they stand among the labels of an identity. */
export function overNamespaceLabels(selector: Selector): Requirement[] {
  return selector.map((requirement) => ({ ...requirement, key: `${NAMESPACE_LABELS_PREFIX}${requirement.key}` }));
}

export const inNamespace = (namespace: string): Requirement => ({
  source: 'k8s',
  key: NAMESPACE_LABEL,
  operator: 'In',
  values: [namespace],
});
/** Every pod has a namespace, and nothing else has. */
export const isPod: Requirement = { source: 'k8s', key: NAMESPACE_LABEL, operator: 'Exists', values: [] };

export const inCluster = (cluster: string): Requirement => ({
  source: 'k8s',
  key: CLUSTER_LABEL,
  operator: 'In',
  values: [cluster],
});

export const reserved = (name: string): Requirement => ({
  source: 'reserved',
  key: name,
  operator: 'Exists',
  values: [],
});

export interface Scope {
  /** Of the policy; empty for clusterwide ones. */
  readonly namespace: string;
  /** What a selector without a cluster label means; undefined: the pods of every cluster. */
  readonly defaultCluster: string | undefined;
}

/**
 * A peer selector with what it leaves unsaid, as Cilium reads it: pods of the policy's namespace unless it speaks of namespaces, and
 * of the policy's cluster unless it speaks of clusters. A selector of reserved labels speaks of no pods.
 */
export function scoped(selector: Selector, scope: Scope): Requirement[] {
  if (selector.some(({ source }) => source === 'reserved')) return [...selector];
  const speaksOfNamespaces = selector.some(
    ({ key }) => key === NAMESPACE_LABEL || key.startsWith(NAMESPACE_LABELS_PREFIX),
  );
  const speaksOfClusters = selector.some(({ key }) => key === CLUSTER_LABEL);
  return [
    ...selector,
    ...(speaksOfNamespaces ? [isPod] : [scope.namespace === '' ? isPod : inNamespace(scope.namespace)]),
    ...(speaksOfClusters || scope.defaultCluster === undefined ? [] : [inCluster(scope.defaultCluster)]),
  ];
}
