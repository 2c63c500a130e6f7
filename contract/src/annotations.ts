/** Service and namespace annotations: wire-contract §3.1. Invalid values are reported and the default is used. */

export const ANNOTATION = {
  global: 'service.cilium.io/global',
  shared: 'service.cilium.io/shared',
  affinity: 'service.cilium.io/affinity',
  lbAlgorithm: 'service.cilium.io/lb-algorithm',
  /** Of an EndpointSlice: the weight of each of its backends. */
  weight: 'service.cilium.io/weight',
  namespaceGlobal: 'clustermesh.cilium.io/global',
} as const;

const ALIAS: Readonly<Record<string, string>> = {
  [ANNOTATION.global]: 'io.cilium/global-service',
  [ANNOTATION.shared]: 'io.cilium/shared-service',
  [ANNOTATION.affinity]: 'io.cilium/service-affinity',
};

export type Affinity = 'none' | 'local' | 'remote';

export const LB_ALGORITHMS = ['random', 'maglev'] as const;
export type LbAlgorithm = (typeof LB_ALGORITHMS)[number];

/** Of a backend, relative to the others. 0: no new connections. */
export const DEFAULT_WEIGHT = 1;
export const MAX_WEIGHT = 65_535;

export interface ServiceMeshSettings {
  readonly global: boolean;
  readonly shared: boolean;
  readonly affinity: Affinity;
  readonly lbAlgorithm: LbAlgorithm;
  /** One sentence per value that was not understood; the default was used in its place. */
  readonly problems: readonly string[];
}

type Annotations = Readonly<Record<string, string>> | undefined;

function lookup(annotations: Annotations, key: string): { readonly key: string; readonly value: string } | undefined {
  for (const name of [key, ALIAS[key]]) {
    const value = name === undefined ? undefined : annotations?.[name];
    if (name !== undefined && value !== undefined) return { key: name, value };
  }
  return undefined;
}

/** Case-insensitive equality with "true", as Cilium reads them; anything but true/false is worth a report. */
function readBoolean(annotations: Annotations, key: string, fallback: boolean, problems: string[]): boolean {
  const found = lookup(annotations, key);
  if (found === undefined) return fallback;
  const value = found.value.toLowerCase();
  if (value !== 'true' && value !== 'false') {
    problems.push(
      `annotation ${found.key} has value ${JSON.stringify(found.value)}, expected "true" or "false"; taken as "false"`,
    );
  }
  return value === 'true';
}

export function readServiceAnnotations(annotations: Annotations): ServiceMeshSettings {
  const problems: string[] = [];
  const global = readBoolean(annotations, ANNOTATION.global, false, problems);
  const shared = readBoolean(annotations, ANNOTATION.shared, true, problems);
  const found = lookup(annotations, ANNOTATION.affinity);
  let affinity: Affinity = 'none';
  if (found !== undefined) {
    const value = found.value.toLowerCase();
    if (value === 'none' || value === 'local' || value === 'remote') affinity = value;
    else
      problems.push(
        `annotation ${found.key} has value ${JSON.stringify(found.value)}, expected "local", "remote" or "none"; taken as "none"`,
      );
  }
  return {
    global,
    shared: global && shared,
    affinity,
    lbAlgorithm: readLbAlgorithm(annotations, problems),
    problems,
  };
}

function readLbAlgorithm(annotations: Annotations, problems: string[]): LbAlgorithm {
  const found = lookup(annotations, ANNOTATION.lbAlgorithm);
  const algorithm = LB_ALGORITHMS.find((name) => name === found?.value.toLowerCase());
  if (found !== undefined && algorithm === undefined)
    problems.push(
      `annotation ${found.key} has value ${JSON.stringify(found.value)}, expected "random" or "maglev"; taken as "random"`,
    );
  return algorithm ?? 'random';
}

/** The weight that an EndpointSlice gives its backends; what is no weight is reported and taken as the default. */
export function readWeight(annotations: Annotations): {
  readonly weight: number;
  readonly problems: readonly string[];
} {
  const found = lookup(annotations, ANNOTATION.weight);
  if (found === undefined) return { weight: DEFAULT_WEIGHT, problems: [] };
  const weight = /^\d{1,5}$/.test(found.value) ? Number(found.value) : Number.NaN;
  if (weight <= MAX_WEIGHT) return { weight, problems: [] };
  return {
    weight: DEFAULT_WEIGHT,
    problems: [
      `annotation ${found.key} has value ${JSON.stringify(found.value)}, expected an integer of 0 … ${MAX_WEIGHT}; taken as ${DEFAULT_WEIGHT}`,
    ],
  };
}

export function readNamespaceGlobal(
  annotations: Annotations,
  byDefault: boolean,
): { readonly global: boolean; readonly problems: readonly string[] } {
  const problems: string[] = [];
  return { global: readBoolean(annotations, ANNOTATION.namespaceGlobal, byDefault, problems), problems };
}
