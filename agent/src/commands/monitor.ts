/** `monitor`: what becomes of packets, as it happens. */
import { MeshError, type WatchFlowsRequest } from '@clustermesh/contract';
import type { FlowEnd, FlowEvent } from '../flow/flow-event.ts';
import { type CommandKit, outputOption, type PrintOptions, UsageError } from './kit.ts';

interface MonitorOptions extends PrintOptions {
  readonly verdict: string[];
  readonly reason: string[];
  readonly identity: string[];
  readonly address: string[];
  readonly port: string[];
  readonly service: string[];
  readonly last: string;
  readonly sample: string;
  readonly follow: boolean;
}

const collect = (value: string, before: string[]): string[] => [...before, value];

export function addMonitor({ terminal, add, withAgent }: CommandKit): void {
  add('monitor', 'what becomes of packets on this node, as it happens')
    .option('--verdict <verdict>', 'forwarded, answered or dropped', collect, [])
    .option('--reason <reason>', 'as `drops` names them, e.g. spoofed-source', collect, [])
    .option('--identity <number>', 'numeric identity of either end', collect, [])
    .option('--address <address>', 'address or prefix of either end', collect, [])
    .option('--port <number>', 'port of either end', collect, [])
    .option('--service <service>', 'address:port/protocol, or the beginning of it', collect, [])
    .option('--last <n>', 'begin with so many events from before, if they were', '0')
    .option('--sample <n>', 'also show one of so many forwarded packets', '0')
    .option('--no-follow', 'end after the events from before')
    .addOption(outputOption())
    .addHelpText(
      'after',
      `
Refused packets are all shown, up to the rate of the agent's configuration; forwarded ones only with --sample.
Filters of one kind may be repeated: one of them must match. Of different kinds, all must.
With -o json one object a line. Ends with Ctrl-C.`,
    )
    .action((options: MonitorOptions) =>
      withAgent(options, async (rpc) => {
        const request: WatchFlowsRequest = {
          verdict: options.verdict,
          reason: options.reason,
          identity: options.identity.map((text) => numberIn('--identity', text)),
          address: options.address,
          port: options.port.map((text) => numberIn('--port', text)),
          service: options.service,
          last: numberIn('--last', options.last),
          sampleEvery: numberIn('--sample', options.sample),
          noFollow: !options.follow,
        };
        try {
          for await (const { json } of rpc.WatchFlows(request, terminal.signal)) {
            const event = JSON.parse(json) as FlowEvent | { readonly lost: number };
            if ('lost' in event) terminal.err(`${event.lost} events were not shown: this reader was too slow`);
            else terminal.out(options.output === 'json' ? json : lineOf(event));
          }
        } catch (error) {
          if (!terminal.signal.aborted) throw error;
        }
        if (options.follow && !terminal.signal.aborted) {
          throw new MeshError({ code: 'unreachable', message: 'watching flow events: the agent has ended' });
        }
        return undefined;
      }),
    );
}

function numberIn(option: string, text: string): number {
  const value = Number(text);
  if (/^\d+$/.test(text) && value <= 0xffff_ffff) return value;
  throw new UsageError({ code: 'invalid-argument', message: `${option} ${JSON.stringify(text)}: not a whole number` });
}

const endText = (end: FlowEnd | undefined): string => {
  if (end === undefined) return '?';
  const address =
    end.port === undefined ? end.ip : end.ip.includes(':') ? `[${end.ip}]:${end.port}` : `${end.ip}:${end.port}`;
  return end.identity === undefined ? address : `${address} (${end.identity})`;
};

/** 10:00:00.123 dropped spoofed-source from-pod cmp-a TCP S 10.9.9.9:4000 → 10.1.1.6:80 (65542) 74 bytes */
export function lineOf(event: FlowEvent): string {
  const { source, destination, service, icmp, vlan, every } = event;
  const ends = source === undefined && destination === undefined ? '' : `${endText(source)} → ${endText(destination)}`;
  const parts = [
    event.time.slice(11, 23),
    event.verdict,
    event.reason,
    event.direction,
    event.interface,
    event.protocol ?? event.ethertype,
    event.tcpFlags,
    icmp && `type ${icmp.type} code ${icmp.code}`,
    event.isFragment && 'fragment',
    vlan !== undefined && `vlan ${vlan}`,
    ends,
    service !== undefined && `service ${service}`,
    event.to !== undefined && event.verdict !== 'dropped' && `to ${event.to}`,
    event.bytes > 0 && `${event.bytes} bytes`,
    every > 1 && `(1 of ${every})`,
  ];
  return parts.filter((part) => part !== undefined && part !== false && part !== '').join(' ');
}
