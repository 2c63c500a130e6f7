/** The inside of the datapath, for what measures it from another room. */
import { CmXdpMode } from '@clustermesh/bpf';
import { type DatapathConfig, pinDirOf } from '../index.ts';
import { loadPrograms } from '../loader.ts';
import { toFamily } from '../rows.ts';

export * as libbpf from '../libbpf.ts';
export { build, type Frame } from './frames.ts';

/** XDP over the tables of an open datapath, as a program that puts each packet back: see bpf/test/xdp-seam.bpf.c. Nothing is attached. */
export async function loadXdpAgain(
  config: DatapathConfig,
  uplinks: readonly number[],
): Promise<{ readonly fd: number; close(): void }> {
  const loaded = await loadPrograms({
    objects: ['xdp-seam'],
    pinDir: pinDirOf(config),
    settings: {
      ipv4: toFamily(config),
      ipv6: toFamily(config.ipv6),
      vxlanIfindex: 0,
      identityShift: config.identityShift,
      underlayMtu: config.underlayMtu ?? 0,
    },
  });
  await loaded.maps.cm_xdp_devices.update(uplinks.map((ifindex) => [ifindex, CmXdpMode.NATIVE]));
  return { fd: loaded.programFd('cm_test_xdp_again'), close: loaded.close };
}
