/** What is compiled, looked up as the kernel would, means what the oracle says; and changes cost what they concern. */
import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import {
  type LocalPolicy,
  labelSet,
  type PolicyRule,
  parseLabels,
  RESERVED_IDENTITY,
  type Requirement,
} from '@clustermesh/contract';
import fc from 'fast-check';
import type { RowSink } from '../reconcile/table.ts';
import { createPolicyEngine, type PolicyEngine } from './engine.ts';
import { evaluate, type Party } from './oracle.ts';
import { createPolicyKernel } from './testing.ts';

const requirement = (key: string, ...values: string[]): Requirement => ({ source: 'any', key, operator: 'In', values });
const NAMESPACE = 'io.kubernetes.pod.namespace';
const CLUSTER = 'io.cilium.k8s.policy.cluster';

interface Pod {
  readonly app: string;
  readonly namespace: string;
  readonly cluster: string;
}
const textOf = ({ app, namespace, cluster }: Pod) =>
  `k8s:app=${app};k8s:${CLUSTER}=${cluster};k8s:${NAMESPACE}=${namespace};`;
const PODS: readonly Pod[] = ['eu', 'us'].flatMap((cluster) =>
  ['x', 'y'].flatMap((namespace) => ['a', 'b'].map((app) => ({ app, namespace, cluster }))),
);
const idOf = (pod: Pod) => (pod.cluster === 'eu' ? 65_800 : 131_400) + PODS.indexOf(pod);
const LOCAL_PODS = PODS.filter((pod) => pod.cluster === 'eu');
const NAMED = new Map([
  ['TCP/web', 80],
  ['UDP/dns', 53],
]);

const ADDRESSES = ['10.9.1.1', '10.9.2.2', '10.8.0.1', '192.0.2.1'];
const CIDRS = ['10.9.0.0/16', '10.9.1.0/24', '10.8.0.0/13', '10.9.1.1/32', '0.0.0.0/0'];
const PORTS = [53, 80, 81, 443, 8000, 8079, 8080, 65535];

const selector = fc.uniqueArray(
  fc.oneof(
    fc.constantFrom(requirement('app', 'a'), requirement('app', 'a', 'b'), requirement(NAMESPACE, 'x')),
    fc.constantFrom(requirement(CLUSTER, 'eu'), requirement(CLUSTER, 'us'), requirement('team', 'red')),
    fc.constantFrom<Requirement>(
      { source: 'k8s', key: 'app', operator: 'NotIn', values: ['b'] },
      { source: 'reserved', key: 'host', operator: 'Exists', values: [] },
      { source: 'reserved', key: 'world', operator: 'Exists', values: [] },
      { source: 'k8s', key: 'io.cilium.k8s.namespace.labels.tier', operator: 'In', values: ['front'] },
    ),
  ),
  { maxLength: 2 },
);
const peer = fc.oneof(
  { weight: 1, arbitrary: fc.constant({ kind: 'all' as const }) },
  { weight: 5, arbitrary: selector.map((requirements) => ({ kind: 'labels' as const, selector: requirements })) },
  {
    weight: 3,
    arbitrary: fc
      .tuple(fc.constantFrom(...CIDRS), fc.boolean())
      .map(([cidr, punched]) => ({ kind: 'cidr' as const, cidr, except: punched ? ['10.9.1.0/24'] : [] }))
      .filter(({ cidr, except }) => except.length === 0 || !cidr.startsWith('10.9.1.')),
  },
);
const layer4 = fc.oneof(
  fc
    .tuple(fc.constantFrom('TCP' as const, 'UDP' as const), fc.constantFrom(...PORTS), fc.constantFrom(...PORTS))
    .map(([protocol, a, b]) => ({ kind: 'ports' as const, protocol, first: Math.min(a, b), last: Math.max(a, b) })),
  fc.constant({ kind: 'ports' as const, protocol: 'TCP' as const, first: 0, last: 65535 }),
  fc.constant({ kind: 'icmp' as const, family: 4 as const, type: 8 }),
  fc.constantFrom(
    { kind: 'named' as const, protocol: 'TCP' as const, name: 'web' },
    { kind: 'named' as const, protocol: 'TCP' as const, name: 'gone' },
  ),
);
const rule: fc.Arbitrary<PolicyRule> = fc.record({
  direction: fc.constantFrom('ingress' as const, 'egress' as const),
  effect: fc.constantFrom('allow' as const, 'allow' as const, 'deny' as const),
  peers: fc.array(peer, { maxLength: 2 }),
  layer4: fc.option(fc.array(layer4, { minLength: 1, maxLength: 2 }), { nil: null }),
});
const policy = (name: string): fc.Arbitrary<LocalPolicy> =>
  fc.record({
    kind: fc.constant('CiliumNetworkPolicy' as const),
    namespace: fc.constant('x'),
    name: fc.constant(name),
    refused: fc.constant([]),
    specs: fc.array(
      fc.record({
        subject: selector,
        defaultDeny: fc.record({ ingress: fc.boolean(), egress: fc.boolean() }),
        rules: fc.array(rule, { maxLength: 3 }),
      }),
      { minLength: 1, maxLength: 2 },
    ),
  });

