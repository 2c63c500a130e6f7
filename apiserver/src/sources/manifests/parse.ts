/** Text of one file → objects and readable problems. Pure. A bad document never hides the good ones beside it. */
import { parseAllDocuments } from 'yaml';
import type { z } from 'zod';
import {
  type CiliumPolicyManifest,
  ciliumPolicySchema,
  clusterwidePolicySchema,
  type EndpointSliceManifest,
  endpointSliceSchema,
  type NamespaceManifest,
  type NetworkPolicyManifest,
  namespaceSchema,
  networkPolicySchema,
  type ServiceManifest,
  serviceSchema,
} from './schemas.ts';

export type ManifestObject =
  | { readonly kind: 'Namespace'; readonly key: string; readonly object: NamespaceManifest }
  | { readonly kind: 'Service'; readonly key: string; readonly object: ServiceManifest }
  | { readonly kind: 'EndpointSlice'; readonly key: string; readonly object: EndpointSliceManifest }
  | { readonly kind: 'NetworkPolicy'; readonly key: string; readonly object: NetworkPolicyManifest }
  | {
      readonly kind: 'CiliumNetworkPolicy' | 'CiliumClusterwideNetworkPolicy';
      readonly key: string;
      readonly object: CiliumPolicyManifest;
    };

/** An object and where it stands, as `file.yaml, document 2`. */
export type LocatedObject = ManifestObject & { readonly where: string };

export interface ParsedFile {
  readonly objects: readonly LocatedObject[];
  /** One sentence per malformed document. */
  readonly problems: readonly string[];
  /** Documents that are fine but not ours to read. */
  readonly notes: readonly string[];
  /** Namespaces whose document is malformed but names them: closed to the mesh unless a good version is known. */
  readonly brokenNamespaces: readonly string[];
}

type Kind = ManifestObject['kind'];
const SCHEMAS: Readonly<Record<string, { readonly kind: Kind; readonly schema: z.ZodType }>> = {
  'v1/Namespace': { kind: 'Namespace', schema: namespaceSchema },
  'v1/Service': { kind: 'Service', schema: serviceSchema },
  'discovery.k8s.io/v1/EndpointSlice': { kind: 'EndpointSlice', schema: endpointSliceSchema },
  'networking.k8s.io/v1/NetworkPolicy': { kind: 'NetworkPolicy', schema: networkPolicySchema },
  'cilium.io/v2/CiliumNetworkPolicy': { kind: 'CiliumNetworkPolicy', schema: ciliumPolicySchema },
  'cilium.io/v2/CiliumClusterwideNetworkPolicy': {
    kind: 'CiliumClusterwideNetworkPolicy',
    schema: clusterwidePolicySchema,
  },
};
/** Kinds whose objects are of no namespace. */
const CLUSTER_SCOPED: ReadonlySet<Kind> = new Set(['Namespace', 'CiliumClusterwideNetworkPolicy']);

/** Bounds what a file of YAML aliases can unfold to. */
const MAX_ALIASES = 100;

export function parseManifestFile(file: string, text: string): ParsedFile {
  const objects: LocatedObject[] = [];
  const problems: string[] = [];
  const notes: string[] = [];
  const brokenNamespaces: string[] = [];

  const readObject = (raw: unknown, where: string): void => {
    const head = raw as { apiVersion?: unknown; kind?: unknown; items?: unknown; metadata?: { name?: unknown } };
    if (
      typeof raw !== 'object' ||
      raw === null ||
      typeof head.kind !== 'string' ||
      typeof head.apiVersion !== 'string'
    ) {
      problems.push(`${where}: apiVersion and kind are needed, this is no Kubernetes object`);
      return;
    }
    if (head.apiVersion === 'v1' && head.kind === 'List') {
      if (!Array.isArray(head.items)) problems.push(`${where}: List: items must be a list`);
      else for (const [index, item] of head.items.entries()) readObject(item, `${where}, item ${index + 1}`);
      return;
    }
    const known = SCHEMAS[`${head.apiVersion}/${head.kind}`];
    if (known === undefined) {
      notes.push(`${where}: kind ${head.kind} of ${head.apiVersion} is not read by the mesh, ignored`);
      return;
    }
    const parsed = known.schema.safeParse(raw);
    if (!parsed.success) {
      const name = typeof head.metadata?.name === 'string' ? ` ${head.metadata.name}` : '';
      const issues = parsed.error.issues
        .slice(0, 5)
        .map((issue) => `${issue.path.join('.') || '(document)'}: ${issue.message}`);
      problems.push(`${where}: ${head.kind}${name}: ${issues.join('; ')}`);
      if (known.kind === 'Namespace' && typeof head.metadata?.name === 'string')
        brokenNamespaces.push(head.metadata.name);
      return;
    }
    const object = parsed.data as NamespaceManifest;
    const { name: bare, namespace } = object.metadata;
    const name = CLUSTER_SCOPED.has(known.kind) ? bare : `${namespace}/${bare}`;
    objects.push({ kind: known.kind, key: `${known.kind} ${name}`, object, where } as LocatedObject);
  };

  parseAllDocuments(text).forEach((document, index) => {
    const where = `${file}, document ${index + 1}`;
    const error = document.errors[0];
    if (error !== undefined) {
      problems.push(`${where}: not YAML: ${error.message.split('\n')[0]}`);
      return;
    }
    let raw: unknown;
    try {
      raw = document.toJS({ maxAliasCount: MAX_ALIASES });
    } catch (failure) {
      problems.push(`${where}: not YAML: ${failure instanceof Error ? failure.message : String(failure)}`);
      return;
    }
    if (raw === null || raw === undefined) return;
    readObject(raw, where);
  });
  return { objects, problems, notes, brokenNamespaces };
}
