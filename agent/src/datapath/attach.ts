/** Where programs meet traffic. Each attachment replaces an older version's without a packet in between. */
import { closeSync, openSync, statSync, unlinkSync } from 'node:fs';
import { join } from 'node:path';
import { MeshError } from '@clustermesh/contract';
import * as libbpf from './libbpf.ts';
import type { Loaded } from './loader.ts';

const SOCKET_PROGRAMS = ['connect', 'sendmsg', 'recvmsg', 'getpeername'].flatMap((on) => [`cm_${on}4`, `cm_${on}6`]);

/**
 * Socket programs hang on the cgroup by pinned links, so they stay while no agent runs. A link whose cgroup was removed
 * (and perhaps made again under the same name) is dead: it is dropped and a new one made.
 */
export function attachSocketPrograms(loaded: Loaded, cgroup: string, pinDir: string): void {
  const cgroupId = cgroupIdOf(cgroup);
  const fd = openSync(cgroup, 'r');
  try {
    for (const name of SOCKET_PROGRAMS) {
      const path = join(pinDir, `link_${name}`);
      const existing = libbpf.openLink(path);
      if (existing?.cgroupId === cgroupId) {
        libbpf.updateLink(existing.pointer, loaded.program(name));
        libbpf.closeLink(existing.pointer);
        continue;
      }
      if (existing !== undefined) {
        unlinkSync(path);
        libbpf.closeLink(existing.pointer);
      }
      const link = libbpf.attachCgroup(loaded.program(name), fd);
      libbpf.pinLink(link, path);
      libbpf.closeLink(link);
    }
  } finally {
    closeSync(fd);
  }
}

/** The kernel's id of a cgroup is the inode number of its directory. */
function cgroupIdOf(path: string): bigint {
  try {
    return statSync(path, { bigint: true }).ino;
  } catch (cause) {
    throw new MeshError({
      code: 'not-found',
      message: `attaching socket load balancing to cgroup ${path}: there is no such directory`,
      hint: 'Set datapath.cgroup to a cgroup v2 directory; /proc/mounts shows where cgroup2 is mounted.',
      cause,
    });
  }
}

export function attachOverlay(loaded: Loaded, vxlanIfindex: number): void {
  libbpf.attachTc(vxlanIfindex, 'ingress', loaded.programFd('cm_overlay'));
}

/** Egress first: an answer must not leave before it can be translated back. */
export function attachUplink(loaded: Loaded, ifindex: number): void {
  libbpf.attachTc(ifindex, 'egress', loaded.programFd('cm_to_network'));
  libbpf.attachTc(ifindex, 'ingress', loaded.programFd('cm_from_network'));
}

/** Egress first: by the time the pod can send, what comes back is already seen. */
export function attachPod(loaded: Loaded, ifindex: number): void {
  libbpf.attachTc(ifindex, 'egress', loaded.programFd('cm_to_pod'));
  libbpf.attachTc(ifindex, 'ingress', loaded.programFd('cm_from_pod'));
}

export function detachPod(ifindex: number): void {
  libbpf.detachTc(ifindex, 'ingress');
  libbpf.detachTc(ifindex, 'egress');
}

export function isPodAttached(ifindex: number): boolean {
  return libbpf.queryTc(ifindex, 'ingress') !== undefined && libbpf.queryTc(ifindex, 'egress') !== undefined;
}
