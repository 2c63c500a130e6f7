/** The port for network devices: iproute2's ip(8), in the network namespace that the agent was started in. */
import { execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { text } from 'node:stream/consumers';
import { promisify } from 'node:util';
import { MeshError } from '@clustermesh/contract';
import * as libbpf from './libbpf.ts';

const exec = promisify(execFile);

/** IANA's VXLAN port is 4789; Cilium's, and so ours, is 8472. */
export const VXLAN_PORT = 8472;

/** A mesh of 25 000 pod CIDRs has as many routes, of some 100 bytes each. */
const MOST_OUTPUT_BYTES = 64 << 20;

/** iproute2's `ip` with these arguments; what it prints. */
export async function ip(args: readonly string[]): Promise<string> {
  try {
    const { stdout } = await exec('ip', [...args], { maxBuffer: MOST_OUTPUT_BYTES });
    return stdout;
  } catch (error) {
    const { stderr, message } = error as Error & { stderr?: string };
    throw new MeshError({
      code: 'kernel',
      message: `ip ${args.join(' ')}: ${stderr?.trim() || message}`,
      hint: 'The agent needs iproute2 and CAP_NET_ADMIN.',
      cause: error,
    });
  }
}

/**
 * Many commands of one family in one process of `ip`: one by one they cost a process each, which a mesh of 25 000 pod CIDRs does not
 * bear. All are tried; returned is why those failed that did, by their place.
 */
export async function ipBatch(
  family: '-4' | '-6',
  commands: readonly (readonly string[])[],
): Promise<ReadonlyMap<number, string>> {
  if (commands.length === 0) return new Map();
  const child = spawn('ip', [family, '-force', '-batch', '-'], { stdio: ['pipe', 'ignore', 'pipe'] });
  const said = text(child.stderr);
  child.stdin.on('error', () => {}); // It ended early: what it said, or did not, tells.
  child.stdin.end(commands.map((args) => `${args.join(' ')}\n`).join(''));
  try {
    await once(child, 'close');
  } catch (error) {
    throw MeshError.from(error, `running ip ${family} -batch`, 'kernel');
  }
  return batchFailures(await said);
}

/** What `ip -force -batch -` says of each command that failed, ending with `Command failed -:LINE`. */
export function batchFailures(said: string): Map<number, string> {
  const failures = new Map<number, string>();
  let reasons: string[] = [];
  for (const line of said.split('\n')) {
    const failed = /^Command failed -:(\d+)$/.exec(line.trim());
    if (failed === null) {
      if (line.trim() !== '') reasons.push(line.trim());
      continue;
    }
    failures.set(Number(failed[1]) - 1, reasons.join(' '));
    reasons = [];
  }
  return failures;
}

interface LinkDetails {
  linkinfo?: { info_kind?: string; info_data?: { external?: boolean; port?: number } };
}

/**
 * Makes sure of a VXLAN device in collect-metadata mode (the tunnel key is set and read per packet, by the programs), and
 * that it is up. Returns its ifindex. A device of that name that is something else is left alone and refused.
 */
export async function ensureVxlan(name: string): Promise<number> {
  if (libbpf.interfaceIndex(name) === undefined) {
    const kind = ['type', 'vxlan', 'external', 'dstport', String(VXLAN_PORT), 'nolearning'];
    await ip(['link', 'add', name, ...kind]);
  }
  const [link] = JSON.parse(await ip(['-json', '-details', 'link', 'show', 'dev', name])) as LinkDetails[];
  const { info_kind, info_data } = link?.linkinfo ?? {};
  if (info_kind !== 'vxlan' || info_data?.external !== true || info_data.port !== VXLAN_PORT) {
    throw new MeshError({
      code: 'conflict',
      message: `using ${name} as tunnel device: it exists but is not a VXLAN device with external metadata on port ${VXLAN_PORT}`,
      hint: `Remove it (ip link del ${name}) or name another device (datapath.vxlanDevice).`,
    });
  }
  // No IPv6 link-local chatter into the tunnel, and nobody to ask there: routes into it have no next hop.
  await ip(['link', 'set', 'dev', name, 'addrgenmode', 'none', 'arp', 'off', 'up']);
  return interfaceIndex(name);
}

/** What kind of virtual device it is (`veth`, `vlan`, …); undefined: a device of hardware, or none. */
export async function deviceKind(name: string): Promise<string | undefined> {
  const [link] = JSON.parse(await ip(['-json', '-details', 'link', 'show', 'dev', name])) as LinkDetails[];
  return link?.linkinfo?.info_kind;
}

/** MTU of the device that has this address; 0 where none has, or more than one. */
export async function underlayMtuOf(nodeIp: string): Promise<number> {
  const devices = JSON.parse(await ip(['-json', 'addr', 'show', 'to', nodeIp])) as { mtu?: number }[];
  const mtus = devices.flatMap(({ mtu }) => mtu ?? []);
  return mtus.length === 1 ? mtus[0]! : 0;
}

export function interfaceIndex(name: string): number {
  const index = libbpf.interfaceIndex(name);
  if (index !== undefined) return index;
  throw new MeshError({
    code: 'not-found',
    message: `looking up interface ${name}: there is none of that name in this network namespace`,
  });
}
