/** What surrounds two clusters: networks, clocks, versions, certificates. Pure: facts in, checks out. */
import {
  type ClusterFacts,
  cidrContains,
  type ErrorCode,
  ipv4RangesOverlap,
  messageOf,
  type NodeFacts,
  type PreflightCheck,
  parseCidr,
} from '@clustermesh/contract';
import { certificateFacts } from '@clustermesh/pki';
import { doubtful, passed, refused } from './check.ts';

/** Certificates are valid from ten minutes before they are made (pki/src/certificate.ts): half of that is left for drift. */
const CLOCK_REFUSED_MS = 5 * 60_000;
const CLOCK_DOUBTFUL_MS = 5_000;
const CA_WARNING_MS = 30 * 86_400_000;
/** Outer IPv4 20, UDP 8, VXLAN 8, inner Ethernet 14. */
const VXLAN_OVERHEAD = 50;
/** IPv6 needs it, and so does every pod that takes its MTU for granted. */
const LEAST_MTU = 1280 + VXLAN_OVERHEAD;

export function environmentChecks(
  own: ClusterFacts,
  peer: ClusterFacts,
  clock: { readonly offsetMs: number; readonly errorMs: number },
): PreflightCheck[] {
  return [
    addressCheck(own, peer),
    routingCheck(own, peer),
    mtuCheck(own, peer),
    clockCheck(own, peer, clock),
    versionCheck(own, peer),
    caCheck(own, peer),
  ];
}

/** Ranges of one cluster that hold addresses of the other. Two equal service CIDRs are fine: those addresses never travel. */
function addressCheck(own: ClusterFacts, peer: ClusterFacts): PreflightCheck {
  const name = 'addresses';
  const clash = clashesOf(own, peer)[0] ?? clashesOf(peer, own)[0] ?? sharedNodeAddress(own, peer);
  if (clash === undefined)
    return passed(
      name,
      `pods, services and nodes of ${own.cluster.name} and ${peer.cluster.name} do not get in each other's way`,
    );
  return refused(name, {
    code: 'conflict',
    what: clash,
    why: 'what is sent to that address ends in the wrong cluster, for some clients only',
    fix: 'give pods, services and nodes of the two clusters addresses of their own',
  });
}

const addressesOf = ({ name, address, addressV6 }: NodeFacts) =>
  [address, addressV6].flatMap((ip) => (ip === '' ? [] : [{ name, address: ip }]));

function clashesOf(a: ClusterFacts, b: ClusterFacts): string[] {
  const { name } = a.cluster;
  const ranges = [
    { what: 'service CIDR', cidr: a.serviceCidr },
    { what: 'pod CIDR', cidr: a.cluster.podCidr },
    { what: 'pod CIDR', cidr: a.cluster.podCidrV6 },
  ];
  const clashes: string[] = [];
  if (ipv4RangesOverlap(a.serviceCidr, b.cluster.podCidr))
    clashes.push(
      `the service CIDR ${a.serviceCidr} of ${name} overlaps the pod CIDR ${b.cluster.podCidr} of ${b.cluster.name}`,
    );
  for (const { what, cidr } of ranges) {
    const range = parseCidr(cidr);
    const inside = range && b.nodes.flatMap(addressesOf).find(({ address }) => cidrContains(range, address));
    if (inside)
      clashes.push(
        `node ${inside.name} of ${b.cluster.name} (${inside.address}) has an address of the ${what} ${cidr} of ${name}`,
      );
  }
  return clashes;
}

function sharedNodeAddress(own: ClusterFacts, peer: ClusterFacts): string | undefined {
  const byAddress = new Map(own.nodes.flatMap(addressesOf).map((node) => [node.address, node.name]));
  const twin = peer.nodes.flatMap(addressesOf).find((node) => byAddress.has(node.address));
  return (
    twin &&
    `node ${byAddress.get(twin.address)} of ${own.cluster.name} and node ${twin.name} of ${peer.cluster.name} both have the address ${twin.address}`
  );
}

function routingCheck(own: ClusterFacts, peer: ClusterFacts): PreflightCheck {
  const name = 'routing';
  const modesOf = (facts: ClusterFacts) => [...new Set(facts.nodes.flatMap((node) => node.routingMode || []))].sort();
  const [ours, theirs] = [modesOf(own), modesOf(peer)];
  if (ours.length === 0 || theirs.length === 0) return passed(name, 'no node says how it routes: tunnels are assumed');
  if (ours.length === 1 && theirs.length === 1 && ours[0] === theirs[0])
    return passed(name, `all nodes use routing mode ${ours[0]}`);
  return refused(name, {
    code: 'conflict',
    what: `the nodes of ${own.cluster.name} use routing mode ${ours.join(' and ')}, those of ${peer.cluster.name} ${theirs.join(' and ')}`,
    why: 'one side would send packets in a form that the other does not take',
    fix: 'set one routing mode on the nodes of both clusters',
  });
}

