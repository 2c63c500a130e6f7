/**
 * `CiliumNetworkPolicy` and `CiliumClusterwideNetworkPolicy` (cilium.io/v2), layers 3 and 4, with the meaning they have in Cilium
 * 1.19: https://docs.cilium.io/en/stable/security/policy/language/. What is malformed is refused as a whole, as an API server
 * would; what is well formed but not supported is refused rule by rule (refusal.ts).
 */
import { z } from 'zod';
import { parsePrefix, prefixContains } from './cidr.ts';
import { ENTITIES, type Entity, entityPeers } from './entities.ts';
import { icmpType } from './icmp-types.ts';
import {
  type Layer4,
  PORT_PROTOCOLS,
  type PolicyDirection,
  type PolicyPeer,
  type PolicyRule,
  type PolicySpec,
} from './model.ts';
import { createRefusals, type Effect, type Refusals, unknownField } from './refusal.ts';
import {
  inNamespace,
  isPod,
  type LabelSelector,
  labelSelectorSchema,
  type Requirement,
  type Scope,
  scoped,
  toSelector,
} from './selector.ts';

export interface PolicyContext {
  /** The cluster that the policy is a policy of. */
  readonly cluster: string;
  /** Whether a selector without a cluster label means this cluster only (Cilium's policyDefaultLocalCluster). */
  readonly defaultLocalCluster: boolean;
}

const prefixText = z.string().refine((text) => parsePrefix(text) !== undefined, 'is neither an address nor a CIDR');

const cidrEntry = z
  .looseObject({ cidr: prefixText.nullish(), except: z.array(prefixText).nullish() })
  .superRefine(({ cidr, except }, context) => {
    const outer = cidr == null ? undefined : parsePrefix(cidr);
    for (const [index, text] of (except ?? []).entries()) {
      const inner = parsePrefix(text);
      if (outer === undefined || inner === undefined || prefixContains(outer, inner)) continue;
      context.addIssue({ code: 'custom', path: ['except', index], message: `${text} does not lie in ${cidr}` });
    }
  });

const portText = z
  .union([z.string(), z.number()])
  .transform(String)
  .refine((text) => (/^\d+$/.test(text) ? Number(text) <= 65535 : /^[a-z0-9]([-a-z0-9]*[a-z0-9])?$/i.test(text)), {
    message: 'is neither a port number nor the name of a port',
  });

const portEntry = z
  .looseObject({
    port: portText,
    endPort: z.number().int().min(0).max(65535).nullish(),
    protocol: z.string().nullish(),
  })
  .refine(
    ({ port, endPort }) => endPort == null || endPort === 0 || (/^\d+$/.test(port) && Number(port) <= endPort),
    'endPort needs a port number that is not above it',
  );

const icmpEntry = z
  .looseObject({
    type: z.union([z.string(), z.number()]),
    family: z.enum(['IPv4', 'IPv6']).nullish(),
  })
  .refine(({ type, family }) => icmpType(family === 'IPv6' ? 6 : 4, type) !== undefined, 'is no ICMP type');

const endpoints = z.array(labelSelectorSchema).nullish();
const entities = z.array(z.enum(ENTITIES)).nullish();
const cidrs = z.array(prefixText).nullish();
const cidrSets = z.array(cidrEntry).nullish();

const layer4 = {
  toPorts: z.array(z.looseObject({ ports: z.array(portEntry).min(1) })).nullish(),
  icmps: z.array(z.looseObject({ fields: z.array(icmpEntry).min(1) })).nullish(),
};
const layer4Schema = z.looseObject(layer4);
type RawLayer4 = z.infer<typeof layer4Schema>;

const ingressRule = z.looseObject({
  fromEndpoints: endpoints,
  fromEntities: entities,
  fromCIDR: cidrs,
  fromCIDRSet: cidrSets,
  ...layer4,
});
const egressRule = z.looseObject({
  toEndpoints: endpoints,
  toEntities: entities,
  toCIDR: cidrs,
  toCIDRSet: cidrSets,
  ...layer4,
});
type RawRule = z.infer<typeof ingressRule> | z.infer<typeof egressRule>;

const LISTS = ['ingress', 'ingressDeny', 'egress', 'egressDeny'] as const;
type List = (typeof LISTS)[number];

