/**
 * Policies on real packets: every policy of the table below, between every pair that the picture has, is judged by the programs and
 * by the oracle, and they agree on the verdict and on its reason.
 *
 *   eu, this node: a web/shop (endpoint 0)   b api/shop (endpoint 1)      us: c api/shop (b's twin)   w web/bank
 *   outside: 192.0.2.7, 10.9.1.7 and 10.9.2.7; the node itself; and all of them by IPv6 (fd00:9:1::7)
 */
import assert from 'node:assert/strict';
import { after, before, beforeEach, describe, it } from 'node:test';
import { CmAction, CmReason } from '@clustermesh/bpf';
import {
  type CiliumPolicyBody,
  ciliumPolicyBody,
  ciliumSpecs,
  kubernetesSpecs,
  type LocalPolicy,
  labelSet,
  networkPolicySpec,
  parseLabels,
} from '@clustermesh/contract';
import { z } from 'zod';
import { createPolicyEngine, type PolicySinks } from '../policy/engine.ts';
import { evaluate, type Party } from '../policy/oracle.ts';
import type { PolicyRow, PolicyStateRow } from '../policy/types.ts';
import { createTable } from '../reconcile/table.ts';
import { policyStateTable, policyTable } from './policy.ts';
import { ipcacheTable } from './tables.ts';
import type { Frame } from './testing/frames.ts';
import {
  A,
  B,
  C,
  NODE,
  NODE6,
  type Outcome,
  openPacketLab,
  type PacketLab,
  tcp,
  udp,
  W,
} from './testing/packet-lab.ts';

const labels = (app: string, namespace: string, cluster: string) =>
  `k8s:app=${app};k8s:io.cilium.k8s.policy.cluster=${cluster};k8s:io.kubernetes.pod.namespace=${namespace};`;
const LABELS = {
  a: labels('web', 'shop', 'eu'),
  b: labels('api', 'shop', 'eu'),
  c: labels('api', 'shop', 'us'),
  w: labels('web', 'bank', 'us'),
};
/** `admin` is another port in each cluster. */
const NAMED = new Map([
  ['TCP/http', 80],
  ['TCP/admin', 443],
]);
const NAMED_IN_US = new Map([
  ['TCP/http', 80],
  ['TCP/admin', 8079],
]);

let lab: PacketLab;

// ---- who talks with whom

const FAMILIES = ['ipv4', 'ipv6'] as const;
type Family = (typeof FAMILIES)[number];
/** An address and whom the oracle knows it as, in each family. */
type End = Readonly<Record<Family, { readonly ip: string; readonly party: Party }>>;
const known = (ipv4: string, ipv6: string, party: Party): End => ({
  ipv4: { ip: ipv4, party },
  ipv6: { ip: ipv6, party },
});
const pod = ({ ip, ip6 }: { ip: string; ip6: string }, text: string, namedPorts = NAMED): End =>
  known(ip, ip6, { labels: labelSet(parseLabels(text)!), namedPorts });
const outside = (ipv4: string, ipv6: string): End => {
  const party = (ip: string, family: Family): Party => ({
    labels: labelSet(parseLabels(`reserved:world;reserved:world-${family};`)!),
    address: ip,
  });
  return { ipv4: { ip: ipv4, party: party(ipv4, 'ipv4') }, ipv6: { ip: ipv6, party: party(ipv6, 'ipv6') } };
};
const END = {
  a: pod(A, LABELS.a),
  b: pod(B, LABELS.b),
  c: pod(C, LABELS.c, NAMED_IN_US),
  w: pod(W, LABELS.w, NAMED_IN_US),
  host: known(NODE, NODE6, { labels: labelSet(parseLabels('reserved:host;')!) }),
  world: outside('192.0.2.7', '2001:db8::7'),
  near: outside('10.9.1.7', 'fd00:9:1::7'),
  nearer: outside('10.9.2.7', 'fd00:9:2::7'),
};
type Name = keyof typeof END;
const isLocal = (name: Name) => name === 'a' || name === 'b';

