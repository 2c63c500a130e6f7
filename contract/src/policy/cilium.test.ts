import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { z } from 'zod';
import { parseLabels } from '../labels.ts';
import { type CiliumPolicyBody, ciliumPolicyBody, ciliumSpecs } from './cilium.ts';
import type { PolicySpec } from './model.ts';
import { labelSet, selects } from './selector.ts';

const schema = z.looseObject(ciliumPolicyBody);
const LOCAL = { cluster: 'eu', defaultLocalCluster: true };
const pod = (cluster: string, namespace: string, app: string) =>
  labelSet(
    parseLabels(
      `k8s:app=${app};k8s:io.cilium.k8s.policy.cluster=${cluster};k8s:io.kubernetes.pod.namespace=${namespace};`,
    )!,
  );
const host = labelSet(parseLabels('reserved:host=;')!);

const read = (spec: object, namespace = 'shop', context = LOCAL) =>
  ciliumSpecs(schema.parse({ spec: { endpointSelector: {}, ...spec } }) as CiliumPolicyBody, namespace, context);
const only = (result: { readonly specs: PolicySpec[] }) => result.specs[0]!.rules[0]!;
const peerSelector = (spec: object, namespace?: string, context?: typeof LOCAL) => {
  const peer = only(read(spec, namespace, context)).peers[0]!;
  assert.equal(peer.kind, 'labels');
  return peer.kind === 'labels' ? peer.selector : [];
};
const problemOf = (spec: object): string => {
  const parsed = schema.safeParse({ spec: { endpointSelector: {}, ...spec } });
  return parsed.success ? '' : parsed.error.issues.map((issue) => `${issue.path.join('.')}: ${issue.message}`).join();
};

describe('who is meant', () => {
  it('the subject lies in the namespace of the policy, whatever its selector says', () => {
    const { subject } = read({ endpointSelector: { matchLabels: { app: 'web' } }, ingress: [{}] }).specs[0]!;
    assert.ok(selects(subject, pod('eu', 'shop', 'web')));
    assert.ok(!selects(subject, pod('eu', 'other', 'web')));
    assert.ok(!selects(subject, pod('eu', 'shop', 'api')));
  });

  it('a peer selector without cluster label means this cluster, unless the mesh is told otherwise', () => {
    const rule = { ingress: [{ fromEndpoints: [{ matchLabels: { app: 'web' } }] }] };
    const local = peerSelector(rule);
    assert.ok(selects(local, pod('eu', 'shop', 'web')));
    assert.ok(!selects(local, pod('us', 'shop', 'web')));
    const everywhere = peerSelector(rule, 'shop', { ...LOCAL, defaultLocalCluster: false });
    assert.ok(selects(everywhere, pod('us', 'shop', 'web')));
  });

  it('a cluster label names another cluster, with and without prefix', () => {
    for (const prefix of ['', 'any:', 'k8s:']) {
      const matchLabels = { app: 'web', [`${prefix}io.cilium.k8s.policy.cluster`]: 'us' };
      const selector = peerSelector({ ingress: [{ fromEndpoints: [{ matchLabels }] }] });
      assert.ok(selects(selector, pod('us', 'shop', 'web')), prefix);
      assert.ok(!selects(selector, pod('eu', 'shop', 'web')), prefix);
    }
  });

  it('a cluster expression reaches several clusters', () => {
    const matchExpressions = [{ key: 'io.cilium.k8s.policy.cluster', operator: 'Exists' }];
    const selector = peerSelector({ ingress: [{ fromEndpoints: [{ matchExpressions }] }] });
    assert.ok(selects(selector, pod('us', 'shop', 'x')) && selects(selector, pod('eu', 'shop', 'x')));
  });

  it('an empty peer selector means the pods of the namespace, in a clusterwide policy all pods', () => {
    const rule = { ingress: [{ fromEndpoints: [{}] }] };
    assert.ok(!selects(peerSelector(rule), pod('eu', 'other', 'web')));
    assert.ok(selects(peerSelector(rule, ''), pod('eu', 'other', 'web')));
    assert.ok(!selects(peerSelector(rule, ''), host));
  });

  it('reserved labels are taken as they stand', () => {
    const selector = peerSelector({ ingress: [{ fromEndpoints: [{ matchLabels: { 'reserved:host': '' } }] }] });
    assert.ok(selects(selector, host));
  });

  it('an empty list of peers is nobody, no list beside ports is everybody, nothing at all is nobody', () => {
    assert.deepEqual(only(read({ ingress: [{ fromEndpoints: [] }] })).peers, []);
    assert.deepEqual(only(read({ ingress: [{ toPorts: [{ ports: [{ port: '80' }] }] }] })).peers, [{ kind: 'all' }]);
    assert.deepEqual(only(read({ ingress: [{}] })).peers, []);
  });
});

describe('ports', () => {
  const layer4 = (rule: object) => only(read({ egress: [rule] })).layer4;
  const ports = (...list: object[]) => ({ toEntities: ['all'], toPorts: [{ ports: list }] });
  for (const [name, rule, expected] of [
    ['a range', ports({ port: '8000', endPort: 8080, protocol: 'TCP' }), [['ports', 'TCP', 8000, 8080]]],
    ['port 0', ports({ port: '0', protocol: 'UDP' }), [['ports', 'UDP', 0, 65535]]],
    [
      'no protocol',
      ports({ port: 53 }),
      [
        ['ports', 'TCP', 53, 53],
        ['ports', 'UDP', 53, 53],
        ['ports', 'SCTP', 53, 53],
      ],
    ],
    [
      'ICMP by name and number',
      {
        toEntities: ['all'],
        icmps: [
          {
            fields: [
              { type: 'EchoRequest', family: 'IPv6' },
              { type: 8, family: 'IPv4' },
            ],
          },
        ],
      },
      [
        ['icmp', 6, 128],
        ['icmp', 4, 8],
      ],
    ],
    ['none', { toEntities: ['all'] }, undefined],
  ] as [string, object, unknown[][] | undefined][]) {
    it(name, () => {
      assert.deepEqual(
        layer4(rule)?.map((entry) => Object.values(entry)),
        expected,
      );
    });
  }
});

