/**
 * Which packets get from this node to another one and back: echo requests that may not be fragmented, by `ping` (iputils).
 */
import { execFile } from 'node:child_process';
import { isIP, isIPv6 } from 'node:net';
import type { PathProbe } from '@clustermesh/contract';

/** IPv4 20 or IPv6 40, and ICMP's own 8. */
const overheadOf = (address: string) => (isIPv6(address) ? 48 : 28);
const ANSWER_SECONDS = 1;
/** What paths usually carry, when it is less than 1500: 1492 PPPoE, 1480 an IP tunnel, 1450 VXLAN, 1420 WireGuard, 1400 many VPNs, 1280 IPv6's least. */
const USUAL_MTUS = [1492, 1480, 1450, 1420, 1400, 1280];
const SMALL = 128;
const LARGEST = 9216;

/** `mtu`: what both nodes' devices carry. */
export async function probePath(address: string, mtu: number): Promise<PathProbe> {
  // It comes from another cluster, and becomes an argument.
  if (isIP(address) === 0) return { address, mtu: 0, error: `${JSON.stringify(address)} is no address` };
  const most = Math.min(Math.max(mtu, SMALL), LARGEST);
  // The others only when that is lost: a path that is as it should be costs one packet.
  const whole = await echo(address, most);
  if (whole instanceof Error) return { address, mtu: 0, error: whole.message };
  if (whole) return { address, mtu: most, error: '' };
  const sizes = [...USUAL_MTUS.filter((size) => size < most), SMALL];
  const passed = await Promise.all(sizes.map((size) => echo(address, size)));
  return { address, mtu: sizes.find((_, index) => passed[index] === true) ?? 0, error: '' };
}

/** Whether a packet of that size came back; an error when that cannot be tried here. */
function echo(address: string, size: number): Promise<boolean | Error> {
  const payload = String(size - overheadOf(address));
  const args = ['-n', '-q', '-c', '1', '-W', String(ANSWER_SECONDS), '-M', 'do', '-s', payload, address];
  return new Promise((resolve) => {
    execFile('ping', args, { timeout: 5 * ANSWER_SECONDS * 1000 }, (error, _, stderr) => {
      if (error === null) resolve(true);
      else if (error.code === 'ENOENT') resolve(new Error('ping is not installed on this node'));
      else if (/not permitted|denied/i.test(stderr)) resolve(new Error(`ping may not be used: ${stderr.trim()}`));
      // No answer, or a packet that does not even fit the own device.
      else resolve(false);
    });
  });
}
