/** Names of ICMP types as Cilium's policies may give them instead of numbers. */
const IPV4: Readonly<Record<string, number>> = {
  EchoReply: 0,
  DestinationUnreachable: 3,
  Redirect: 5,
  Echo: 8,
  EchoRequest: 8,
  RouterAdvertisement: 9,
  RouterSelection: 10,
  TimeExceeded: 11,
  ParameterProblem: 12,
  Timestamp: 13,
  TimestampReply: 14,
  Photuris: 40,
  ExtendedEchoRequest: 42,
  ExtendedEchoReply: 43,
};

const IPV6: Readonly<Record<string, number>> = {
  DestinationUnreachable: 1,
  PacketTooBig: 2,
  TimeExceeded: 3,
  ParameterProblem: 4,
  EchoRequest: 128,
  EchoReply: 129,
  MulticastListenerQuery: 130,
  MulticastListenerReport: 131,
  MulticastListenerDone: 132,
  RouterSolicitation: 133,
  RouterAdvertisement: 134,
  NeighborSolicitation: 135,
  NeighborAdvertisement: 136,
  RedirectMessage: 137,
};

/** A number, its decimal text, or a name; undefined when it is no type of that family. */
export function icmpType(family: 4 | 6, type: string | number): number | undefined {
  const number = typeof type === 'string' && /^\d{1,3}$/.test(type) ? Number(type) : type;
  if (typeof number === 'string') return (family === 4 ? IPV4 : IPV6)[number];
  return Number.isInteger(number) && number >= 0 && number <= 255 ? number : undefined;
}
