/**
 * Network policies in one form: what CiliumNetworkPolicy, CiliumClusterwideNetworkPolicy and NetworkPolicy come down to, with all
 * that their texts leave unsaid (namespace, cluster, default deny) filled in. This is what stands under `clustermesh/local/policies/`.
 *
 * How it is read, for a packet that begins a flow, at the pod that sends it (egress) and at the one that receives it (ingress):
 * a deny rule that matches denies; else an allow rule that matches allows; else it is denied if any spec that selects the pod has
 * `defaultDeny` in that direction, and allowed otherwise. Replies belong to the flow.
 */
import { z } from 'zod';
import type { Decoded } from '../decoded.ts';
import { decodeJson } from '../json.ts';
import { parsePrefix } from './cidr.ts';
import { requirementSchema } from './selector.ts';

export const PORT_PROTOCOLS = ['TCP', 'UDP', 'SCTP'] as const;
export type PortProtocol = (typeof PORT_PROTOCOLS)[number];
const portProtocol = z.enum(PORT_PROTOCOLS);
const port = z.number().int().min(0).max(65535);

const selectorSchema = z.array(requirementSchema);
const prefixText = z.string().refine((text) => parsePrefix(text) !== undefined, 'is neither an address nor a CIDR');

export const policyPeerSchema = z.discriminatedUnion('kind', [
  /** Whoever it is. */
  z.object({ kind: z.literal('all') }),
  z.object({ kind: z.literal('labels'), selector: selectorSchema }),
  /** Addresses outside the mesh: what is a pod or a node is never matched. */
  z.object({ kind: z.literal('cidr'), cidr: prefixText, except: z.array(prefixText) }),
]);
export type PolicyPeer = z.infer<typeof policyPeerSchema>;

export const layer4Schema = z.discriminatedUnion('kind', [
  /** Both ends inclusive; 0 … 65535: every port of the protocol. */
  z.object({ kind: z.literal('ports'), protocol: portProtocol, first: port, last: port }),
  /** Port of a container of the receiving pod, by its name. */
  z.object({ kind: z.literal('named'), protocol: portProtocol, name: z.string().min(1) }),
  z.object({
    kind: z.literal('icmp'),
    family: z.union([z.literal(4), z.literal(6)]),
    type: z.number().int().min(0).max(255),
  }),
]);
export type Layer4 = z.infer<typeof layer4Schema>;

export const policyRuleSchema = z.object({
  direction: z.enum(['ingress', 'egress']),
  effect: z.enum(['allow', 'deny']),
  /** Any of them; none: nobody. */
  peers: z.array(policyPeerSchema),
  /** Any of them; null: every protocol and port. */
  layer4: z.array(layer4Schema).nullable(),
});
export type PolicyRule = z.infer<typeof policyRuleSchema>;
export type PolicyDirection = PolicyRule['direction'];

export const policySpecSchema = z.object({
  /** Pods of this cluster that it is for. */
  subject: selectorSchema,
  defaultDeny: z.object({ ingress: z.boolean(), egress: z.boolean() }),
  rules: z.array(policyRuleSchema),
});
export type PolicySpec = z.infer<typeof policySpecSchema>;

export const POLICY_KINDS = ['CiliumNetworkPolicy', 'CiliumClusterwideNetworkPolicy', 'NetworkPolicy'] as const;
export type PolicyKind = (typeof POLICY_KINDS)[number];

export const localPolicySchema = z.object({
  kind: z.enum(POLICY_KINDS),
  /** Empty for clusterwide ones. */
  namespace: z.string(),
  name: z.string().min(1),
  specs: z.array(policySpecSchema),
  /** Parts that are not supported, each with its place and what holds instead. */
  refused: z.array(z.string()),
});
export type LocalPolicy = z.infer<typeof localPolicySchema>;

export const decodeLocalPolicy = (text: string): Decoded<LocalPolicy> =>
  decodeJson('local policy', text, localPolicySchema);

const SHORT: Readonly<Record<PolicyKind, string>> = {
  CiliumNetworkPolicy: 'cnp',
  CiliumClusterwideNetworkPolicy: 'ccnp',
  NetworkPolicy: 'knp',
};

/** `cnp/shop/allow-web`: the name of a policy among those of all kinds, also behind its prefix in etcd. */
export function policyName({ kind, namespace, name }: Pick<LocalPolicy, 'kind' | 'namespace' | 'name'>): string {
  return [SHORT[kind], ...(namespace === '' ? [] : [namespace]), name].join('/');
}
