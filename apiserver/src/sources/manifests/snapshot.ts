/** Objects in force → the cluster's own services, slices and namespaces, as immutable values. Pure. */
import {
  DEFAULT_WEIGHT,
  type LocalNamespace,
  type LocalPolicy,
  type LocalService,
  type LocalSlice,
  type PolicyContext,
  readNamespaceGlobal,
  readServiceAnnotations,
  readWeight,
} from '@clustermesh/contract';
import { allocateAddresses, type ClusterIps, isHeadless, type ServiceCidrs } from './addresses.ts';
import { readExternal } from './external.ts';
import type { LocatedObject } from './parse.ts';
import { readPolicies } from './policies.ts';
import { SERVICE_NAME_LABEL } from './schemas.ts';

export interface ManifestSnapshot {
  readonly namespaces: ReadonlyMap<string, LocalNamespace>;
  /** By `namespace/name`. */
  readonly services: ReadonlyMap<string, LocalService>;
  /** By `namespace/name`. */
  readonly slices: ReadonlyMap<string, LocalSlice>;
  /** By `namespace/name`: what of a slice only its export as a slice needs. */
  readonly sliceMeta: ReadonlyMap<string, SliceMeta>;
  /** By `policyName`. */
  readonly policies: ReadonlyMap<string, LocalPolicy>;
  /** For namespaces that no manifest declares. */
  readonly defaultGlobalNamespace: boolean;
  /** Readable sentences, each with its place. */
  readonly problems: readonly string[];
  readonly notes: readonly string[];
}

export interface SliceMeta {
  readonly addressType: 'IPv4' | 'IPv6';
  readonly labels: Readonly<Record<string, string>>;
  readonly annotations: Readonly<Record<string, string>>;
}

export interface SnapshotInput {
  /** In the order of file names: of two definitions of one object the first counts. */
  readonly objects: readonly LocatedObject[];
  /** Named by a malformed document only: closed, because nobody knows what the document was going to say. */
  readonly brokenNamespaces: readonly string[];
  readonly problems: readonly string[];
  readonly notes: readonly string[];
  readonly defaultGlobalNamespace: boolean;
  readonly policies: PolicyContext;
  readonly serviceCidrs: ServiceCidrs;
  readonly previousIps: ClusterIps;
}

export interface SnapshotResult {
  readonly snapshot: ManifestSnapshot;
  /** To be persisted before the snapshot is used. */
  readonly clusterIps: ClusterIps;
}

/** Whether a namespace takes part in the mesh. */
export function isGlobalNamespace(snapshot: ManifestSnapshot, namespace: string): boolean {
  return snapshot.namespaces.get(namespace)?.global ?? snapshot.defaultGlobalNamespace;
}

/** Kubernetes' default: three hours. */
const DEFAULT_SESSION_AFFINITY_SECONDS = 10_800;

type Of<K extends LocatedObject['kind']> = Extract<LocatedObject, { kind: K }>;

