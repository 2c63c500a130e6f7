/** Network policies in force → the one form that agents read. Pure. What is not supported is a problem, named with its place. */
import { ciliumSpecs, kubernetesSpecs, type LocalPolicy, type PolicyContext, policyName } from '@clustermesh/contract';
import type { LocatedObject } from './parse.ts';

type LocatedPolicy = Extract<
  LocatedObject,
  { kind: 'NetworkPolicy' | 'CiliumNetworkPolicy' | 'CiliumClusterwideNetworkPolicy' }
>;

const isPolicy = (object: LocatedObject): object is LocatedPolicy =>
  object.kind === 'NetworkPolicy' ||
  object.kind === 'CiliumNetworkPolicy' ||
  object.kind === 'CiliumClusterwideNetworkPolicy';

function specsOf(policy: LocatedPolicy, namespace: string, context: PolicyContext) {
  if (policy.kind !== 'NetworkPolicy') return ciliumSpecs(policy.object, namespace, context);
  return { specs: kubernetesSpecs(policy.object.spec, namespace, context), refused: [] };
}

export function readPolicies(
  objects: readonly LocatedObject[],
  context: PolicyContext,
): { readonly policies: ReadonlyMap<string, LocalPolicy>; readonly problems: readonly string[] } {
  const policies = new Map<string, LocalPolicy>();
  const problems: string[] = [];
  for (const object of objects) {
    if (!isPolicy(object)) continue;
    const { kind } = object;
    const { name } = object.object.metadata;
    const namespace = kind === 'CiliumClusterwideNetworkPolicy' ? '' : object.object.metadata.namespace;
    const { specs, refused } = specsOf(object, namespace, context);
    policies.set(policyName({ kind, namespace, name }), { kind, namespace, name, specs, refused: [...refused] });
    problems.push(...refused.map((sentence) => `${object.where}: ${object.key}: ${sentence}`));
  }
  return { policies, problems };
}