const NAMES = ['p', 'q', 'r'];
type Step =
  | { readonly kind: 'policy'; readonly name: string; readonly policy: LocalPolicy | undefined }
  | { readonly kind: 'identity'; readonly pod: Pod; readonly isThere: boolean }
  | { readonly kind: 'endpoint'; readonly pod: Pod; readonly isThere: boolean }
  | { readonly kind: 'namespace'; readonly tier: string | undefined }
  | { readonly kind: 'flush' };
const step: fc.Arbitrary<Step> = fc.oneof(
  {
    weight: 4,
    arbitrary: fc
      .constantFrom(...NAMES)
      .chain((name) =>
        fc
          .option(policy(name), { nil: undefined, freq: 4 })
          .map((value) => ({ kind: 'policy' as const, name, policy: value })),
      ),
  },
  {
    weight: 3,
    arbitrary: fc.record({
      kind: fc.constant('identity' as const),
      pod: fc.constantFrom(...PODS),
      isThere: fc.boolean(),
    }),
  },
  {
    weight: 2,
    arbitrary: fc.record({
      kind: fc.constant('endpoint' as const),
      pod: fc.constantFrom(...LOCAL_PODS),
      isThere: fc.boolean(),
    }),
  },
  {
    weight: 1,
    arbitrary: fc.record({
      kind: fc.constant('namespace' as const),
      tier: fc.constantFrom('front', 'back', undefined),
    }),
  },
  { weight: 2, arbitrary: fc.constant({ kind: 'flush' as const }) },
);