const specSchema = z
  .looseObject({
    endpointSelector: labelSelectorSchema.nullish(),
    ingress: z.array(ingressRule).nullish(),
    ingressDeny: z.array(ingressRule).nullish(),
    egress: z.array(egressRule).nullish(),
    egressDeny: z.array(egressRule).nullish(),
    enableDefaultDeny: z.strictObject({ ingress: z.boolean().nullish(), egress: z.boolean().nullish() }).nullish(),
  })
  .superRefine((spec, context) => {
    const issue = (message: string) => context.addIssue({ code: 'custom', message });
    if ((spec.endpointSelector == null) === (spec['nodeSelector'] == null))
      issue('needs an endpointSelector or a nodeSelector, not both');
    if (LISTS.every((list) => (spec[list] ?? []).length === 0)) issue(`needs at least one rule in ${LISTS.join(', ')}`);
  });
type Spec = z.infer<typeof specSchema>;

/** The part below `metadata`. */
export const ciliumPolicyBody = {
  spec: specSchema.nullish(),
  specs: z.array(specSchema).nullish(),
};
const bodySchema = z.looseObject(ciliumPolicyBody);
export type CiliumPolicyBody = z.infer<typeof bodySchema>;

const SPEC_FIELDS = [...LISTS, 'endpointSelector', 'nodeSelector', 'enableDefaultDeny', 'labels', 'description', 'log'];

/** What a reader of the status knows these fields as. */
const FIELD_REASONS: Readonly<Record<string, string>> = {
  rules: 'layer 7 rules are not supported',
  toFQDNs: 'DNS names are not supported',
  toServices: 'services as peers are not supported',
  authentication: 'mutual authentication is not supported',
};
const reasonFor = (field: string) => FIELD_REASONS[field] ?? `the field ${field} is not supported`;

interface Place {
  readonly direction: PolicyDirection;
  readonly effect: Effect;
  readonly path: string;
}

/** Thrown and caught within one rule. */
class Unsupported extends Error {
  readonly path: string;
  constructor(path: string, why: string) {
    super(why);
    this.path = path;
  }
}

function refuseUnknown(object: object, known: readonly string[], path: string): void {
  const field = unknownField(object, known);
  if (field !== undefined) throw new Unsupported(`${path}.${field}`, reasonFor(field));
}

function toLayer4(rule: RawLayer4, path: string): Layer4[] | null {
  const { toPorts, icmps } = rule;
  if ((toPorts ?? []).length > 0 && (icmps ?? []).length > 0)
    throw new Unsupported(`${path}.icmps`, 'icmps beside toPorts are not supported');
  const ports = (toPorts ?? []).flatMap((portRule, index) => {
    const here = `${path}.toPorts[${index}]`;
    refuseUnknown(portRule, ['ports'], here);
    return portRule.ports.flatMap((entry, at) => portsOf(entry, `${here}.ports[${at}]`));
  });
  const messages = (icmps ?? []).flatMap((entry, index) => {
    refuseUnknown(entry, ['fields'], `${path}.icmps[${index}]`);
    return entry.fields.map((field): Layer4 => {
      const family = field.family === 'IPv6' ? 6 : 4;
      return { kind: 'icmp', family, type: icmpType(family, field.type)! };
    });
  });
  const all = [...ports, ...messages];
  return all.length === 0 ? null : all;
}

function portsOf(entry: z.infer<typeof portEntry>, path: string): Layer4[] {
  refuseUnknown(entry, ['port', 'endPort', 'protocol'], path);
  const wanted = (entry.protocol ?? 'ANY').toUpperCase();
  const protocols = PORT_PROTOCOLS.filter((protocol) => wanted === 'ANY' || wanted === '' || wanted === protocol);
  if (protocols.length === 0) throw new Unsupported(`${path}.protocol`, `protocol ${wanted} is not supported`);
  return protocols.map((protocol): Layer4 => {
    if (!/^\d+$/.test(entry.port)) return { kind: 'named', protocol, name: entry.port.toLowerCase() };
    const first = Number(entry.port);
    if (first === 0) return { kind: 'ports', protocol, first: 0, last: 65535 };
    return { kind: 'ports', protocol, first, last: entry.endPort || first };
  });
}

/** The same fields under the same names in both directions. */
function peersOf(raw: RawRule, direction: PolicyDirection) {
  const prefix = direction === 'ingress' ? 'from' : 'to';
  const field = <T>(suffix: string) => raw[`${prefix}${suffix}`] as T[] | null | undefined;
  return {
    endpoints: field<LabelSelector>('Endpoints'),
    entities: field<Entity>('Entities'),
    cidrs: field<string>('CIDR'),
    sets: field<z.infer<typeof cidrEntry>>('CIDRSet'),
    fields: ['Endpoints', 'Entities', 'CIDR', 'CIDRSet'].map((suffix) => `${prefix}${suffix}`),
    pathOfSets: `${prefix}CIDRSet`,
  };
}

