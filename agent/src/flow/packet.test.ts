import assert from 'node:assert/strict';
import { describe, it } from 'node:test';
import fc from 'fast-check';
import { build, quoteOf } from '../datapath/testing/frames.ts';
import { readHead } from './packet.ts';

const tcp = build({ saddr: '10.1.1.5', daddr: '10.2.1.7', tcp: { sport: 4000, dport: 80, flags: 'SA' } });
const ends = { source: '10.1.1.5', destination: '10.2.1.7' };

/** IPv6 with the given chain of (next header, bytes) before UDP 4000 → 53. */
function ipv6(...chain: [number, string][]): Buffer {
  const udp = Buffer.from('0fa000350008ffff', 'hex');
  const types = [...chain.map(([type]) => type), 17];
  const extensions = chain.map(([, rest], i) => Buffer.from(types[i + 1]!.toString(16).padStart(2, '0') + rest, 'hex'));
  const payload = Buffer.concat([...extensions, udp]);
  const header = Buffer.alloc(40);
  header.writeUInt8(0x60, 0);
  header.writeUInt16BE(payload.length, 4);
  header.writeUInt8(types[0]!, 6);
  Buffer.from('fd000000000000000000000000000001', 'hex').copy(header, 8);
  Buffer.from('fd000000000000000000000000000002', 'hex').copy(header, 24);
  return Buffer.concat([Buffer.from('02000000000202000000000186dd', 'hex'), header, payload]);
}
const udp6 = { source: 'fd00::1', destination: 'fd00::2', protocol: 'UDP', sourcePort: 4000, destinationPort: 53 };

describe('the head of a frame', () => {
  it('tells addresses, ports and flags', () => {
    assert.deepEqual(readHead(tcp)?.tuple, {
      ...ends,
      protocol: 'TCP',
      sourcePort: 4000,
      destinationPort: 80,
      tcpFlags: 'S.',
    });
  });

  it('is found behind VLAN tags, of which the outer one is named', () => {
    const tagged = Buffer.concat([tcp.subarray(0, 12), Buffer.from('88a8006481000065', 'hex'), tcp.subarray(12)]);
    assert.deepEqual([readHead(tagged)?.vlan, readHead(tagged)?.tuple?.destinationPort], [100, 80]);
  });

  it('names the packet that an ICMP error is about', () => {
    const quote = quoteOf({ saddr: '10.1.1.5', daddr: '10.9.9.9', udp: { sport: 1, dport: 2 } });
    const head = readHead(build({ saddr: '10.1.1.1', daddr: '10.1.1.5', icmp: { type: 3, code: 1, quote } }));
    assert.deepEqual(head?.tuple?.icmp, { type: 3, code: 1 });
    assert.deepEqual([head?.quoted?.destination, head?.quoted?.destinationPort], ['10.9.9.9', 2]);
    const echo = readHead(build({ saddr: '10.1.1.1', daddr: '10.1.1.5', icmp: { type: 8, quote } }));
    assert.equal(echo?.quoted, undefined);
  });

  it('has no ports in a later fragment', () => {
    const fragment = (offset: number) =>
      readHead(
        build({
          saddr: ends.source,
          daddr: ends.destination,
          udp: { sport: 1, dport: 2 },
          fragment: { offset, more: true },
        }),
      );
    assert.deepEqual(fragment(1480)?.tuple, { ...ends, protocol: 'UDP', isFragment: true });
    assert.equal(fragment(0)?.tuple?.destinationPort, 2);
  });

  it('is read through IPv6 extension headers', () => {
    assert.deepEqual(readHead(ipv6())?.tuple, udp6);
    assert.deepEqual(readHead(ipv6([0, '00000000000000'], [60, '0100000000000000000000000000ff']))?.tuple, udp6);
    assert.deepEqual(readHead(ipv6([44, '000001deadbeef']))?.tuple, { ...udp6, isFragment: true });
    const later = readHead(ipv6([44, '000b91deadbeef']))?.tuple;
    assert.deepEqual(later, { source: 'fd00::1', destination: 'fd00::2', protocol: 'UDP', isFragment: true });
  });

  it('is left out as far as it is missing, whatever the bytes', () => {
    assert.equal(readHead(tcp.subarray(0, 13)), undefined);
    assert.deepEqual(readHead(tcp.subarray(0, 30)), { ethertype: 0x0800 });
    assert.deepEqual(readHead(tcp.subarray(0, 36))?.tuple, { ...ends, protocol: 'TCP' });
    fc.assert(fc.property(fc.uint8Array({ maxLength: 128 }), (bytes) => void readHead(Buffer.from(bytes))));
    fc.assert(
      fc.property(
        fc.uint8Array({ maxLength: 100 }),
        fc.constantFrom('0800', '86dd', '8100'),
        (bytes, type) => void readHead(Buffer.concat([Buffer.alloc(12), Buffer.from(type, 'hex'), bytes])),
      ),
    );
  });
});
