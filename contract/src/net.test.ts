import assert from 'node:assert/strict';
import { isIP, isIPv4 } from 'node:net';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import {
  canonicalCidr,
  canonicalIp,
  cidrContains,
  cidrsOverlap,
  hostCidr,
  ipv4Contains,
  ipv4RangesOverlap,
  ipv4ToNumber,
  isIpAddress,
  isIpv4,
  maskFromBase64,
  maskToBase64,
  numberToIpv4,
  parseCidr,
  readIpAddress,
  writeIpAddress,
} from './net.ts';

describe('addresses', () => {
  it('go to numbers and back', () => {
    fc.assert(fc.property(fc.nat(0xffffffff), (n) => assert.equal(ipv4ToNumber(numberToIpv4(n)), n)));
    assert.equal(numberToIpv4(0xffffffff), '255.255.255.255');
  });

  it('are what node takes for addresses, and nothing else is', () => {
    const part = fc.oneof(fc.nat(300).map(String), fc.stringMatching(/^[0-9 a.:-]{0,4}$/));
    const text = fc.oneof(
      fc.array(part, { minLength: 3, maxLength: 5 }).map((parts) => parts.join('.')),
      fc.ipV4(),
      fc.ipV6(),
      fc.string({ unit: 'binary', maxLength: 16 }),
    );
    fc.assert(
      fc.property(text, (candidate) => {
        assert.equal(isIpv4(candidate), isIPv4(candidate), candidate);
        assert.equal(isIpAddress(candidate), isIP(candidate) !== 0, candidate);
      }),
      { numRuns: 2_000 },
    );
  });

  it('go to 16 bytes and back, in one form', () => {
    const groups = fc.array(fc.oneof(fc.constant(0), fc.nat(0xffff)), { minLength: 8, maxLength: 8 });
    fc.assert(
      fc.property(groups, fc.boolean(), (parts, upper) => {
        const text = parts.map((part) => part.toString(16).padStart(4, '0')).join(':');
        const bytes = Buffer.alloc(18, 0xaa);
        assert.ok(writeIpAddress(upper ? text.toUpperCase() : text, bytes, 1));
        assert.equal(bytes.toString('hex'), `aa${text.replaceAll(':', '')}aa`);
        const short = readIpAddress(bytes, 1);
        // WHATWG URLs serialize IPv6 the same way, but for v4-mapped ones.
        if (!isIPv4(short)) assert.equal(`[${short}]`, new URL(`http://[${text}]`).hostname);
        assert.equal(canonicalIp(text), short);
        assert.equal(canonicalIp(short), short);
      }),
      { numRuns: 2_000 },
    );
    const forms: [string, string | undefined][] = [
      ['10.1.2.3', '10.1.2.3'],
      ['::ffff:10.1.2.3', '10.1.2.3'],
      ['64:ff9b::10.1.2.3', '64:ff9b::a01:203'],
      ['1::ffff:10.1.2.3', '1::ffff:a01:203'],
      ['::1:ffff:10.1.2.3', '::1:ffff:a01:203'],
      ['::fffe:10.1.2.3', '::fffe:a01:203'],
      ['::feff:10.1.2.3', '::feff:a01:203'],
      ['::', '::'],
      ['FD00:0:0:1:0:0:0:1', 'fd00:0:0:1::1'],
      ['fd00::1:0:0:1', 'fd00::1:0:0:1'],
      ['1:0:2:3:4:5:6:7', '1:0:2:3:4:5:6:7'],
      ['fe80::1%eth0', undefined],
      ['10.1.2', undefined],
    ];
    for (const [text, form] of forms) assert.equal(canonicalIp(text), form, text);
  });

  it('are inside a CIDR of their family, and have their network', () => {
    const inside = (cidr: string, ip: string) => cidrContains(parseCidr(cidr)!, ip);
    assert.ok(inside('fd00:1:1::/64', 'fd00:1:1::ffff'));
    assert.ok(inside('fd00:1:1::5/63', 'fd00:1:1:1::'));
    assert.ok(!inside('fd00:1:1::/64', 'fd00:1:1:1::'));
    assert.ok(inside('::/0', 'fd00::1') && inside('0.0.0.0/0', '10.0.0.1'));
    assert.ok(!inside('::/0', '10.0.0.1') && !inside('0.0.0.0/0', 'fd00::1') && !inside('::/0', 'x'));
    assert.equal(canonicalCidr(parseCidr('fd00:1:1::7/61')!), 'fd00:1:1::/61');
    assert.equal(canonicalCidr(parseCidr('10.1.1.7/25')!), '10.1.1.0/25');
    assert.equal(canonicalCidr(parseCidr('10.1.1.7/0')!), '0.0.0.0/0');
    assert.deepEqual([hostCidr('10.1.1.7'), hostCidr('fd00::7')], ['10.1.1.7/32', 'fd00::7/128']);
  });

  it('are inside a CIDR up to its last one', () => {
    const cidr = { ip: '10.1.1.0', length: 24 };
    assert.equal(ipv4Contains(cidr, '10.1.1.255'), true);
    assert.equal(ipv4Contains(cidr, '10.1.2.0'), false);
    assert.equal(ipv4Contains({ ip: '0.0.0.0', length: 0 }, '255.1.2.3'), true);
    assert.equal(ipv4Contains({ ip: '10.1.1.5', length: 32 }, '10.1.1.4'), false);
    assert.equal(ipv4Contains(cidr, 'fd00::1'), false);
  });

  it('masks have the base64 of Go', () => {
    assert.equal(maskToBase64(24, 4), '////AA==');
    assert.equal(maskToBase64(64, 16), '//////////8AAAAAAAAAAA==');
    for (const bytes of [4, 16] as const) {
      for (let length = 0; length <= bytes * 8; length++) {
        assert.equal(maskFromBase64(maskToBase64(length, bytes)), length);
      }
    }
    for (const bad of ['', 'AAAA', '/wD/AA==', 'not base64', '////AA'])
      assert.equal(maskFromBase64(bad), undefined, bad);
  });

  it('CIDRs are refused when they are none', () => {
    assert.deepEqual(parseCidr('10.1.0.0/16'), { ip: '10.1.0.0', length: 16 });
    assert.deepEqual(parseCidr('fd00::/64'), { ip: 'fd00::', length: 64 });
    for (const bad of ['10.1.0.0', '10.1.0.0/33', '10.1.0/16', '10.1.0.0/16/2', '10.1.0.0/-1', 'fd00::/129', '/8']) {
      assert.equal(parseCidr(bad), undefined, bad);
    }
  });

  it('CIDRs overlap by addresses, not by spelling', () => {
    for (const [a, b, expected] of [
      ['10.0.0.0/8', '10.200.0.0/16', true],
      ['10.1.2.3/16', '10.1.0.0/16', true],
      ['10.1.0.0/16', '10.2.0.0/16', false],
      ['0.0.0.0/0', '192.168.0.0/24', true],
      ['', '10.0.0.0/8', false],
      ['fd00::/8', '10.0.0.0/8', false],
    ] as const) {
      assert.equal(ipv4RangesOverlap(a, b), expected, `${a} ${b}`);
      assert.equal(ipv4RangesOverlap(b, a), expected, `${b} ${a}`);
    }
    for (const [a, b, expected] of [
      ['10.0.0.0/8', '10.200.0.0/16', true],
      ['10.1.0.0/16', '10.2.0.0/16', false],
      ['fd00:1::/32', 'fd00:1:0:0::7/64', true],
      ['fd00:1::5/32', 'fd00:1:ffff::/48', true],
      ['fd00:1::/32', 'fd00:2::/32', false],
      ['::/0', 'fd00:2::/32', true],
      ['::/0', '10.0.0.0/8', false],
      ['0.0.0.0/0', '::/0', false],
    ] as const) {
      const [left, right] = [parseCidr(a), parseCidr(b)];
      assert.ok(left !== undefined && right !== undefined);
      assert.equal(cidrsOverlap(left, right), expected, `${a} ${b}`);
      assert.equal(cidrsOverlap(right, left), expected, `${b} ${a}`);
    }
  });
});