function toPeers(raw: RawRule, { direction, path }: Place, scope: Scope, cluster: string): PolicyPeer[] {
  const { endpoints, entities, cidrs, sets, pathOfSets } = peersOf(raw, direction);
  if ([endpoints, entities, cidrs, sets].every((list) => list == null)) {
    // A rule that says nothing at all allows nothing: that is how a default deny is written.
    const saysPorts = [raw.toPorts, raw.icmps].some((list) => (list ?? []).length > 0);
    return saysPorts ? [{ kind: 'all' }] : [];
  }
  return [
    ...(endpoints ?? []).map((selector): PolicyPeer => {
      return { kind: 'labels', selector: scoped(toSelector(selector, 'any'), scope) };
    }),
    ...(entities ?? []).flatMap((entity) => entityPeers(entity, cluster)),
    ...(cidrs ?? []).map((cidr): PolicyPeer => ({ kind: 'cidr', cidr, except: [] })),
    ...(sets ?? []).map((set, index): PolicyPeer => {
      const here = `${path}.${pathOfSets}[${index}]`;
      refuseUnknown(set, ['cidr', 'except'], here);
      if (set.cidr == null) throw new Unsupported(here, 'a set without a cidr is not supported');
      return { kind: 'cidr', cidr: set.cidr, except: set.except ?? [] };
    }),
  ];
}

function toRule(raw: RawRule, place: Place, scope: Scope, cluster: string, refusals: Refusals): PolicyRule[] {
  const { direction, effect, path } = place;
  try {
    refuseUnknown(raw, [...peersOf(raw, direction).fields, 'toPorts', 'icmps'], path);
    return [{ direction, effect, peers: toPeers(raw, place, scope, cluster), layer4: toLayer4(raw, path) }];
  } catch (error) {
    if (!(error instanceof Unsupported)) throw error;
    const instead = refusals.rule(direction, effect, error.path, error.message);
    return instead === undefined ? [] : [instead];
  }
}

function toSpec(spec: Spec, path: string, scope: Scope, context: PolicyContext, refusals: Refusals): PolicySpec[] {
  const unknown = unknownField(spec, SPEC_FIELDS);
  const rules: PolicyRule[] = [];
  for (const list of LISTS) {
    const direction = list.startsWith('ingress') ? 'ingress' : 'egress';
    const effect = list.endsWith('Deny') ? 'deny' : 'allow';
    for (const [index, raw] of (spec[list] ?? []).entries()) {
      const place: Place = { direction, effect, path: `${path}.${list}[${index}]` };
      if (unknown === undefined) rules.push(...toRule(raw, place, scope, context.cluster, refusals));
      else {
        const instead = refusals.rule(direction, effect, `${path}.${unknown}`, reasonFor(unknown));
        if (instead !== undefined) rules.push(instead);
      }
    }
  }
  const has = (...lists: List[]) => lists.some((list) => (spec[list] ?? []).length > 0);
  const subject: Requirement[] = [
    ...toSelector(spec.endpointSelector ?? {}, 'any'),
    scope.namespace === '' ? isPod : inNamespace(scope.namespace),
  ];
  const defaultDeny = {
    ingress: spec.enableDefaultDeny?.ingress ?? has('ingress', 'ingressDeny'),
    egress: spec.enableDefaultDeny?.egress ?? has('egress', 'egressDeny'),
  };
  return [{ subject, defaultDeny, rules }];
}

/** `namespace` is empty for clusterwide policies. */
export function ciliumSpecs(
  body: CiliumPolicyBody,
  namespace: string,
  context: PolicyContext,
): { readonly specs: PolicySpec[]; readonly refused: readonly string[] } {
  const refusals = createRefusals();
  const nodes: string[] = [];
  const scope: Scope = { namespace, defaultCluster: context.defaultLocalCluster ? context.cluster : undefined };
  const all = [
    ...(body.spec == null ? [] : [{ spec: body.spec, path: 'spec' }]),
    ...(body.specs ?? []).map((spec, index) => ({ spec, path: `specs[${index}]` })),
  ];
  const specs = all.flatMap(({ spec, path }) => {
    if (spec['nodeSelector'] == null) return toSpec(spec, path, scope, context, refusals);
    nodes.push(
      `${path}.nodeSelector: policies for nodes are not supported; it is not enforced, nodes are as open as before`,
    );
    return [];
  });
  return { specs, refused: [...refusals.sentences, ...nodes] };
}
