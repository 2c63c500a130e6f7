/**
 * XDP at the uplinks: links that are pinned, so that the program stays while no agent runs and a newer one takes its place between two
 * packets. tc does all that XDP does, later; so nothing here keeps the datapath from opening, and what could not be is said.
 *
 * A pin is named by device and mode: `link_xdp_2_native`. (By ifindex, since bpffs allows no dots, as VLAN devices have; and by mode,
 * since the kernel does not tell the mode of a link.)
 */
import { readdirSync, unlinkSync } from 'node:fs';
import { basename, join } from 'node:path';
import { CmXdpMode } from '@clustermesh/bpf';
import { messageOf } from '@clustermesh/contract';
import type { Log } from '@clustermesh/runtime';
import * as libbpf from './libbpf.ts';
import {
  createXdpLink,
  detachXdpLink,
  ifindexOfXdpLink,
  updateXdpLink,
  type XdpMode,
  xdpProgramOf,
} from './libbpf-xdp.ts';
import { deviceKind, interfaceIndex } from './links.ts';
import type { Loaded } from './loader.ts';

export type XdpSetting = 'off' | 'auto' | XdpMode;

const PIN = /^link_xdp_(\d+)_(native|generic)$/;
const MODE = { native: CmXdpMode.NATIVE, generic: CmXdpMode.GENERIC } as const;
const PROGRAM = { native: 'cm_xdp', generic: 'cm_xdp_generic' } as const;

interface Wanted {
  readonly device: string;
  readonly ifindex: number;
  readonly mode: XdpMode;
  readonly pin: string;
}

/** Puts the program on the uplinks that are to have it, and takes it from all others of this node. Returns what is not as it was asked for. */
export async function attachXdp(options: {
  /** With XDP's programs; undefined: no device is to have it. */
  readonly loaded: Loaded | undefined;
  readonly setting: XdpSetting;
  readonly uplinks: readonly string[];
  readonly pinDir: string;
  readonly log: Log;
}): Promise<string[]> {
  const { loaded, pinDir, log } = options;
  const problems: string[] = [];
  const wanted = loaded === undefined ? [] : await wantedOf(options);
  const pins = new Set(wanted.map(({ pin }) => pin));
  for (const name of readdirSync(pinDir)) if (PIN.test(name) && !pins.has(join(pinDir, name))) unpin(name);
  if (loaded === undefined) return problems;

  const { cm_xdp_devices } = loaded.maps;
  const programFd = ({ mode }: Wanted) => loaded.programFd(PROGRAM[mode]);
  const takePart = async ({ ifindex, mode }: Wanted) => {
    const [error] = await cm_xdp_devices.update([[ifindex, MODE[mode]]]);
    if (error !== undefined) throw error;
  };
  // Those that have an older program take part before it is replaced: its own table is another.
  const held = new Map<Wanted, number>();
  try {
    for (const one of wanted) {
      const link = liveLink(one);
      if (link === undefined) continue;
      held.set(one, link);
      await takePart(one);
    }
    for (const [one, link] of held) {
      try {
        updateXdpLink(link, programFd(one));
      } catch (error) {
        // The older program must not go on beside maps that are no longer its own.
        await cm_xdp_devices.remove([one.ifindex]);
        unpin(basename(one.pin));
        problems.push(`${one.device}: ${messageOf(error)}; tc does its work`);
      }
    }
  } finally {
    for (const link of held.values()) libbpf.closeFd(link);
  }
  for (const one of wanted) {
    if (held.has(one)) continue;
    const refused = attachNew(one, programFd(one));
    if (refused === undefined) {
      await takePart(one);
      continue;
    }
    const isOptional = options.setting === 'auto' && !refused.isForeign;
    log[isOptional ? 'info' : 'error']({ device: one.device, mode: one.mode }, `${refused.why}; tc does its work`);
    if (!isOptional) problems.push(refused.why);
  }
  return problems;

  function unpin(name: string): void {
    const path = join(pinDir, name);
    // At once: by its last pin the kernel takes it off some time later, when another mode's may want the device.
    const link = libbpf.pinned(path);
    if (link !== undefined) {
      detachXdpLink(link);
      libbpf.closeFd(link);
    }
    unlinkSync(path);
    log.info({ pin: name }, 'XDP is taken from a device that is not to have it');
  }
}

async function wantedOf(options: Parameters<typeof attachXdp>[0]): Promise<Wanted[]> {
  const { setting, uplinks, pinDir, log } = options;
  const wanted: Wanted[] = [];
  for (const device of uplinks) {
    // Its other end takes frames only if it runs XDP as well, and else they are lost; that cannot be seen from here.
    if (setting === 'auto' && (await deviceKind(device)) === 'veth') {
      log.info(
        { device },
        'no XDP on this device: it is a veth, which datapath.xdp leaves alone unless it says native or generic',
      );
      continue;
    }
    const ifindex = interfaceIndex(device);
    const mode = setting === 'generic' ? 'generic' : 'native';
    wanted.push({ device, ifindex, mode, pin: join(pinDir, `link_xdp_${ifindex}_${mode}`) });
  }
  return wanted;
}

/** Descriptor of the pinned link, if it is still on its device. */
function liveLink({ pin, ifindex }: Wanted): number | undefined {
  const link = libbpf.pinned(pin);
  if (link === undefined) return undefined;
  if (ifindexOfXdpLink(link) === ifindex) return link;
  libbpf.closeFd(link);
  unlinkSync(pin);
  return undefined;
}

function attachNew(
  { device, ifindex, mode, pin }: Wanted,
  programFd: number,
): { readonly why: string; readonly isForeign: boolean } | undefined {
  const attempted = `attaching XDP (${mode}) to ${device}`;
  const link = createXdpLink(programFd, ifindex, mode);
  if (link < 0) {
    const foreign = xdpProgramOf(ifindex);
    return foreign === undefined
      ? { why: `${attempted}: the driver refuses it: ${libbpf.errnoText(link)}`, isForeign: false }
      : { why: `${attempted}: XDP program ${foreign} of somebody else is on it, and stays`, isForeign: true };
  }
  try {
    libbpf.pinFd(link, pin);
    return undefined;
  } catch (error) {
    return { why: messageOf(error), isForeign: false };
  } finally {
    libbpf.closeFd(link);
  }
}
