/**
 * The parts of Kubernetes objects that the mesh reads. Unknown fields are ignored, as a Kubernetes client ignores them; known
 * ones must be right. Absent conditions mean what Kubernetes says they mean: ready.
 */
import { isIP } from 'node:net';
import { ciliumPolicyBody, isDnsSubdomain, networkPolicySpec } from '@clustermesh/contract';
import { z } from 'zod';

export const SERVICE_NAME_LABEL = 'kubernetes.io/service-name';

const dnsLabel = z.string().regex(/^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$/, 'is no DNS label');
const dnsName = z.string().refine((name) => isDnsSubdomain(name), 'is no DNS subdomain');
const stringMap = z
  .record(z.string(), z.string({ error: 'must be a string (quote it)' }))
  .nullish()
  .transform((value) => value ?? {});
const protocol = z
  .enum(['TCP', 'UDP', 'SCTP'])
  .nullish()
  .transform((value) => value ?? 'TCP');
const portNumber = z.number().int().min(1).max(65535);
const optionalText = z
  .string()
  .nullish()
  .transform((value) => value ?? undefined);

function metadata(name: z.ZodType<string>) {
  return z.looseObject({
    name,
    namespace: dnsLabel.nullish().transform((value) => value ?? 'default'),
    labels: stringMap,
    annotations: stringMap,
  });
}

export const namespaceSchema = z.looseObject({ metadata: metadata(dnsLabel) });

const clusterIp = z
  .string()
  .refine((ip) => ip === '' || ip === 'None' || isIP(ip) !== 0, 'is neither an IP address nor None');

const servicePort = z.looseObject({
  name: optionalText,
  protocol,
  port: portNumber,
  targetPort: z.union([portNumber, z.string()]).nullish(),
  nodePort: portNumber.nullish(),
});

const ip = z.string().refine((text) => isIP(text) !== 0, 'is no IP address');
const trafficPolicy = z.enum(['Cluster', 'Local']).nullish();

export const serviceSchema = z
  .looseObject({
    metadata: metadata(dnsLabel),
    spec: z.looseObject({
      type: z.enum(['ClusterIP', 'NodePort', 'LoadBalancer', 'ExternalName']).default('ClusterIP'),
      clusterIP: clusterIp.nullish(),
      clusterIPs: z.array(clusterIp).max(2).nullish(),
      ipFamilies: z
        .array(z.enum(['IPv4', 'IPv6']))
        .max(2)
        .nullish(),
      ipFamilyPolicy: z.enum(['SingleStack', 'PreferDualStack', 'RequireDualStack']).nullish(),
      selector: z.record(z.string(), z.string()).nullish(),
      externalIPs: z.array(ip).nullish(),
      externalTrafficPolicy: trafficPolicy,
      internalTrafficPolicy: trafficPolicy,
      loadBalancerSourceRanges: z.array(z.string()).nullish(),
      sessionAffinity: z.enum(['None', 'ClientIP']).nullish(),
      sessionAffinityConfig: z
        .looseObject({
          clientIP: z.looseObject({ timeoutSeconds: z.number().int().min(1).max(86_400).nullish() }).nullish(),
        })
        .nullish(),
      ports: z
        .array(servicePort)
        .nullish()
        .transform((value) => value ?? []),
    }),
    status: z
      .looseObject({
        loadBalancer: z
          .looseObject({
            ingress: z.array(z.looseObject({ ip: ip.nullish(), ipMode: z.enum(['VIP', 'Proxy']).nullish() })).nullish(),
          })
          .nullish(),
      })
      .nullish(),
  })
  .superRefine(({ spec }, context) => {
    const issue = (path: (string | number)[], message: string) =>
      context.addIssue({ code: 'custom', path: ['spec', ...path], message });
    const first = spec.clusterIPs?.[0];
    if (first !== undefined && spec.clusterIP && first !== spec.clusterIP) {
      issue(['clusterIPs', 0], `is ${first}, but clusterIP is ${spec.clusterIP}`);
    }
    const [, second] = spec.clusterIPs ?? [];
    if (first !== undefined && second !== undefined && isIP(first) === isIP(second))
      issue(['clusterIPs', 1], `is of the family of the first, ${first}`);
    spec.clusterIPs?.forEach((ip, index) => {
      const family = spec.ipFamilies?.[index];
      if (family !== undefined && isIP(ip) !== 0 && isIP(ip) !== (family === 'IPv4' ? 4 : 6))
        issue(['clusterIPs', index], `${ip} is no ${family} address, as ipFamilies says`);
    });
    if (spec.ipFamilies?.length === 2 && spec.ipFamilies[0] === spec.ipFamilies[1])
      issue(['ipFamilies', 1], `repeats ${spec.ipFamilies[0]}`);
    if (spec.ipFamilyPolicy === 'SingleStack' && (second !== undefined || spec.ipFamilies?.length === 2))
      issue(['ipFamilyPolicy'], 'is SingleStack, but two families are named');
    const isHeadless = (spec.clusterIP ?? first) === 'None';
    if (spec.type !== 'ExternalName' && !isHeadless && spec.ports.length === 0) issue(['ports'], 'must not be empty');
    const seen = new Set<string>();
    spec.ports.forEach((port, index) => {
      if (spec.ports.length > 1 && port.name === undefined)
        issue(['ports', index, 'name'], 'is needed with more than one port');
      for (const key of [`name ${port.name ?? ''}`, `port ${port.port}/${port.protocol}`]) {
        if (seen.has(key)) issue(['ports', index], `repeats ${key} of an earlier port`);
        seen.add(key);
      }
    });
  });

