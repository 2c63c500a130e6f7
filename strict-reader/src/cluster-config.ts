/** The handshake (wire-contract §1.3, §5.2): what the cluster says of itself, and which families it follows that are read. */
import { type Context, flag, readJson, struct, text, unsigned } from './shapes.ts';

export interface ConfigExpectation {
  readonly layout: 'state' | 'cache';
  /** Of the reader's own cluster. */
  readonly ownId?: number | undefined;
  readonly maxConnectedClusters: 255 | 511;
  readonly allowUnknownFields: boolean;
}

export interface AcceptedConfig {
  readonly id: number;
  readonly hasCanaries: boolean;
  readonly families: readonly string[];
}

const shape = struct(
  {
    id: unsigned(32),
    // A struct in Go, so it is there even when everything in it is left out.
    capabilities: struct(
      {},
      {
        syncedCanaries: flag,
        cached: flag,
        maxConnectedClusters: unsigned(32, 1),
        serviceExportsEnabled: flag,
        endpointSlicesExportMode: text,
      },
    ),
  },
  { 'x-clustermesh': () => {} },
);

const EXPORT_MODES = ['', 'services-and-endpointslices', 'endpointslices-only'];

/** Undefined when a reader would refuse the cluster. `problems` say why, and name what it would put up with as well. */
export function acceptConfig(
  value: Buffer,
  expected: ConfigExpectation,
  problems: string[],
): AcceptedConfig | undefined {
  const context: Context = { problems, allowUnknown: expected.allowUnknownFields };
  const config = readJson(value, shape, context) as
    | { id?: unknown; capabilities?: Record<string, boolean | number | string | undefined> }
    | undefined;
  if (typeof config?.id !== 'number') return undefined;
  const { id, capabilities = {} } = config;
  const { layout, maxConnectedClusters: max } = expected;
  const fatal: string[] = [];
  if (!Number.isInteger(id) || id < 1 || id > max) fatal.push(`id ${id} is not in 1…${max}`);
  if (id === expected.ownId) fatal.push(`id ${id} is the reader's own`);
  const theirs = capabilities['maxConnectedClusters'] ?? 255;
  if (theirs !== max) fatal.push(`maxConnectedClusters is ${theirs}, the reader's is ${max}`);
  const mode = String(capabilities['endpointSlicesExportMode'] ?? '');
  if (!EXPORT_MODES.includes(mode)) fatal.push(`endpointSlicesExportMode is the unknown ${JSON.stringify(mode)}`);
  const cached = capabilities['cached'] === true;
  if (cached !== (layout === 'cache'))
    fatal.push(`capability cached is ${cached}: a reader would look in the ${cached ? 'cache' : 'state'} layout`);
  if (cached && capabilities['syncedCanaries'] !== true) fatal.push('a mirror that writes no canaries');
  problems.push(...fatal);
  if (fatal.length > 0) return undefined;
  const families = ['nodes', 'identities', 'ip'];
  if (mode !== 'endpointslices-only') families.push('services');
  if (capabilities['serviceExportsEnabled'] !== undefined) families.push('serviceexports');
  if (mode !== '') families.push('endpointslices');
  return { id, hasCanaries: capabilities['syncedCanaries'] === true, families };
}
