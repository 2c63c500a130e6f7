/** `NetworkPolicy` (networking.k8s.io/v1): https://kubernetes.io/docs/concepts/services-networking/network-policies/ */
import { z } from 'zod';
import { parsePrefix, prefixContains } from './cidr.ts';
import type { PolicyContext } from './cilium.ts';
import {
  type Layer4,
  PORT_PROTOCOLS,
  type PolicyDirection,
  type PolicyPeer,
  type PolicyRule,
  type PolicySpec,
} from './model.ts';
import {
  inCluster,
  inNamespace,
  isPod,
  type LabelSelector,
  labelSelectorSchema,
  overNamespaceLabels,
  toSelector,
} from './selector.ts';

const cidr = z.string().refine((text) => text.includes('/') && parsePrefix(text) !== undefined, 'is no CIDR');

const ipBlock = z.strictObject({ cidr, except: z.array(cidr).nullish() }).superRefine(({ cidr, except }, context) => {
  const outer = parsePrefix(cidr);
  for (const [index, text] of (except ?? []).entries()) {
    const inner = parsePrefix(text);
    if (outer === undefined || inner === undefined || prefixContains(outer, inner)) continue;
    context.addIssue({ code: 'custom', path: ['except', index], message: `${text} does not lie in ${cidr}` });
  }
});

const peer = z
  .strictObject({
    podSelector: labelSelectorSchema.nullish(),
    namespaceSelector: labelSelectorSchema.nullish(),
    ipBlock: ipBlock.nullish(),
  })
  .refine(
    ({ podSelector, namespaceSelector, ipBlock }) =>
      (podSelector != null || namespaceSelector != null) !== (ipBlock != null),
    'needs a podSelector and/or a namespaceSelector, or an ipBlock alone',
  );

const portNumber = z.number().int().min(1).max(65535);
const portEntry = z
  .strictObject({
    protocol: z.enum(PORT_PROTOCOLS).nullish(),
    port: z.union([portNumber, z.string().min(1)]).nullish(),
    endPort: portNumber.nullish(),
  })
  .refine(
    ({ port, endPort }) => endPort == null || (typeof port === 'number' && port <= endPort),
    'endPort needs a port number that is not above it',
  );

const ports = z.array(portEntry).nullish();

export const networkPolicySpec = z.strictObject({
  podSelector: labelSelectorSchema,
  policyTypes: z.array(z.enum(['Ingress', 'Egress'])).nullish(),
  ingress: z.array(z.strictObject({ from: z.array(peer).nullish(), ports })).nullish(),
  egress: z.array(z.strictObject({ to: z.array(peer).nullish(), ports })).nullish(),
});
export type NetworkPolicySpec = z.infer<typeof networkPolicySpec>;

function toLayer4(entries: z.infer<typeof ports>): Layer4[] | null {
  if ((entries ?? []).length === 0) return null;
  return (entries ?? []).map(({ protocol, port, endPort }): Layer4 => {
    const of = protocol ?? 'TCP';
    if (port == null) return { kind: 'ports', protocol: of, first: 0, last: 65535 };
    if (typeof port === 'string') return { kind: 'named', protocol: of, name: port };
    return { kind: 'ports', protocol: of, first: port, last: endPort ?? port };
  });
}

/** Selectors of Kubernetes know one cluster: their own, unless the mesh is told to read them otherwise. */
export function kubernetesSpecs(spec: NetworkPolicySpec, namespace: string, context: PolicyContext): PolicySpec[] {
  const ownCluster = context.defaultLocalCluster ? [inCluster(context.cluster)] : [];
  const labelsOf = (raw: LabelSelector | null | undefined) => toSelector(raw ?? {}, 'k8s');

  function toPeer({ podSelector, namespaceSelector, ipBlock }: z.infer<typeof peer>): PolicyPeer {
    if (ipBlock != null) return { kind: 'cidr', cidr: ipBlock.cidr, except: ipBlock.except ?? [] };
    const where =
      namespaceSelector == null ? [inNamespace(namespace)] : overNamespaceLabels(labelsOf(namespaceSelector));
    return { kind: 'labels', selector: [isPod, ...where, ...labelsOf(podSelector), ...ownCluster] };
  }
  const toRule = (
    direction: PolicyDirection,
    peers: readonly z.infer<typeof peer>[] | null | undefined,
    entries: z.infer<typeof ports>,
  ): PolicyRule => ({
    direction,
    effect: 'allow',
    peers: (peers ?? []).length === 0 ? [{ kind: 'all' }] : (peers ?? []).map(toPeer),
    layer4: toLayer4(entries),
  });

  const given = spec.policyTypes ?? [];
  const implied = ['Ingress', ...((spec.egress ?? []).length > 0 ? ['Egress'] : [])];
  const types: readonly string[] = given.length > 0 ? given : implied;
  const isolates = { ingress: types.includes('Ingress'), egress: types.includes('Egress') };
  return [
    {
      subject: [...labelsOf(spec.podSelector), inNamespace(namespace)],
      defaultDeny: isolates,
      rules: [
        ...(isolates.ingress ? (spec.ingress ?? []).map((rule) => toRule('ingress', rule.from, rule.ports)) : []),
        ...(isolates.egress ? (spec.egress ?? []).map((rule) => toRule('egress', rule.to, rule.ports)) : []),
      ],
    },
  ];
}
