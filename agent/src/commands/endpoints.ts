/** `endpoint list`: the pods of this node as the agent knows them. */
import type { EndpointInfo } from '@clustermesh/contract';
import { type CommandKit, outputOption, type PrintOptions, printRows } from './kit.ts';

export function addEndpoints({ terminal, group, add, withAgent }: CommandKit): void {
  const endpoint = group('endpoint', 'the pods of this node');
  add('list', 'pods with their identities, and why one is waiting', endpoint)
    .addOption(outputOption())
    .action((options: PrintOptions) =>
      withAgent(options, async (rpc) => {
        const { endpoints } = await rpc.EndpointList({});
        const rows = endpoints as unknown as Record<string, unknown>[];
        const asRow = ({ id, namespace, pod, ipv4, interface: device, identity, state, reason }: EndpointInfo) => ({
          id,
          pod: `${namespace}/${pod}`,
          address: ipv4,
          identity,
          interface: device,
          state,
          reason,
        });
        if (options.output === 'json') printRows(terminal, 'json', rows);
        else printRows(terminal, 'table', endpoints.map(asRow));
        return undefined;
      }),
    );
}
