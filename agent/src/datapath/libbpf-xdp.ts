/** XDP's few calls of libbpf, as libbpf.ts has the others. A link is a descriptor here: what it holds lives by its pin. */
import koffi from 'koffi';
import { kernelError, objectInfo } from './libbpf.ts';

const lib = koffi.load('libbpf.so.1');

const linkCreateOpts = koffi.struct('cm_link_create_opts', { sz: 'size_t', flags: 'uint32_t', pad: 'uint32_t' });
const c = {
  linkCreate: lib.func('int bpf_link_create(int prog_fd, int ifindex, int attach_type, cm_link_create_opts *opts)'),
  linkUpdate: lib.func('int bpf_link_update(int link_fd, int prog_fd, void *opts)'),
  linkDetach: lib.func('int bpf_link_detach(int link_fd)'),
  queryId: lib.func('int bpf_xdp_query_id(int ifindex, int flags, _Out_ uint32_t *id)'),
};

/** `native`: in the driver. `generic`: after it, for any device; no faster than tc. */
export type XdpMode = 'native' | 'generic';

/** Of linux/bpf.h and linux/if_link.h. */
const BPF_XDP = 37;
const FLAG = { generic: 1 << 1, native: 1 << 2 } as const;

/** Descriptor of a new link, or a negative errno. A device has one XDP program: the kernel refuses where there is one. */
export function createXdpLink(programFd: number, ifindex: number, mode: XdpMode): number {
  return c.linkCreate(programFd, ifindex, BPF_XDP, { sz: koffi.sizeof(linkCreateOpts), flags: FLAG[mode], pad: 0 });
}

/** The kernel swaps the programs between two packets. */
export function updateXdpLink(link: number, programFd: number): void {
  const rc: number = c.linkUpdate(link, programFd, null);
  if (rc < 0) throw kernelError('replacing the program of an XDP link', rc);
}

/** Takes the program off its device before it returns; one whose device is gone has none. */
export const detachXdpLink = (link: number): void => void c.linkDetach(link);

/** The device that a link is on; 0: it is gone. struct bpf_link_info: type, id, prog_id, then (8-aligned) ifindex. */
export const ifindexOfXdpLink = (link: number): number => objectInfo(link, 64).readUInt32LE(16);

/** Id of the XDP program on a device, whosever it is and in whichever mode; undefined: there is none. */
export function xdpProgramOf(ifindex: number): number | undefined {
  const id: [number] = [0];
  const rc: number = c.queryId(ifindex, 0, id);
  if (rc < 0) throw kernelError(`asking for the XDP program of interface ${ifindex}`, rc);
  return id[0] || undefined;
}