/** [from, to, how the packet comes to the programs] */
const ROUTES: readonly (readonly [Name, Name, (frame: Frame) => Outcome])[] = [
  ['a', 'b', (frame) => lab.fromPod(frame, A)],
  ['b', 'a', (frame) => lab.fromPod(frame, B)],
  ['a', 'c', (frame) => lab.fromPod(frame, A)],
  ['a', 'w', (frame) => lab.fromPod(frame, A)],
  ['a', 'host', (frame) => lab.fromPod(frame, A)],
  ['a', 'world', (frame) => lab.fromPod(frame, A)],
  ['a', 'near', (frame) => lab.fromPod(frame, A)],
  ['a', 'nearer', (frame) => lab.fromPod(frame, A)],
  ['c', 'a', (frame) => lab.overlay(frame, C.identity, C.node)],
  ['w', 'a', (frame) => lab.overlay(frame, W.identity, W.node)],
  ['host', 'a', (frame) => lab.toPod(frame)],
  ['world', 'a', (frame) => lab.toPod(frame)],
  ['near', 'a', (frame) => lab.toPod(frame)],
  ['nearer', 'a', (frame) => lab.toPod(frame)],
];
const PORTS = [
  ['TCP', 80],
  ['TCP', 443],
  ['TCP', 8079],
  ['UDP', 53],
] as const;
const ECHO = { ipv4: ['ICMP', 8], ipv6: ['ICMPv6', 128] } as const;
type Protocol = 'TCP' | 'UDP' | 'ICMP' | 'ICMPv6';

let sourcePort = 1024;
function frameOf(family: Family, from: Name, to: Name, protocol: Protocol, port: number): Frame {
  const [source, destination] = [END[from][family].ip, END[to][family].ip];
  sourcePort = sourcePort >= 60_000 ? 1024 : sourcePort + 1;
  if (protocol === 'TCP') return tcp(source, sourcePort, destination, port);
  if (protocol === 'UDP') return udp(source, sourcePort, destination, port);
  return { saddr: source, daddr: destination, icmp: { type: port, id: sourcePort } };
}

const nameOf = (reason: number) => Object.entries(CmReason).find(([, value]) => value === reason)?.[0] ?? reason;
const verdictOf = ({ decision }: Outcome) => (decision.action === CmAction.DROP ? nameOf(decision.reason) : 'passes');

function expectedFor(
  policies: readonly LocalPolicy[],
  family: Family,
  from: Name,
  to: Name,
  protocol: Protocol,
  port: number,
) {
  const question = { source: END[from][family].party, destination: END[to][family].party, protocol, port };
  for (const [direction, name] of [
    ['egress', from],
    ['ingress', to],
  ] as const) {
    if (!isLocal(name)) continue;
    const answer = evaluate(policies, { ...question, direction }, { allowHost: true });
    if (answer === 'denied by a rule') return `${direction.toUpperCase()}_DENY_RULE`;
    if (answer === 'denied by default') return `${direction.toUpperCase()}_DENIED`;
  }
  return 'passes';
}

// ---- from YAML's shapes into the kernel

const CONTEXT = { cluster: 'eu', defaultLocalCluster: true };
let count = 0;
function cilium(spec: object, namespace = 'shop'): LocalPolicy {
  const body = z.looseObject(ciliumPolicyBody).parse({ spec: { endpointSelector: {}, ...spec } }) as CiliumPolicyBody;
  const { specs, refused } = ciliumSpecs(body, namespace, CONTEXT);
  return { kind: 'CiliumNetworkPolicy', namespace, name: `p${count++}`, specs, refused: [...refused] };
}
function kubernetes(spec: object): LocalPolicy {
  const specs = kubernetesSpecs(networkPolicySpec.parse({ podSelector: {}, ...spec }), 'shop', CONTEXT);
  return { kind: 'NetworkPolicy', namespace: 'shop', name: `k${count++}`, specs, refused: [] };
}