function createWorld(allowHost = true) {
  const kernel = createPolicyKernel();
  const engine: PolicyEngine = createPolicyEngine({
    ownCluster: 'eu',
    allowHost,
    isReady: () => true,
    isSettled: () => true,
  });
  const policies = new Map<string, LocalPolicy>();
  const identities = new Set<Pod>();
  const endpoints = new Set<Pod>();
  let tier: string | undefined;

  const partyOf = (pod: Pod): Party => {
    const own = pod.cluster === 'eu' && pod.namespace === 'x' && tier !== undefined;
    const text = `${textOf(pod)}${own ? `k8s:io.cilium.k8s.namespace.labels.tier=${tier};` : ''}`;
    return { labels: labelSet(parseLabels(text)!), namedPorts: NAMED };
  };
  const reservedParty = (text: string, address?: string): Party => ({ labels: labelSet(parseLabels(text)!), address });

  return {
    kernel,
    engine,
    take(what: Step): void {
      switch (what.kind) {
        case 'policy':
          engine.setPolicy(what.name, what.policy);
          if (what.policy === undefined) policies.delete(what.name);
          else policies.set(what.name, what.policy);
          break;
        case 'identity':
          engine.setIdentity('test', idOf(what.pod), what.isThere ? textOf(what.pod) : undefined);
          engine.setNamedPorts('test', idOf(what.pod), what.isThere ? NAMED : undefined);
          if (what.isThere) identities.add(what.pod);
          else identities.delete(what.pod);
          break;
        case 'endpoint':
          engine.setEndpoint(
            PODS.indexOf(what.pod) + 1,
            what.isThere ? { labels: textOf(what.pod), namedPorts: NAMED } : undefined,
          );
          if (what.isThere) endpoints.add(what.pod);
          else endpoints.delete(what.pod);
          break;
        case 'namespace':
          tier = what.tier;
          engine.setNamespace('x', tier === undefined ? undefined : { tier });
          break;
        case 'flush':
          engine.flush(kernel.sinks);
      }
    },
    /** Every endpoint, everybody it could talk with, every port of interest, both directions. */
    compare(): void {
      const others: (readonly [string, number, Party])[] = [
        ...[...identities].map((pod) => [textOf(pod), idOf(pod), partyOf(pod)] as const),
        ...ADDRESSES.map(
          (ip) => [ip, kernel.identityOf(ip), reservedParty('reserved:world;reserved:world-ipv4;', ip)] as const,
        ),
        ['host', RESERVED_IDENTITY.host, reservedParty('reserved:host;')],
        ['remote-node', RESERVED_IDENTITY.remoteNode, reservedParty('reserved:remote-node;')],
      ];
      for (const pod of endpoints) {
        const own = partyOf(pod);
        for (const [name, id, other] of others) {
          for (const [protocol, number, ports] of [
            ['TCP', 6, PORTS],
            ['UDP', 17, PORTS],
            ['ICMP', 1, [0, 8]],
          ] as const) {
            for (const port of ports) {
              for (const direction of ['ingress', 'egress'] as const) {
                const [source, destination] = direction === 'ingress' ? [other, own] : [own, other];
                const question = { source, destination, protocol, port, direction };
                const expected = evaluate(policies.values(), question, { allowHost });
                const got = kernel.verdict(
                  PODS.indexOf(pod) + 1,
                  direction,
                  id,
                  number,
                  protocol === 'ICMP' ? port << 8 : port,
                );
                assert.equal(got, expected, `${textOf(pod)} ${direction} ${name} ${protocol} ${port}`);
              }
            }
          }
        }
      }
    },
    rows: () => [...kernel.rows.keys()].sort(),
  };
}

describe('compiled policies', () => {
  it('mean what the oracle says, after any sequence of changes', () => {
    fc.assert(
      fc.property(fc.array(step, { minLength: 5, maxLength: 25 }), fc.boolean(), (steps, allowHost) => {
        const world = createWorld(allowHost);
        for (const pod of LOCAL_PODS.slice(0, 2)) world.take({ kind: 'endpoint', pod, isThere: true });
        for (const pod of PODS.slice(2, 6)) world.take({ kind: 'identity', pod, isThere: true });
        for (const what of steps) world.take(what);
        world.take({ kind: 'flush' });
        world.compare();
      }),
      { numRuns: 120 },
    );
  });

  it('keep nothing of an endpoint that went, when another of its number comes before the next pass', () => {
    const world = createWorld();
    const [pod] = LOCAL_PODS;
    const open: PolicyRule = { direction: 'ingress', effect: 'allow', peers: [], layer4: null };
    const one = (name: string, isClosed: boolean, rules: PolicyRule[]): Step => ({
      kind: 'policy',
      name,
      policy: {
        ...{ kind: 'CiliumNetworkPolicy', namespace: 'x', name, refused: [] },
        specs: [{ subject: [], defaultDeny: { ingress: isClosed, egress: false }, rules }],
      },
    });
    world.take({ kind: 'endpoint', pod: pod!, isThere: true });
    world.take(one('p', false, [open]));
    world.take({ kind: 'flush' });
    world.take({ kind: 'endpoint', pod: pod!, isThere: false });
    world.take({ kind: 'policy', name: 'p', policy: undefined });
    world.take({ kind: 'endpoint', pod: pod!, isThere: true });
    world.take(one('q', true, []));
    world.take({ kind: 'flush' });
    world.compare();
  });

  it('leave nothing behind when policies, identities or endpoints go', () => {
    fc.assert(
      fc.property(fc.array(step, { minLength: 5, maxLength: 25 }), (steps) => {
        const world = createWorld();
        for (const what of steps) world.take(what);
        world.take({ kind: 'flush' });
        for (const name of NAMES) world.take({ kind: 'policy', name, policy: undefined });
        world.take({ kind: 'flush' });
        assert.deepEqual(world.rows(), []);
        assert.equal(world.kernel.cidrs.size, 0);
      }),
      { numRuns: 80 },
    );
  });
});