describe('default deny', () => {
  for (const [name, spec, expected] of [
    ['follows the directions that have rules', { ingress: [{}] }, { ingress: true, egress: false }],
    ['also of deny rules', { egressDeny: [{ toEntities: ['world'] }] }, { ingress: false, egress: true }],
    [
      'can be switched off',
      { ingress: [{}], enableDefaultDeny: { ingress: false } },
      { ingress: false, egress: false },
    ],
    ['can be switched on', { ingress: [{}], enableDefaultDeny: { egress: true } }, { ingress: true, egress: true }],
  ] as const) {
    it(name, () => assert.deepEqual(read(spec).specs[0]!.defaultDeny, expected));
  }
});

describe('what is not supported is never allowed', () => {
  for (const [name, rule, place] of [
    ['layer 7', { toPorts: [{ ports: [{ port: '80' }], rules: { http: [{}] } }] }, 'spec.egress[0].toPorts[0].rules'],
    ['DNS names', { toFQDNs: [{ matchName: 'example.org' }] }, 'spec.egress[0].toFQDNs'],
    ['services', { toServices: [{}], toPorts: [{ ports: [{ port: '80' }] }] }, 'spec.egress[0].toServices'],
    ['authentication', { toEntities: ['all'], authentication: { mode: 'required' } }, 'spec.egress[0].authentication'],
    ['CIDR groups', { toCIDRSet: [{ cidrGroupRef: 'x' }] }, 'spec.egress[0].toCIDRSet[0].cidrGroupRef'],
    ['fields of later versions', { toEntities: ['all'], toMoon: [] }, 'spec.egress[0].toMoon'],
    [
      'other protocols',
      { toPorts: [{ ports: [{ port: '1', protocol: 'VRRP' }] }] },
      'spec.egress[0].toPorts[0].ports[0].protocol',
    ],
  ] as [string, object, string][]) {
    it(`${name}: an allow rule allows nothing, and its default deny stays`, () => {
      const { specs, refused } = read({ egress: [rule] });
      assert.deepEqual(specs[0]!.rules, []);
      assert.equal(specs[0]!.defaultDeny.egress, true);
      assert.equal(refused.length, 1);
      assert.ok(refused[0]!.startsWith(`${place}: `) && refused[0]!.endsWith('; the rule allows nothing'), refused[0]);
    });

    it(`${name}: a deny rule denies everything`, () => {
      const { specs, refused } = read({ egressDeny: [rule] });
      assert.deepEqual(specs[0]!.rules, [
        { direction: 'egress', effect: 'deny', peers: [{ kind: 'all' }], layer4: null },
      ]);
      assert.match(refused[0]!, /; the rule denies all egress$/);
    });
  }

  it('leaves the other rules of the policy in force', () => {
    const { specs } = read({ egress: [{ toFQDNs: [{}] }, { toEntities: ['world'] }] });
    assert.equal(specs[0]!.rules.length, 1);
  });

  it('an unknown field beside the rules refuses all of them', () => {
    const { specs, refused } = read({ egress: [{ toEntities: ['all'] }], onlyAtNight: true });
    assert.deepEqual(specs[0]!.rules, []);
    assert.match(refused[0]!, /^spec\.onlyAtNight: /);
  });

  it('policies for nodes select no pod', () => {
    const body = schema.parse({ spec: { nodeSelector: {}, ingress: [{}] } }) as CiliumPolicyBody;
    const { specs, refused } = ciliumSpecs(body, '', LOCAL);
    assert.deepEqual(specs, []);
    assert.match(refused[0]!, /policies for nodes are not supported/);
  });
});

describe('what is malformed is refused as a whole', () => {
  for (const [name, spec, problem] of [
    ['no rules', {}, /at least one rule/],
    ['a CIDR', { ingress: [{ fromCIDR: ['10.0.0.0/33'] }] }, /fromCIDR\.0: is neither/],
    [
      'an exception outside',
      { ingress: [{ fromCIDRSet: [{ cidr: '10.0.0.0/8', except: ['11.0.0.0/9'] }] }] },
      /does not lie in/,
    ],
    ['an entity', { ingress: [{ fromEntities: ['neighbours'] }] }, /fromEntities\.0/],
    ['a port', { ingress: [{ toPorts: [{ ports: [{ port: '65536' }] }] }] }, /neither a port number/],
    ['a range upside down', { ingress: [{ toPorts: [{ ports: [{ port: '80', endPort: 79 }] }] }] }, /endPort/],
    [
      'an operator',
      { ingress: [{ fromEndpoints: [{ matchExpressions: [{ key: 'a', operator: 'Like' }] }] }] },
      /operator/,
    ],
    [
      'In without values',
      { ingress: [{ fromEndpoints: [{ matchExpressions: [{ key: 'a', operator: 'In' }] }] }] },
      /values/,
    ],
    ['a field in a selector', { endpointSelector: { matchLabel: { app: 'web' } }, ingress: [{}] }, /matchLabel/],
    ['an ICMP type', { ingress: [{ icmps: [{ fields: [{ type: 'Hello' }] }] }] }, /ICMP type/],
  ] as [string, object, RegExp][]) {
    it(name, () => assert.match(problemOf(spec), problem));
  }
});
