/**
 * Routes for packet tests: what bpf_fib_lookup() says is said by the network namespace that the test's thread is in. Nothing is sent.
 *
 *   up0 (UPLINK) 172.31.1.11/16, fd31::1:11/64 ── nodes, those of the packet lab with MACs known, but for 172.31.2.12
 *   up1          198.51.100.1/24, 2001:db8:7::1/64 ── the world behind 198.51.100.254, 2001:db8:7::fe
 */
import { closeSync, openSync } from 'node:fs';
import koffi from 'koffi';
import { kernelError } from '../libbpf.ts';
import { netnsPath, type Sandbox, sh } from './sandbox.ts';

const CLONE_NEWNET = 0x40000000;
const setns = koffi.load('libc.so.6').func('int setns(int fd, int type)');

/** This thread, and processes that it starts, are in it from now on; call what is returned to come back. */
export function enterNetns(netns: string): () => void {
  const home = openSync('/proc/thread-self/ns/net', 'r');
  const enter = (fd: number) => {
    const rc: number = setns(fd, CLONE_NEWNET);
    closeSync(fd);
    if (rc < 0) throw kernelError('entering a network namespace', koffi.errno());
  };
  enter(openSync(netnsPath(netns), 'r'));
  return () => enter(home);
}

export const ROUTER_MAC = '02:cc:00:00:00:fe';
/** Of nodes by the last two numbers of their addresses. */
export const macOfNode = (a: number, b: number): string =>
  `02:cc:00:00:${a.toString(16).padStart(2, '0')}:${b.toString(16).padStart(2, '0')}`;
export const UP_MAC = { up0: '02:dd:00:00:00:00', up1: '02:dd:00:00:00:01' } as const;

export interface Link {
  readonly name: keyof typeof UP_MAC;
  readonly ifindex: number;
}

export function buildRoutes(sandbox: Sandbox, links: readonly [Link, Link]): string {
  const netns = sandbox.netns('routed');
  const ip = (...args: string[]) => sh('ip', '-n', netns, ...args);
  for (const setting of ['net.ipv4.ip_forward=1', 'net.ipv6.conf.all.forwarding=1'])
    sh('nsenter', `--net=${netnsPath(netns)}`, 'sysctl', '-q', '-w', setting);
  for (const { name, ifindex } of links) {
    const peer = ['type', 'veth', 'peer', 'name', `${name}p`, 'index', String(ifindex + 30)];
    ip('link', 'add', name, 'index', String(ifindex), 'address', UP_MAC[name], ...peer);
    for (const end of [name, `${name}p`]) ip('link', 'set', end, 'up');
  }
  const address = (dev: string, ...prefixes: string[]) => {
    for (const prefix of prefixes) ip('addr', 'add', prefix, 'dev', dev, ...(prefix.includes(':') ? ['nodad'] : []));
  };
  address('up0', '172.31.1.11/16', 'fd31::1:11/64');
  address('up1', '198.51.100.1/24', '2001:db8:7::1/64');
  const neighbour = (dev: string, mac: string, ...ips: string[]) => {
    for (const to of ips) ip('neigh', 'replace', to, 'lladdr', mac, 'dev', dev, 'nud', 'permanent');
  };
  neighbour('up0', macOfNode(2, 11), '172.31.2.11', 'fd31::2:11');
  neighbour('up0', macOfNode(4, 11), '172.31.4.11', 'fd31::4:11');
  neighbour('up1', ROUTER_MAC, '198.51.100.254', '2001:db8:7::fe', '198.51.100.7', '2001:db8:7::7');
  // More than what the lab's tunnel takes, so that it is the tunnel's setting that counts; and less to what is routed to.
  ip('link', 'set', 'up0', 'mtu', '9000');
  for (const [prefix, via] of [
    ['10.4.0.0/16', '172.31.4.11'],
    ['fd00:4::/32', 'fd31::4:11'],
  ] as const)
    ip('route', 'add', prefix, 'via', via, 'mtu', 'lock', '1400');
  ip('route', 'add', 'default', 'via', '198.51.100.254');
  ip('-6', 'route', 'add', 'default', 'via', '2001:db8:7::fe');
  return netns;
}