const allowApp = (app: string, extra: Requirement[] = []): LocalPolicy => ({
  kind: 'CiliumNetworkPolicy',
  namespace: 'x',
  name: `allow-${app}`,
  refused: [],
  specs: [
    {
      subject: [requirement('app', 'a')],
      defaultDeny: { ingress: true, egress: false },
      rules: [
        {
          direction: 'ingress',
          effect: 'allow',
          peers: [{ kind: 'labels', selector: [requirement('app', app), ...extra] }],
          layer4: null,
        },
      ],
    },
  ],
});

/** A world with one endpoint of app a and one of app b, and what the engine wrote since the last look. */
function observed() {
  const world = createWorld();
  let written: string[] = [];
  const { rows, states, cidr } = world.kernel.sinks;
  const watched = <Row>(prefix: string, sink: RowSink<Row>): RowSink<Row> => ({
    set(key, row) {
      written.push(`${prefix}+${key}`);
      sink.set(key, row);
    },
    delete(key) {
      written.push(`${prefix}-${key}`);
      sink.delete(key);
    },
  });
  const sinks = { rows: watched('row ', rows), states: watched('state ', states), cidr };
  for (const pod of LOCAL_PODS.slice(0, 2)) world.take({ kind: 'endpoint', pod, isThere: true });
  function flush(): string[] {
    written = [];
    world.engine.flush(sinks);
    return written;
  }
  return { ...world, flush };
}

describe('a change', () => {
  it('of an identity touches only what selects it', () => {
    const { engine, flush, take } = observed();
    take({ kind: 'policy', name: 'p', policy: allowApp('b') });
    flush();
    engine.setIdentity('peer', 131_500, textOf({ app: 'c', namespace: 'x', cluster: 'us' }));
    assert.deepEqual(flush(), []);
    engine.setIdentity('peer', 131_501, textOf({ app: 'b', namespace: 'x', cluster: 'us' }));
    assert.deepEqual(flush(), ['row +1/ingress/131501/0/0/0', 'state +1']);
  });

  it('of a policy touches only the endpoints that it selects', () => {
    const { flush, take } = observed();
    flush();
    take({ kind: 'policy', name: 'p', policy: allowApp('b') });
    assert.deepEqual([...new Set(flush().map((line) => line.replace(/^.*?(\d).*$/, '$1')))], ['1']);
  });

  it('tells pods with equal labels apart by their cluster label', () => {
    const { flush, take, kernel } = observed();
    take({ kind: 'policy', name: 'p', policy: allowApp('b', [requirement(CLUSTER, 'us')]) });
    const twins = ['eu', 'us'].map((cluster) => PODS.find((pod) => pod.app === 'b' && pod.cluster === cluster)!);
    for (const pod of twins) take({ kind: 'identity', pod, isThere: true });
    flush();
    assert.deepEqual(
      twins.map((pod) => kernel.verdict(1, 'ingress', idOf(pod), 6, 80)),
      ['denied by default', 'allowed'],
    );
  });
});

