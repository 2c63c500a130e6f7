/**
 * Kubernetes YAML as the lab reads it. Pods, Deployments and Namespaces are acted upon here and checked here; Services,
 * EndpointSlices and network policies are the apiserver's to judge, so anything with a kind and a name passes through as written. Pure.
 */
import { isDnsSubdomain } from '@clustermesh/contract';
import { LineCounter, parseAllDocuments } from 'yaml';
import { z } from 'zod';

const stringMap = z.record(z.string(), z.string());

const metadataSchema = z.looseObject({
  name: z.string().refine(isDnsSubdomain, 'is no lower case DNS name'),
  namespace: z.string().refine(isDnsSubdomain, 'is no lower case DNS name').default('default'),
  labels: stringMap.default({}),
});

const containerSchema = z.looseObject({
  command: z.array(z.string()).min(1, 'the lab runs processes, not images: give a command'),
  args: z.array(z.string()).default([]),
  env: z.array(z.looseObject({ name: z.string().min(1), value: z.coerce.string().default('') })).default([]),
  ports: z
    .array(
      z.looseObject({
        name: z.string().optional(),
        containerPort: z.number().int().min(1).max(65535),
        protocol: z.enum(['TCP', 'UDP', 'SCTP']).default('TCP'),
      }),
    )
    .default([]),
});

const podSpecSchema = z.looseObject({
  containers: z.array(containerSchema).length(1, 'the lab runs exactly one container per pod'),
  nodeName: z.string().optional(),
  nodeSelector: stringMap.default({}),
  restartPolicy: z.enum(['Always', 'OnFailure', 'Never']).default('Always'),
  serviceAccountName: z.string().default('default'),
  terminationGracePeriodSeconds: z.number().min(0).max(30).default(2),
});
export type PodSpec = z.infer<typeof podSpecSchema>;

const podSchema = z.looseObject({ spec: podSpecSchema });

const deploymentSchema = z.looseObject({
  spec: z.looseObject({
    replicas: z.number().int().min(0).max(200).default(1),
    template: z.looseObject({
      metadata: z.looseObject({ labels: stringMap.default({}) }).default({ labels: {} }),
      spec: podSpecSchema,
    }),
  }),
});

interface Named {
  readonly namespace: string;
  readonly name: string;
  /** The document as written, with its namespace filled in. */
  readonly raw: Readonly<Record<string, unknown>>;
}

export interface PodTemplate {
  readonly labels: Readonly<Record<string, string>>;
  readonly spec: PodSpec;
}

/** Kinds that the lab hands on as they were written. */
const PASSED_ON = [
  'Namespace',
  'Service',
  'EndpointSlice',
  'NetworkPolicy',
  'CiliumNetworkPolicy',
  'CiliumClusterwideNetworkPolicy',
] as const;
type PassedOn = (typeof PASSED_ON)[number];
const CLUSTER_SCOPED: readonly string[] = ['Namespace', 'CiliumClusterwideNetworkPolicy'];

export type LabObject =
  | (Named & { readonly kind: PassedOn })
  | (Named & { readonly kind: 'Pod'; readonly template: PodTemplate })
  | (Named & { readonly kind: 'Deployment'; readonly replicas: number; readonly template: PodTemplate });

export type ParsedDocument = { readonly object: LabObject } | { readonly at: string; readonly problem: string };

export const SUPPORTED_KINDS = [...PASSED_ON, 'Deployment', 'Pod'] as const;

export function objectName(object: Pick<LabObject, 'kind' | 'namespace' | 'name'>): string {
  const { kind, namespace, name } = object;
  return CLUSTER_SCOPED.includes(kind) ? `${kind} ${name}` : `${kind} ${namespace}/${name}`;
}

/** Every document of a file by itself: what is wrong in one says nothing about the others. */
export function parseObjects(text: string, source: string): ParsedDocument[] {
  const lines = new LineCounter();
  const documents = parseAllDocuments(text, { lineCounter: lines });
  if ('empty' in documents) return [];
  const results: ParsedDocument[] = [];
  for (const document of documents) {
    const start = document.contents?.range?.[0] ?? document.range[0];
    const at = `${source}:${lines.linePos(start).line}`;
    const [error] = document.errors;
    if (error !== undefined) {
      results.push({
        at: error.linePos === undefined ? at : `${source}:${error.linePos[0].line}`,
        problem: `is no valid YAML: ${error.message.split('\n')[0]}`,
      });
      continue;
    }
    const raw: unknown = document.toJS();
    if (raw === null) continue;
    results.push(readObject(raw, at));
  }
  return results;
}

function readObject(raw: unknown, at: string): ParsedDocument {
  if (typeof raw !== 'object' || raw === null || Array.isArray(raw))
    return { at, problem: 'is no Kubernetes object (expected apiVersion, kind, metadata)' };
  const kind = (raw as { kind?: unknown }).kind;
  if (!SUPPORTED_KINDS.some((known) => known === kind)) {
    return {
      at,
      problem: `kind ${JSON.stringify(kind) ?? 'missing'} is not supported; the lab knows ${SUPPORTED_KINDS.join(', ')}`,
    };
  }
  const parsed = metadataSchema.safeParse((raw as { metadata?: unknown }).metadata);
  if (!parsed.success) return { at, problem: `${kind}: ${problemsOf(parsed.error, 'metadata')}` };
  const metadata = parsed.data;
  const isClusterScoped = CLUSTER_SCOPED.includes(kind as string);
  const written = (raw as { metadata: Record<string, unknown> }).metadata;
  const named: Named = {
    name: metadata.name,
    namespace: isClusterScoped ? metadata.name : metadata.namespace,
    raw: { ...raw, metadata: isClusterScoped ? written : { ...written, namespace: metadata.namespace } },
  };
  if (kind === 'Pod') {
    const pod = podSchema.safeParse(raw);
    if (!pod.success) return { at, problem: `Pod ${named.namespace}/${named.name}: ${problemsOf(pod.error)}` };
    return { object: { ...named, kind, template: { labels: metadata.labels, spec: pod.data.spec } } };
  }
  if (kind === 'Deployment') {
    const deployment = deploymentSchema.safeParse(raw);
    if (!deployment.success)
      return { at, problem: `Deployment ${named.namespace}/${named.name}: ${problemsOf(deployment.error)}` };
    const { replicas, template } = deployment.data.spec;
    return {
      object: { ...named, kind, replicas, template: { labels: template.metadata.labels, spec: template.spec } },
    };
  }
  return { object: { ...named, kind: kind as PassedOn } };
}

function problemsOf(error: z.ZodError, prefix?: string): string {
  return error.issues
    .map(
      (issue) =>
        `${[...(prefix === undefined ? [] : [prefix]), ...issue.path].join('.') || '(object)'}: ${issue.message}`,
    )
    .join('; ');
}

/** `$(NAME)` as Kubernetes expands it in command, args and env: unknown names stay as written. */
export function expandVariables(text: string, env: Readonly<Record<string, string>>): string {
  return text.replace(/\$\(([A-Za-z_][A-Za-z0-9_]*)\)/g, (whole, name: string) => env[name] ?? whole);
}