function createProgrammer() {
  const { cm_policy, cm_policy_state, cm_ipcache, cm_ipcache_lpm } = lab.loaded.maps;
  const tables = {
    rows: createTable<PolicyRow>({ name: 'policy rows', equal: (x, y) => x.deny === y.deny }),
    states: createTable<PolicyStateRow>({ name: 'policy states', equal: () => false }),
  };
  const ops = { rows: policyTable(cm_policy), states: policyStateTable(cm_policy_state) };
  const ipcache = ipcacheTable(cm_ipcache, cm_ipcache_lpm);
  const cidrs: [string, number | undefined][] = [];
  const sinks: PolicySinks = { ...tables, cidr: (prefix, identity) => void cidrs.push([prefix, identity]) };
  const engine = createPolicyEngine({ ownCluster: 'eu', allowHost: true, isReady: () => true, isSettled: () => true });
  engine.setEndpoint(0, { labels: LABELS.a, namedPorts: NAMED });
  engine.setEndpoint(1, { labels: LABELS.b, namedPorts: NAMED });
  for (const [id, text, named] of [
    [A.identity, LABELS.a, NAMED],
    [B.identity, LABELS.b, NAMED],
    [C.identity, LABELS.c, NAMED_IN_US],
    [W.identity, LABELS.w, NAMED_IN_US],
  ] as const) {
    engine.setIdentity('test', id, text);
    engine.setNamedPorts('test', id, named);
  }
  let held: readonly LocalPolicy[] = [];

  async function write<Row>(
    table: ReturnType<typeof createTable<Row>>,
    to: { update(rows: Row[]): Promise<unknown>; remove(keys: string[]): Promise<unknown> },
  ) {
    const due = table.due(0);
    await to.update(due.flatMap(({ desired }) => (desired === undefined ? [] : [desired])));
    await to.remove(due.flatMap(({ key, desired }) => (desired === undefined ? [key] : [])));
    for (const row of due) table.settle(row, {});
  }

  async function flush(): Promise<void> {
    engine.flush(sinks);
    for (const [prefix, identity] of cidrs.splice(0)) {
      if (identity === undefined) await ipcache.remove([prefix]);
      else await ipcache.update([{ prefix, identity, clusterId: 0, tunnelEndpoint: null, encryptKey: 0 }]);
    }
    await write(tables.rows, ops.rows);
    engine.removed(sinks.states);
    await write(tables.states, ops.states);
  }

  return {
    async setIncomplete(endpointIds: ReadonlySet<number>): Promise<void> {
      engine.setIncomplete(endpointIds, sinks.states);
      await flush();
    },
    async enforce(policies: readonly LocalPolicy[]): Promise<void> {
      for (const { name } of held) engine.setPolicy(name, undefined);
      for (const policy of policies) engine.setPolicy(policy.name, policy);
      held = policies;
      await flush();
    },
    rowsInKernel: async () => (await ops.rows.list()).size,
  };
}
let programmer: ReturnType<typeof createProgrammer>;

// ---- the table

const web = { matchLabels: { app: 'web' } };
const api = { matchLabels: { app: 'api' } };
const inUs = { matchLabels: { app: 'api', 'io.cilium.k8s.policy.cluster': 'us' } };
const anyCluster = { matchExpressions: [{ key: 'io.cilium.k8s.policy.cluster', operator: 'Exists' }] };
const ports = (...list: object[]) => ({ toPorts: [{ ports: list }] });
const http = { port: '80', protocol: 'TCP' };

