import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import { isHost, toCidr, toPrefix } from './rows.ts';

describe('prefixes as the kernel has them', () => {
  it('of both families, in one space of 128 bits', () => {
    assert.deepEqual(toPrefix('10.1.0.0/16'), { prefixLen: 112, net: '10.1.0.0' });
    assert.deepEqual(toPrefix('0.0.0.0/0'), { prefixLen: 96, net: '0.0.0.0' });
    assert.deepEqual(toPrefix('fd00:1::/48'), { prefixLen: 48, net: 'fd00:1::' });
    assert.deepEqual(toPrefix('::/0'), { prefixLen: 0, net: '::' });
  });

  it('with bits behind their length are refused by name', () => {
    for (const text of ['10.1.0.1/16', '10.1.0.0/8', 'fd00:1::1/48'])
      assert.throws(() => toPrefix(text), new RegExp(`the prefix ${text}: bits are set`));
  });

  it('that are one address are hosts', () => {
    for (const text of ['10.1.0.1/32', 'fd00::1/128']) assert.ok(isHost(text), text);
    for (const text of ['10.1.0.0/31', 'fd00::/32', '::/0']) assert.ok(!isHost(text), text);
  });

  it('in another form than the one of the kernel are refused', () => {
    for (const text of ['FD00::/48', '::ffff:10.1.0.0/112', '10.1.0.0', '10.1.0.0/33'])
      assert.throws(() => toCidr(text), /not an IP prefix, or not in its canonical form/);
  });
});
