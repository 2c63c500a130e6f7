import { ipv4ToNumber, MeshError, numberToIpv4, parseCidr } from '@clustermesh/contract';

/** Hands out a node's pod addresses in turn, so that an address rests as long as possible before another pod gets it. */
export interface Ipam {
  allocate(): string;
  release(ip: string): void;
}

/** Leaves out the network's first two addresses (network, gateway) and the last (broadcast). */
export function createIpam(podCIDR: string): Ipam {
  const { ip, length } = parseCidr(podCIDR)!;
  const base = ipv4ToNumber(ip);
  const size = 2 ** (32 - length);
  const used = new Set<number>();
  let next = 2;
  return {
    allocate() {
      for (let tried = 2; tried < size - 1; tried++) {
        const offset = next;
        next = next + 1 >= size - 1 ? 2 : next + 1;
        if (!used.has(offset)) {
          used.add(offset);
          return numberToIpv4(base + offset);
        }
      }
      throw new MeshError({
        code: 'exhausted',
        message: `allocating a pod address from ${podCIDR}: all ${size - 3} are in use`,
      });
    },
    release: (address) => {
      used.delete(ipv4ToNumber(address) - base);
    },
  };
}
