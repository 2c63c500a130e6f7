/** Checks an EndpointAdd before anything is done for it: all that is wrong is said at once. */
import {
  type Cidr,
  canonicalIp,
  cidrContains,
  type EndpointAddRequest,
  formatLabels,
  ipv4Contains,
  ipv4ToNumber,
  isDnsSubdomain,
  isIpv4,
  isReservedLabel,
  MeshError,
  type NamedPort,
  namedPortSchema,
  parseCidr,
  podIdentityLabels,
} from '@clustermesh/contract';

const ENDPOINT_ID = /^[A-Za-z0-9][A-Za-z0-9._:-]{0,252}$/;
const MAC = /^([0-9a-f]{2}:){5}[0-9a-f]{2}$/i;
/** Linux: at most 15 bytes, no slash, no white space. */
const INTERFACE = /^[^\s/]{1,15}$/;

/** The facts of an endpoint, checked; `labels` is the identity's label string. */
export interface EndpointFacts {
  readonly id: string;
  readonly namespace: string;
  readonly pod: string;
  readonly serviceAccount: string;
  readonly labels: string;
  readonly interface: string;
  readonly hostMac: string;
  readonly podMac: string;
  readonly ipv4: string;
  readonly ipv6?: string;
  /** Absent: none. */
  readonly namedPorts?: NamedPort[];
  /** Keys of the request that no pod may set: not part of `labels`. */
  readonly ignoredLabels: readonly string[];
}

export interface OwnAddresses {
  readonly cluster: string;
  readonly podCidr: string;
  readonly gatewayIp: string;
  readonly ipv6?: { readonly podCidr: string; readonly gatewayIp: string } | undefined;
}

export function checkEndpointRequest(request: EndpointAddRequest, own: OwnAddresses): EndpointFacts {
  const problems: string[] = [];
  const demand = (holds: boolean, problem: string) => {
    if (!holds) problems.push(problem);
  };
  const shown = (value: string) => JSON.stringify(value);
  const cidr = parseCidr(own.podCidr);
  demand(ENDPOINT_ID.test(request.id), `id ${shown(request.id)} must consist of letters, digits and "._:-"`);
  demand(isDnsSubdomain(request.namespace), `namespace ${shown(request.namespace)} is no namespace name`);
  demand(isDnsSubdomain(request.pod), `pod ${shown(request.pod)} is no pod name`);
  demand(INTERFACE.test(request.interface), `interface ${shown(request.interface)} is no interface name`);
  demand(MAC.test(request.hostMac), `hostMac ${shown(request.hostMac)} is no MAC address`);
  demand(MAC.test(request.podMac), `podMac ${shown(request.podMac)} is no MAC address`);
  const isOwnAddress = isIpv4(request.ipv4) && cidr !== undefined && ipv4Contains(cidr, request.ipv4);
  demand(isOwnAddress, `ipv4 ${shown(request.ipv4)} is no address of this node's pod CIDR ${own.podCidr}`);
  const takenFor = isOwnAddress ? purposeOf(request.ipv4, cidr, own.gatewayIp) : undefined;
  demand(takenFor === undefined, `ipv4 ${shown(request.ipv4)} is ${takenFor} of this node's pod CIDR ${own.podCidr}`);
  const ipv6 = request.ipv6 ? ipv6Of(request.ipv6, own) : undefined;
  if (ipv6 !== undefined && 'problem' in ipv6) problems.push(ipv6.problem);
  const ignoredLabels = Object.keys(request.labels).filter(isReservedLabel);
  for (const [key, value] of Object.entries(request.labels)) {
    if (isReservedLabel(key)) continue;
    demand(
      key !== '' && !/[=;:]/.test(key) && !value.includes(';'),
      `label ${shown(key)}=${shown(value)} cannot be part of an identity`,
    );
  }
  const namedPorts = (request.namedPorts ?? []).flatMap((port) => {
    const parsed = namedPortSchema.safeParse(port);
    if (parsed.success) return [parsed.data];
    const [issue] = parsed.error.issues;
    problems.push(`namedPorts ${JSON.stringify(port)}: ${issue?.path.join('.')} ${issue?.message}`);
    return [];
  });
  if (problems.length > 0) {
    throw new MeshError({
      code: 'invalid-argument',
      message: `adding endpoint ${shown(request.id)}: ${problems.join('; ')}`,
    });
  }
  const serviceAccount = request.serviceAccount === '' ? 'default' : request.serviceAccount;
  return {
    id: request.id,
    namespace: request.namespace,
    pod: request.pod,
    serviceAccount,
    labels: formatLabels(
      podIdentityLabels({
        cluster: own.cluster,
        namespace: request.namespace,
        serviceAccount,
        podLabels: request.labels,
      }),
    ),
    interface: request.interface,
    hostMac: request.hostMac.toLowerCase(),
    podMac: request.podMac.toLowerCase(),
    ipv4: request.ipv4,
    ...(ipv6 !== undefined && 'ip' in ipv6 ? { ipv6: ipv6.ip } : {}),
    ...(namedPorts.length === 0 ? {} : { namedPorts }),
    ignoredLabels,
  };
}

/** In its one form; the first address of a subnet is its routers' (RFC 4291, 2.6.1), as is the gateway's. */
function ipv6Of(text: string, own: OwnAddresses): { readonly ip: string } | { readonly problem: string } {
  const ip = canonicalIp(text);
  if (own.ipv6 === undefined) return { problem: `ipv6 ${JSON.stringify(text)}: this node has no IPv6 pod CIDR` };
  const cidr = parseCidr(own.ipv6.podCidr);
  if (ip === undefined || cidr === undefined || !cidrContains(cidr, ip))
    return { problem: `ipv6 ${JSON.stringify(text)} is no address of this node's pod CIDR ${own.ipv6.podCidr}` };
  const purpose =
    ip === own.ipv6.gatewayIp ? 'the gateway address' : ip === cidr.ip ? "the routers' address" : undefined;
  return purpose === undefined
    ? { ip }
    : { problem: `ipv6 ${JSON.stringify(text)} is ${purpose} of this node's pod CIDR ${own.ipv6.podCidr}` };
}

/** What an address of a pod CIDR is there for, if not for pods. */
function purposeOf(ip: string, cidr: Cidr, gatewayIp: string): string | undefined {
  if (ip === gatewayIp) return 'the gateway address';
  // Two addresses or one (RFC 3021): all of them are for hosts.
  if (cidr.length > 30) return undefined;
  const host = (ipv4ToNumber(ip) << cidr.length) >>> cidr.length;
  if (host === 0) return 'the network address';
  return host === 2 ** (32 - cidr.length) - 1 ? 'the broadcast address' : undefined;
}