const TABLE: Readonly<Record<string, readonly LocalPolicy[]>> = {
  'no policy': [],
  'default deny, ingress': [cilium({ ingress: [{}] })],
  'default deny, egress': [cilium({ egress: [{}] })],
  'default deny of one pod only': [cilium({ endpointSelector: web, ingress: [{}] })],
  'from pods of the namespace': [cilium({ ingress: [{ fromEndpoints: [{}] }] })],
  'from pods with a label': [cilium({ endpointSelector: web, ingress: [{ fromEndpoints: [api] }] })],
  'from the twin in the other cluster only': [cilium({ endpointSelector: web, ingress: [{ fromEndpoints: [inUs] }] })],
  'from pods of every cluster': [cilium({ endpointSelector: web, ingress: [{ fromEndpoints: [anyCluster] }] })],
  'from another namespace of another cluster': [
    cilium({
      ingress: [
        {
          fromEndpoints: [
            { matchLabels: { 'k8s:io.kubernetes.pod.namespace': 'bank', 'io.cilium.k8s.policy.cluster': 'us' } },
          ],
        },
      ],
    }),
  ],
  'to pods with a label, one port': [cilium({ egress: [{ toEndpoints: [api], ...ports(http) }] })],
  'to the twin, a range of ports': [
    cilium({ egress: [{ toEndpoints: [inUs], ...ports({ port: '80', endPort: 8078, protocol: 'TCP' }) }] }),
  ],
  'one port, from anybody': [cilium({ ingress: [ports(http)] })],
  'a port of every protocol': [cilium({ ingress: [ports({ port: '53' })] })],
  'every port of a protocol': [cilium({ ingress: [ports({ port: '0', protocol: 'UDP' })] })],
  'a named port, inwards': [cilium({ ingress: [ports({ port: 'http', protocol: 'TCP' })] })],
  'a named port, outwards': [cilium({ egress: [{ toEndpoints: [anyCluster], ...ports({ port: 'http' }) }] })],
  'echo requests only': [cilium({ ingress: [{ icmps: [{ fields: [{ type: 'EchoRequest' }] }] }] })],
  'entity all': [cilium({ ingress: [{ fromEntities: ['all'] }], egress: [{ toEntities: ['all'] }] })],
  'entity none': [cilium({ ingress: [{ fromEntities: ['none'] }] })],
  'entity cluster': [cilium({ ingress: [{ fromEntities: ['cluster'] }], egress: [{ toEntities: ['cluster'] }] })],
  'entity world': [cilium({ ingress: [{ fromEntities: ['world'] }], egress: [{ toEntities: ['world'] }] })],
  'entity host, outwards': [cilium({ egress: [{ toEntities: ['host'] }] })],
  'a range of addresses': [cilium({ ingress: [{ fromCIDR: ['10.9.0.0/16'] }], egress: [{ toCIDR: ['10.9.0.0/16'] }] })],
  'a range with an exception': [
    cilium({ egress: [{ toCIDRSet: [{ cidr: '10.9.0.0/16', except: ['10.9.2.0/24'] }] }] }),
  ],
  'every address: no pod is meant': [cilium({ egress: [{ toCIDR: ['0.0.0.0/0'] }] })],
  'a deny inside an allow': [
    cilium({ ingress: [{ fromEntities: ['all'] }], ingressDeny: [{ fromEndpoints: [inUs], ...ports(http) }] }),
  ],
  'an allow inside a deny': [
    cilium({ ingress: [{ fromEndpoints: [inUs], ...ports(http) }], ingressDeny: [{ fromEndpoints: [anyCluster] }] }),
  ],
  'a deny for anybody outdoes an allow for one': [
    cilium({ egress: [{ toEndpoints: [api] }], egressDeny: [ports({ port: '443', protocol: 'TCP' })] }),
  ],
  'a deny of the node': [cilium({ ingress: [{ fromEntities: ['all'] }], ingressDeny: [{ fromEntities: ['host'] }] })],
  'only denials, without default deny': [
    cilium({ egressDeny: [{ toEntities: ['world'] }], enableDefaultDeny: { egress: false } }),
  ],
  'two policies add up': [
    cilium({ ingress: [{ fromEndpoints: [api], ...ports(http) }] }),
    cilium({ ingress: [{ fromEntities: ['world'], ...ports({ port: '443' }) }] }),
  ],
  'a refused rule allows nothing': [
    cilium({ egress: [{ toFQDNs: [{ matchName: 'example.org' }] }, { toEntities: ['host'] }] }),
  ],
  'a refused deny denies all': [cilium({ ingressDeny: [{ fromGroups: [{}] }] })],
  'Kubernetes: isolation': [kubernetes({})],
  'Kubernetes: from pods, one port': [
    kubernetes({ podSelector: web, ingress: [{ from: [{ podSelector: api }], ports: [{ port: 80 }] }] }),
  ],
  'Kubernetes: to a block, but': [
    kubernetes({
      policyTypes: ['Egress'],
      egress: [{ to: [{ ipBlock: { cidr: '10.9.0.0/16', except: ['10.9.1.0/24'] } }] }],
    }),
  ],
  'clusterwide: from every namespace of the cluster': [cilium({ ingress: [{ fromEndpoints: [{}] }] }, '')],
  'a range of IPv6 addresses': [
    cilium({ ingress: [{ fromCIDR: ['fd00:9::/32'] }], egress: [{ toCIDR: ['fd00:9::/32'] }] }),
  ],
  'a range of IPv6 with an exception': [
    cilium({ egress: [{ toCIDRSet: [{ cidr: 'fd00:9::/32', except: ['fd00:9:2::/48'] }] }] }),
  ],
  'one IPv6 address, one port': [cilium({ ingress: [{ fromCIDR: ['2001:db8::7/128'], ...ports(http) }] })],
  'every IPv6 address: no pod is meant, and no IPv4': [cilium({ egress: [{ toCIDR: ['::/0'] }] })],
  'ranges of both families, a range inside denied': [
    cilium({
      egress: [{ toCIDR: ['10.0.0.0/8', 'fd00::/8'] }],
      egressDeny: [{ toCIDR: ['10.9.1.0/24', 'fd00:9:1::/48'] }],
    }),
  ],
  'every address of both families but two': [
    cilium({
      ingress: [
        {
          fromCIDRSet: [
            { cidr: '0.0.0.0/0', except: ['10.9.1.7/32'] },
            { cidr: '::/0', except: ['fd00:9:1::7/128'] },
          ],
        },
      ],
    }),
  ],
  'echo requests of IPv6 only': [
    cilium({ ingress: [{ icmps: [{ fields: [{ family: 'IPv6', type: 'EchoRequest' }] }] }] }),
  ],
  'ICMPv6 by number, from the twin': [
    cilium({
      endpointSelector: web,
      ingress: [{ fromEndpoints: [inUs], icmps: [{ fields: [{ family: 'IPv6', type: 128 }] }] }],
    }),
  ],
  'another type of ICMPv6: no echo': [cilium({ egress: [{ icmps: [{ fields: [{ family: 'IPv6', type: 129 }] }] }] })],
  'a deny of echo in IPv6': [
    cilium({
      ingress: [{ fromEntities: ['all'] }],
      ingressDeny: [{ icmps: [{ fields: [{ family: 'IPv6', type: 128 }] }] }],
    }),
  ],
  'entity world-ipv4': [cilium({ ingress: [{ fromEntities: ['world-ipv4'] }] })],
  'entity world-ipv6': [cilium({ egress: [{ toEntities: ['world-ipv6'] }] })],
  'a deny of the world of IPv6': [
    cilium({ ingress: [{ fromEntities: ['all'] }], ingressDeny: [{ fromEntities: ['world-ipv6'] }] }),
  ],
  'Kubernetes: from a block of IPv6, but': [
    kubernetes({ ingress: [{ from: [{ ipBlock: { cidr: 'fd00:9::/32', except: ['fd00:9:1::/48'] } }] }] }),
  ],
  'Kubernetes: a port by name, inwards': [kubernetes({ ingress: [{ ports: [{ port: 'http' }] }] })],
  'Kubernetes: a port by name, outwards, to pods': [
    kubernetes({
      policyTypes: ['Egress'],
      egress: [{ to: [{ podSelector: api }], ports: [{ port: 'http', protocol: 'TCP' }] }],
    }),
  ],
  'a named port that differs from pod to pod': [
    cilium({ egress: [{ toEndpoints: [anyCluster], ...ports({ port: 'admin', protocol: 'TCP' }) }] }),
  ],
  'a named port that differs, inwards': [cilium({ ingress: [ports({ port: 'admin', protocol: 'TCP' })] })],
  'a name that stands for another protocol': [cilium({ ingress: [ports({ port: 'http', protocol: 'UDP' })] })],
  'a name that nobody has': [cilium({ egress: [{ toEndpoints: [api], ...ports({ port: 'metrics' }) }] })],
  'a deny of a named port': [
    cilium({ egress: [{ toEntities: ['all'] }], egressDeny: [{ ...ports({ port: 'admin', protocol: 'TCP' }) }] }),
  ],
  'a deny of a named port, inwards': [
    cilium({ ingress: [{ fromEntities: ['all'] }], ingressDeny: [{ ...ports({ port: 'http', protocol: 'TCP' }) }] }),
  ],
  'to one pod of the other cluster, in both families': [cilium({ egress: [{ toEndpoints: [inUs] }] })],
};

