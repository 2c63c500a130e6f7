/** The endpoint controller: Services and pods in, EndpointSlices out. Pure. */
import { createHash } from 'node:crypto';
import { z } from 'zod';
import type { LabObject, PodSpec } from './objects.ts';

/** What the endpoint controller has to understand of a Service; the rest is the apiserver's. */
const selectableSchema = z.looseObject({
  spec: z.looseObject({
    selector: z.record(z.string(), z.string()),
    ipFamilies: z.array(z.enum(['IPv4', 'IPv6'])).default([]),
    ipFamilyPolicy: z.string().optional(),
    ports: z
      .array(
        z.looseObject({
          name: z.string().default(''),
          protocol: z.enum(['TCP', 'UDP', 'SCTP']).default('TCP'),
          port: z.number().int(),
          targetPort: z.union([z.number().int(), z.string()]).optional(),
        }),
      )
      .default([]),
  }),
});

export interface SlicePod {
  readonly namespace: string;
  readonly name: string;
  readonly node: string;
  readonly zone: string;
  readonly ip: string;
  readonly ipv6?: string;
  readonly labels: Readonly<Record<string, string>>;
  readonly spec: PodSpec;
  readonly ready: boolean;
  /** Its process is alive and its ports answer, whether or not it is being deleted. */
  readonly serving: boolean;
  readonly terminating: boolean;
}

type AddressType = 'IPv4' | 'IPv6';

export interface EndpointSlice {
  readonly apiVersion: 'discovery.k8s.io/v1';
  readonly kind: 'EndpointSlice';
  readonly metadata: {
    readonly name: string;
    readonly namespace: string;
    readonly labels: Readonly<Record<string, string>>;
  };
  readonly addressType: AddressType;
  readonly ports: readonly { readonly name: string; readonly protocol: string; readonly port: number }[];
  readonly endpoints: readonly object[];
}

const matches = (selector: Readonly<Record<string, string>>, labels: Readonly<Record<string, string>>) =>
  Object.entries(selector).every(([key, value]) => labels[key] === value);

/** The service's selector and ports, or undefined when it selects nothing or is not understood. */
function selectable(service: LabObject) {
  const parsed = selectableSchema.safeParse(service.raw);
  return parsed.success && Object.keys(parsed.data.spec.selector).length > 0 ? parsed.data.spec : undefined;
}

/** A named target port is looked up in the pod, so pods of two versions may resolve it differently. */
function resolvePort(
  port: { port: number; targetPort?: string | number | undefined; protocol: string },
  spec: PodSpec,
): number | undefined {
  const target = port.targetPort ?? port.port;
  if (typeof target === 'number') return target;
  return spec.containers[0]?.ports.find(
    (candidate) => candidate.name === target && candidate.protocol === port.protocol,
  )?.containerPort;
}

/** TCP ports that services expect of this pod: what readiness is judged by when the pod declares none itself. */
export function targetPortsOf(
  services: Iterable<LabObject>,
  pod: Pick<SlicePod, 'namespace' | 'labels' | 'spec'>,
): number[] {
  const ports = new Set<number>();
  for (const service of services) {
    if (service.kind !== 'Service' || service.namespace !== pod.namespace) continue;
    const spec = selectable(service);
    if (spec === undefined || !matches(spec.selector, pod.labels)) continue;
    for (const port of spec.ports) {
      const resolved = port.protocol === 'TCP' ? resolvePort(port, pod.spec) : undefined;
      if (resolved !== undefined) ports.add(resolved);
    }
  }
  return [...ports];
}

type Selectable = NonNullable<ReturnType<typeof selectable>>;

/** As a cluster of two families understands a Service; its first is IPv4. */
function familiesOf({ ipFamilies, ipFamilyPolicy }: Selectable): readonly AddressType[] {
  if (ipFamilyPolicy?.endsWith('DualStack')) return ['IPv4', 'IPv6'];
  return ipFamilies.length === 0 ? ['IPv4'] : ipFamilies;
}

/** All slices of one service: one per address family and distinct set of resolved ports, named stably after them. */
export function slicesOf(service: LabObject, pods: readonly SlicePod[]): EndpointSlice[] {
  const spec = selectable(service);
  if (spec === undefined) return [];
  return familiesOf(spec).flatMap((family) => slicesOfFamily(service, spec, family, pods));
}

function slicesOfFamily(
  service: LabObject,
  spec: Selectable,
  addressType: AddressType,
  pods: readonly SlicePod[],
): EndpointSlice[] {
  const addressOf = (pod: SlicePod) => (addressType === 'IPv4' ? pod.ip : pod.ipv6);
  const groups = new Map<string, { readonly ports: EndpointSlice['ports']; readonly pods: SlicePod[] }>();
  for (const pod of pods) {
    if (pod.namespace !== service.namespace || !matches(spec.selector, pod.labels)) continue;
    if (addressOf(pod) === undefined) continue;
    const ports = spec.ports.flatMap((port) => {
      const resolved = resolvePort(port, pod.spec);
      return resolved === undefined ? [] : [{ name: port.name, protocol: port.protocol, port: resolved }];
    });
    const key = JSON.stringify(addressType === 'IPv4' ? ports : [addressType, ports]);
    const group = groups.get(key);
    if (group === undefined) groups.set(key, { ports, pods: [pod] });
    else group.pods.push(pod);
  }
  return [...groups].map(([key, group]) => ({
    apiVersion: 'discovery.k8s.io/v1',
    kind: 'EndpointSlice',
    metadata: {
      name: `${service.name}-${createHash('sha256').update(key).digest('hex').slice(0, 5)}`,
      namespace: service.namespace,
      labels: {
        'kubernetes.io/service-name': service.name,
        'endpointslice.kubernetes.io/managed-by': 'clustermesh-lab',
      },
    },
    addressType,
    ports: group.ports,
    endpoints: group.pods
      .toSorted((a, b) => (a.name < b.name ? -1 : 1))
      .map((pod) => ({
        addresses: [addressOf(pod)],
        conditions: { ready: pod.ready && !pod.terminating, serving: pod.serving, terminating: pod.terminating },
        nodeName: pod.node,
        zone: pod.zone,
        targetRef: { kind: 'Pod', namespace: pod.namespace, name: pod.name },
      })),
  }));
}