const condition = z
  .boolean()
  .nullish()
  .transform((value) => value ?? undefined);

export const endpointSliceSchema = z
  .looseObject({
    metadata: metadata(dnsName),
    addressType: z.enum(['IPv4', 'IPv6', 'FQDN']),
    endpoints: z
      .array(
        z.looseObject({
          addresses: z.array(z.string()).min(1).max(100),
          conditions: z
            .looseObject({ ready: condition, serving: condition, terminating: condition })
            .nullish()
            .transform((value) => value ?? { ready: undefined, serving: undefined, terminating: undefined }),
          zone: optionalText,
          nodeName: optionalText,
          hostname: optionalText,
        }),
      )
      .nullish()
      .transform((value) => value ?? []),
    ports: z
      .array(z.looseObject({ name: optionalText, protocol, port: portNumber }))
      .nullish()
      .transform((value) => value ?? []),
  })
  .superRefine((slice, context) => {
    const family = slice.addressType === 'IPv4' ? 4 : 6;
    if (slice.addressType !== 'FQDN') {
      slice.endpoints.forEach((endpoint, index) => {
        endpoint.addresses.forEach((address, position) => {
          if (isIP(address) === family) return;
          const path = ['endpoints', index, 'addresses', position];
          context.addIssue({
            code: 'custom',
            path,
            message: `${JSON.stringify(address)} is no ${slice.addressType} address`,
          });
        });
      });
    }
    if ((slice.metadata.labels[SERVICE_NAME_LABEL] ?? '') === '') {
      const path = ['metadata', 'labels', SERVICE_NAME_LABEL];
      context.addIssue({ code: 'custom', path, message: 'is needed: it names the service' });
    }
  });

/** Unlike elsewhere, unknown fields of a policy count (contract/src/policy): they may be restrictions. */
export const networkPolicySchema = z.looseObject({ metadata: metadata(dnsName), spec: networkPolicySpec });

export const ciliumPolicySchema = z
  .looseObject({ metadata: metadata(dnsName), ...ciliumPolicyBody })
  .refine(({ spec, specs }) => spec != null || (specs ?? []).length > 0, 'needs a spec or specs')
  .refine(
    ({ spec, specs }) => [spec, ...(specs ?? [])].every((each) => each?.['nodeSelector'] == null),
    'policies for nodes are clusterwide: nodeSelector is of no use here',
  );

export const clusterwidePolicySchema = z
  .looseObject({ metadata: metadata(dnsName), ...ciliumPolicyBody })
  .refine(({ spec, specs }) => spec != null || (specs ?? []).length > 0, 'needs a spec or specs');

export type NetworkPolicyManifest = z.infer<typeof networkPolicySchema>;
export type CiliumPolicyManifest = z.infer<typeof clusterwidePolicySchema>;
export type NamespaceManifest = z.infer<typeof namespaceSchema>;
export type ServiceManifest = z.infer<typeof serviceSchema>;
export type EndpointSliceManifest = z.infer<typeof endpointSliceSchema>;