before(async () => {
  lab = await openPacketLab();
  programmer = createProgrammer();
});
beforeEach(() => lab.reset());
after(() => lab?.close());

describe('every policy of the table, on packets and by the oracle', () => {
  const seen = new Map<string, number>();
  for (const [title, policies] of Object.entries(TABLE)) {
    it(title, async () => {
      await programmer.enforce(policies);
      for (const family of FAMILIES) {
        for (const [from, to, send] of ROUTES) {
          for (const [protocol, port] of [...PORTS, ECHO[family]]) {
            const expected = expectedFor(policies, family, from, to, protocol, port);
            const got = verdictOf(send(frameOf(family, from, to, protocol, port)));
            assert.equal(got, expected, `${from} to ${to}, ${family}, ${protocol} ${port}`);
            seen.set(`${family} ${expected}`, (seen.get(`${family} ${expected}`) ?? 0) + 1);
          }
        }
      }
    });
  }

  it('that were cases of every verdict, in thousands', () => {
    const verdicts = ['EGRESS_DENIED', 'EGRESS_DENY_RULE', 'INGRESS_DENIED', 'INGRESS_DENY_RULE', 'passes'];
    assert.deepEqual(
      [...seen.keys()].sort(),
      FAMILIES.flatMap((family) => verdicts.map((one) => `${family} ${one}`)),
    );
    assert.ok(Object.keys(TABLE).length >= 60);
    assert.ok([...seen.values()].reduce((sum, n) => sum + n) > 8000);
  });

  it('leaves no row in the kernel when the policies go', async () => {
    await programmer.enforce([]);
    assert.equal(await programmer.rowsInKernel(), 0);
  });
});

