import { execFile } from 'node:child_process';
import { promisify } from 'node:util';

interface Device {
  readonly mtu: number;
  readonly addr_info: readonly { readonly local?: string }[];
}

/**
 * The MTU of the device that has the node's address, for peers that compare it at connect; nothing when no device has it. Asked of
 * `ip`, because /sys shows the devices of the namespace in which it was mounted.
 */
export async function underlayMtu(nodeIp: string): Promise<{ readonly mtu?: number }> {
  const { stdout } = await promisify(execFile)('ip', ['-json', 'address', 'show']);
  const devices = JSON.parse(stdout) as Device[];
  const device = devices.find(({ addr_info }) => addr_info.some(({ local }) => local === nodeIp));
  return device === undefined ? {} : { mtu: device.mtu };
}