describe('a restart', () => {
  function restarted(isReady: () => boolean, isSettled: (id: number) => boolean = () => true) {
    const before = createWorld();
    const [pod, other] = LOCAL_PODS as [Pod, Pod];
    before.take({ kind: 'endpoint', pod, isThere: true });
    before.take({ kind: 'identity', pod: PODS[5]!, isThere: true });
    before.take({ kind: 'policy', name: 'p', policy: allowApp('b') });
    before.take({ kind: 'flush' });
    const { kernel } = before;
    const engine = createPolicyEngine({ ownCluster: 'eu', allowHost: true, isReady, isSettled });
    engine.restore({ rows: kernel.rows, states: kernel.states, cidrs: [], endpoints: [1] });
    engine.setEndpoint(1, { labels: textOf(pod) });
    return { kernel, engine, other, peerRow: `1/ingress/${idOf(PODS[5]!)}/0/0/0` };
  }

  it('changes nothing before the policies have been heard, and lets nothing pass for a pod that is new', () => {
    const { kernel, engine, other } = restarted(() => false);
    const rows = new Map(kernel.rows);
    engine.setEndpoint(2, { labels: textOf(other) });
    engine.flush(kernel.sinks);
    assert.deepEqual(kernel.rows, rows);
    assert.equal(kernel.states.get('1')?.locked, false);
    assert.equal(kernel.states.get('2')?.locked, true);
    assert.match(engine.info(2).locked ?? '', /have not been heard/);
  });

  it('keeps the rows of peers that have not been heard, and drops them when they have and do not know them', () => {
    let isSettled = false;
    const { kernel, engine, peerRow } = restarted(
      () => true,
      () => isSettled,
    );
    engine.setPolicy('p', allowApp('b'));
    engine.flush(kernel.sinks);
    assert.ok(kernel.rows.has(peerRow));
    assert.equal(engine.restoredCount(), 1);
    isSettled = true;
    engine.flush(kernel.sinks);
    assert.ok(!kernel.rows.has(peerRow));
    assert.equal(engine.restoredCount(), 0);
  });

  it('keeps the number of a range', () => {
    const engine = createPolicyEngine({
      ownCluster: 'eu',
      allowHost: true,
      isReady: () => true,
      isSettled: () => true,
    });
    const kernel = createPolicyKernel();
    engine.restore({ rows: new Map(), states: new Map(), cidrs: [['10.9.0.0/16', 0x01000077]], endpoints: [] });
    const base = allowApp('b');
    const spec = base.specs[0]!;
    const rules: PolicyRule[] = [
      {
        direction: 'ingress',
        effect: 'allow',
        peers: [{ kind: 'cidr', cidr: '10.9.0.0/16', except: ['10.9.1.0/24'] }],
        layer4: null,
      },
    ];
    engine.setPolicy('p', { ...base, specs: [{ ...spec, rules }] });
    engine.flush(kernel.sinks);
    assert.equal(kernel.cidrs.get('10.9.0.0/16'), 0x01000077);
    assert.notEqual(kernel.cidrs.get('10.9.1.0/24'), 0x01000077);
  });
});

describe('an endpoint of which the kernel lacks a denial', () => {
  it('is locked until the denial is there', () => {
    const { engine, flush, kernel } = observed();
    flush();
    engine.setIncomplete(new Set([1]), kernel.sinks.states);
    assert.equal(kernel.states.get('1')?.locked, true);
    assert.match(engine.info(1).locked ?? '', /lacks a rule that denies/);
    engine.setIncomplete(new Set(), kernel.sinks.states);
    assert.equal(kernel.states.get('1')?.locked, false);
  });
});