describe('a flow', () => {
  const allowB = [cilium({ endpointSelector: web, ingress: [{ fromEndpoints: [api], ...ports(http) }] })];
  const closed = [cilium({ ingress: [{}], egress: [{}] })];

  it('is replied to, whatever the policies say about the other direction', async () => {
    await programmer.enforce([...allowB, cilium({ endpointSelector: web, egress: [{}] })]);
    assert.equal(verdictOf(lab.fromPod(tcp(B.ip, 4000, A.ip, 80), B)), 'passes');
    assert.equal(verdictOf(lab.fromPod(tcp(A.ip, 80, B.ip, 4000, 'SA'), A)), 'passes');
    assert.equal(verdictOf(lab.fromPod(tcp(A.ip, 81, B.ip, 4000, 'SA'), A)), 'EGRESS_DENIED');
  });

  it('echo is replied to', async () => {
    await programmer.enforce([cilium({ endpointSelector: web, egress: [{}], ingress: [{ fromEntities: ['all'] }] })]);
    assert.equal(verdictOf(lab.overlay({ saddr: C.ip, daddr: A.ip, icmp: { type: 8, id: 9 } })), 'passes');
    assert.equal(verdictOf(lab.fromPod({ saddr: A.ip, daddr: C.ip, icmp: { type: 0, id: 9 } })), 'passes');
    assert.equal(verdictOf(lab.fromPod({ saddr: A.ip, daddr: C.ip, icmp: { type: 0, id: 10 } })), 'EGRESS_DENIED');
  });

  it('that is established ends in both directions when its policy goes, and goes on when it comes back', async () => {
    await programmer.enforce(allowB);
    const there = () => verdictOf(lab.fromPod(tcp(B.ip, 4000, A.ip, 80, 'A'), B));
    const back = () => verdictOf(lab.fromPod(tcp(A.ip, 80, B.ip, 4000, 'A'), A));
    assert.deepEqual([there(), back()], ['passes', 'passes']);
    await programmer.enforce([cilium({ endpointSelector: web, ingress: [{}] })]);
    assert.deepEqual([there(), back()], ['INGRESS_DENIED', 'INGRESS_DENIED']);
    await programmer.enforce(allowB);
    assert.deepEqual([there(), back()], ['passes', 'passes']);
  });

  it('is judged again when the one at its other end becomes somebody else', async () => {
    await programmer.enforce([cilium({ endpointSelector: web, ingress: [{ fromEndpoints: [inUs] }] })]);
    const packet = tcp(C.ip, 4000, A.ip, 80, 'A');
    assert.equal(verdictOf(lab.overlay(packet, C.identity)), 'passes');
    assert.equal(verdictOf(lab.overlay(packet, W.identity)), 'INGRESS_DENIED');
  });

  it('that was denied leaves nothing behind that a reply could pass by', async () => {
    await programmer.enforce(closed);
    assert.equal(verdictOf(lab.fromPod(tcp(B.ip, 4000, A.ip, 80), B)), 'EGRESS_DENIED');
    assert.deepEqual(await lab.loaded.maps.cm_ct.entries(), []);
  });

  it('to a service is judged by the backend', async () => {
    await programmer.enforce([
      cilium({ endpointSelector: web, egress: [{ toEndpoints: [inUs], ...ports({ port: '8080' }) }] }),
    ]);
    assert.equal(verdictOf(lab.fromPod(tcp(A.ip, 4000, '10.96.0.10', 80))), 'passes');
    assert.equal(verdictOf(lab.fromPod(tcp(A.ip, 4000, '10.96.0.20', 80))), 'EGRESS_DENIED');
  });
});

describe('an endpoint whose policies are not complete', () => {
  it('is closed, with a reason of its own, and opens again', async () => {
    await programmer.enforce([]);
    await programmer.setIncomplete(new Set([0]));
    assert.equal(verdictOf(lab.fromPod(tcp(A.ip, 4000, C.ip, 80))), 'POLICY_LOCKED');
    assert.equal(verdictOf(lab.fromPod(tcp(B.ip, 4000, C.ip, 80), B)), 'passes');
    await programmer.setIncomplete(new Set());
    assert.equal(verdictOf(lab.fromPod(tcp(A.ip, 4000, C.ip, 80))), 'passes');
  });
});