export function buildSnapshot(input: SnapshotInput): SnapshotResult {
  const problems = [...input.problems];
  const notes = [...input.notes];

  const unique = new Map<string, LocatedObject>();
  for (const object of input.objects) {
    const first = unique.get(object.key);
    if (first === undefined) unique.set(object.key, object);
    else problems.push(`${object.where}: ${object.key} is already defined in ${first.where}, which stays in force`);
  }
  const ofKind = <K extends LocatedObject['kind']>(kind: K) =>
    [...unique.values()].filter((o): o is Of<K> => o.kind === kind);

  const namespaces = new Map<string, LocalNamespace>();
  for (const { object, where, key } of ofKind('Namespace')) {
    const { name, annotations, labels } = object.metadata;
    const read = readNamespaceGlobal(annotations, input.defaultGlobalNamespace);
    problems.push(...read.problems.map((problem) => `${where}: ${key}: ${problem}`));
    namespaces.set(name, { name, global: read.global, labels });
  }
  for (const name of input.brokenNamespaces) {
    if (namespaces.has(name)) continue;
    namespaces.set(name, { name, global: false, labels: {} });
    problems.push(`Namespace ${name}: kept out of the mesh until its malformed document is right`);
  }
  const isGlobal = (namespace: string) => namespaces.get(namespace)?.global ?? input.defaultGlobalNamespace;

  const manifests = ofKind('Service').flatMap((service) => {
    if (service.object.spec.type !== 'ExternalName') return [service];
    notes.push(`${service.where}: ${service.key}: an ExternalName service has no backends, ignored`);
    return [];
  });
  const addresses = allocateAddresses(manifests, input.serviceCidrs, input.previousIps);
  problems.push(...addresses.problems);

  const services = new Map<string, LocalService>();
  const nodePorts = new Map<string, string>();
  for (const manifest of manifests) {
    const clusterIPs = addresses.of(manifest);
    if (!isHeadless(manifest) && clusterIPs.length === 0) continue;
    const { metadata, spec } = manifest.object;
    const mesh = readServiceAnnotations(metadata.annotations);
    problems.push(...mesh.problems.map((problem) => `${manifest.where}: ${manifest.key}: ${problem}`));
    const global = mesh.global && isGlobal(metadata.namespace);
    if (mesh.global && !global)
      notes.push(`${manifest.where}: ${manifest.key}: is annotated global, but its namespace is not`);
    for (const { protocol, port, targetPort } of spec.ports) {
      if (protocol === 'SCTP' && targetPort != null && targetPort !== port)
        problems.push(
          `${manifest.where}: ${manifest.key}: port ${port}/SCTP has the targetPort ${targetPort}: SCTP ports cannot be translated, because its checksum covers them; no connection is made through this port. Give both the same number`,
        );
    }
    const name = `${metadata.namespace}/${metadata.name}`;
    const external = readExternal(name, manifest.object, nodePorts);
    problems.push(...external.problems.map((problem) => `${manifest.where}: ${manifest.key}: ${problem}`));
    services.set(name, {
      namespace: metadata.namespace,
      name: metadata.name,
      clusterIPs,
      ports: [...external.ports],
      ...external.face,
      global,
      shared: global && mesh.shared,
      affinity: mesh.affinity,
      ...(mesh.lbAlgorithm === 'random' ? {} : { lbAlgorithm: mesh.lbAlgorithm }),
      ...(spec.sessionAffinity === 'ClientIP'
        ? {
            sessionAffinitySeconds:
              spec.sessionAffinityConfig?.clientIP?.timeoutSeconds ?? DEFAULT_SESSION_AFFINITY_SECONDS,
          }
        : {}),
      labels: metadata.labels,
      selector: spec.selector ?? null,
    });
  }

  const slices = new Map<string, LocalSlice>();
  const sliceMeta = new Map<string, SliceMeta>();
  for (const { object, where, key } of ofKind('EndpointSlice')) {
    if (object.addressType === 'FQDN') {
      notes.push(`${where}: ${key}: addressType FQDN cannot be a backend, ignored`);
      continue;
    }
    const { namespace, name, labels, annotations } = object.metadata;
    const { weight, problems: weightProblems } = readWeight(annotations);
    problems.push(...weightProblems.map((problem) => `${where}: ${key}: ${problem}`));
    sliceMeta.set(`${namespace}/${name}`, { addressType: object.addressType, labels, annotations: annotations ?? {} });
    slices.set(`${namespace}/${name}`, {
      namespace,
      name,
      service: labels[SERVICE_NAME_LABEL] ?? '',
      endpoints: object.endpoints.map((endpoint) => {
        const ready = endpoint.conditions.ready ?? true;
        return {
          addresses: endpoint.addresses,
          ready,
          serving: endpoint.conditions.serving ?? ready,
          terminating: endpoint.conditions.terminating ?? false,
          ...(endpoint.zone === undefined ? {} : { zone: endpoint.zone }),
          ...(endpoint.nodeName === undefined ? {} : { nodeName: endpoint.nodeName }),
          ...(endpoint.hostname === undefined ? {} : { hostname: endpoint.hostname }),
        };
      }),
      ports: object.ports.map((port) => ({ name: port.name ?? '', protocol: port.protocol, port: port.port })),
      ...(weight === DEFAULT_WEIGHT ? {} : { weight }),
    });
  }

  const policies = readPolicies([...unique.values()], input.policies);
  problems.push(...policies.problems);

  for (const namespace of new Set([...services.values(), ...slices.values()].map((object) => object.namespace))) {
    if (!namespaces.has(namespace))
      namespaces.set(namespace, { name: namespace, global: input.defaultGlobalNamespace, labels: {} });
  }

  const snapshot = {
    namespaces,
    services,
    slices,
    sliceMeta,
    policies: policies.policies,
    defaultGlobalNamespace: input.defaultGlobalNamespace,
    problems,
    notes,
  };
  return { snapshot, clusterIps: addresses.assigned };
}