function mtuCheck(own: ClusterFacts, peer: ClusterFacts): PreflightCheck {
  const name = 'mtu';
  const [ours, theirs] = [smallestMtu(own.nodes), smallestMtu(peer.nodes)];
  if (ours === undefined || theirs === undefined)
    return passed(name, 'not known: the nodes of one side do not tell theirs');
  const shown = `${own.cluster.name} ${ours.mtu} (node ${ours.name}), ${peer.cluster.name} ${theirs.mtu} (node ${theirs.name})`;
  const least = Math.min(ours.mtu, theirs.mtu);
  if (least < LEAST_MTU) {
    return refused(name, {
      code: 'unsupported',
      what: `the smallest MTU of the nodes is ${least}: ${shown}`,
      why: `a tunnel takes ${VXLAN_OVERHEAD} bytes, and pods need ${LEAST_MTU - VXLAN_OVERHEAD}`,
      fix: `raise the MTU of that node's device to ${LEAST_MTU} at least`,
    });
  }
  if (ours.mtu !== theirs.mtu) {
    return doubtful(name, {
      what: `the MTU differs: ${shown}`,
      why: 'large packets of the one side are too large for the other: connections open, and then stand still',
      fix: `give pods an MTU of ${least - VXLAN_OVERHEAD} at most, in both clusters`,
    });
  }
  return passed(name, `${least} on the nodes of both, ${least - VXLAN_OVERHEAD} inside of the tunnel`);
}

function smallestMtu(nodes: readonly NodeFacts[]): NodeFacts | undefined {
  return nodes
    .filter((node) => node.mtu > 0)
    .reduce<NodeFacts | undefined>(
      (least, node) => (least === undefined || node.mtu < least.mtu ? node : least),
      undefined,
    );
}

function clockCheck(
  own: ClusterFacts,
  peer: ClusterFacts,
  clock: { readonly offsetMs: number; readonly errorMs: number },
): PreflightCheck {
  const name = 'clock';
  // What is certain: a slow answer must not look like a wrong clock.
  const certainMs = Math.max(0, Math.abs(clock.offsetMs) - clock.errorMs);
  const way = `the clock of ${peer.cluster.name} is ${(Math.abs(clock.offsetMs) / 1000).toFixed(1)} s ${clock.offsetMs < 0 ? 'behind' : 'ahead of'} that of ${own.cluster.name}`;
  const why = 'certificates that one cluster makes are not yet valid, or no longer, in the other';
  const fix = 'synchronise the clocks of both hosts (NTP), then try again';
  if (certainMs > CLOCK_REFUSED_MS) return refused(name, { code: 'conflict', what: way, why, fix });
  if (certainMs > CLOCK_DOUBTFUL_MS) return doubtful(name, { what: way, why, fix });
  return passed(name, certainMs < 1000 ? 'the clocks agree' : way);
}

function versionCheck(own: ClusterFacts, peer: ClusterFacts): PreflightCheck {
  const name = 'version';
  const [ours, theirs] = [own.cluster.version, peer.cluster.version].map((text) =>
    /^(\d+)\.(\d+)/.exec(text)?.slice(1).map(Number),
  );
  const shown = `${own.cluster.name} runs ${own.cluster.version || '(unknown)'}, ${peer.cluster.name} ${peer.cluster.version || '(unknown)'}`;
  if (ours === undefined || theirs === undefined) return passed(name, shown);
  const why = 'only releases of neighbouring minor versions are tested with each other';
  const fix = 'upgrade the older cluster';
  if (ours[0] !== theirs[0]) return refused(name, { code: 'unsupported', what: shown, why, fix });
  if (Math.abs(ours[1]! - theirs[1]!) > 1) return doubtful(name, { what: shown, why, fix });
  return passed(name, shown);
}

function caCheck(own: ClusterFacts, peer: ClusterFacts): PreflightCheck {
  const name = 'ca';
  const who = peer.cluster.name;
  const bad = (what: string, fix: string, code: ErrorCode = 'tls') =>
    refused(name, { code, what, why: `every connection to ${who} is verified against it`, fix });
  try {
    const ca = certificateFacts(peer.cluster.caPem, `the CA of ${who}`);
    const until = ca.notAfter.toISOString().slice(0, 10);
    const print = ca.fingerprint.slice(0, 16);
    if (!ca.isCa)
      return bad(`the CA of ${who} (${print}) is no certificate authority`, `give ${who} a CA: clustermesh pki init`);
    if (ca.notAfter.getTime() <= own.unixMs)
      return bad(`the CA of ${who} (${print}) has expired on ${until}`, `rotate the CA of ${who}`);
    if (ca.notBefore.getTime() > own.unixMs)
      return bad(
        `the CA of ${who} (${print}) is valid only from ${ca.notBefore.toISOString()} on`,
        `check the clock of ${own.cluster.name}`,
      );
    if (ca.notAfter.getTime() - own.unixMs < CA_WARNING_MS) {
      return doubtful(name, {
        what: `the CA of ${who} (${print}) expires on ${until}`,
        why: `from then on nobody can connect to ${who}`,
        fix: `rotate the CA of ${who}`,
      });
    }
    return passed(name, `the CA of ${who} is ${print}…, valid until ${until}`);
  } catch (error) {
    return bad(messageOf(error), `look at ca.crt in pki.dir of ${who}`);
  }
}
