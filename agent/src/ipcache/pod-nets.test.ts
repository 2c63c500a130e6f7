import assert from 'node:assert/strict';
import { test } from 'node:test';
import { cidrContains, isIpv4, parseCidr } from '@clustermesh/contract';
import fc from 'fast-check';
import { createPodNets } from './pod-nets.ts';

const address = fc.oneof(
  fc.tuple(fc.integer({ min: 0, max: 2 }), fc.nat(255)).map(([a, b]) => `10.1.${a}.${b}`),
  fc.nat(0xffff).map((low) => `fd00::${low.toString(16)}`),
);
const prefix = fc
  .tuple(address, fc.integer({ min: 20, max: 32 }))
  .map(([ip, length]) => `${ip}/${isIpv4(ip) ? length : length * 4}`);
const text = fc.oneof(
  { weight: 8, arbitrary: prefix },
  fc.constantFrom(undefined, '', '10.1.0.0', '0.0.0.0/0', '::/0'),
);

test('property: prefixes are inside what the nodes said last, as when each is compared', () => {
  const steps = fc.array(fc.tuple(fc.constantFrom('n1', 'n2', 'n3'), fc.array(text, { maxLength: 3 })), {
    maxLength: 8,
  });
  fc.assert(
    fc.property(steps, fc.array(prefix, { minLength: 1, maxLength: 10 }), (changes, asked) => {
      const nets = createPodNets();
      const model = new Map<string, string[]>();
      for (const [node, texts] of changes) {
        const good = texts.filter((each) => parseCidr(each ?? '') !== undefined) as string[];
        assert.equal(nets.set(node, texts), good.join() !== (model.get(node) ?? []).join());
        model.set(node, good);
      }
      for (const each of asked) {
        const claimed = parseCidr(each)!;
        const expected = [...model.values()].flat().some((cidr) => {
          const net = parseCidr(cidr)!;
          return net.length <= claimed.length && isIpv4(net.ip) === isIpv4(claimed.ip) && cidrContains(net, claimed.ip);
        });
        assert.equal(nets.contain(claimed), expected, `${each} in ${JSON.stringify([...model])}`);
      }
    }),
    { numRuns: 2_000 },
  );
});
