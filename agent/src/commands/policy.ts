/** `policy get`: what the kernel enforces at the pods of this node. */
import { MeshError } from '@clustermesh/contract';
import type { PolicyView, PolicyViewRow } from '../policy/view.ts';
import { type CommandKit, outputOption, type PrintOptions, printRows, type Rpc } from './kit.ts';

/** The rows of an endpoint may come in several portions. */
async function read(rpc: Rpc, endpoint: string): Promise<PolicyView[]> {
  const views = new Map<number, PolicyView & { readonly rows: PolicyViewRow[] }>();
  for await (const { json } of rpc.ReadPolicy({ endpoint })) {
    const view = JSON.parse(json) as PolicyView & { readonly rows: PolicyViewRow[] };
    const known = views.get(view.endpointId);
    if (known === undefined) views.set(view.endpointId, view);
    else known.rows.push(...view.rows);
  }
  return [...views.values()];
}

function headOf({ endpointId, pod, addresses, ingress, egress, locked, revision, policies }: PolicyView): string {
  const enforced = locked
    ? 'locked: nothing passes'
    : `ingress ${ingress ? 'enforced' : 'open'}, egress ${egress ? 'enforced' : 'open'}`;
  const who = [pod ?? 'no pod', ...addresses].join(' ');
  return [`${endpointId} ${who}`, enforced, `revision ${revision}`, policies.join(' ')].filter(Boolean).join('; ');
}

export function addPolicy({ terminal, group, add, withAgent }: CommandKit): void {
  const policy = group('policy', 'network policy in the kernel');
  add('get', 'what the kernel enforces at the pods of this node, row by row', policy)
    .argument('[endpoint]', 'its number, id, pod (namespace/name) or address; all without')
    .addOption(outputOption())
    .addHelpText('after', '\nEnds with 1 if there is no such endpoint.')
    .action((endpoint: string | undefined, options: PrintOptions) =>
      withAgent(options, async (rpc) => {
        const views = await read(rpc, endpoint ?? '');
        if (endpoint !== undefined && views.length === 0) {
          throw new MeshError({
            code: 'not-found',
            message: `looking for the policies of ${JSON.stringify(endpoint)}: no endpoint of this node has that number, id, pod or address`,
            hint: '`endpoint list` shows them.',
          });
        }
        if (options.output === 'json') {
          printRows(terminal, 'json', views as unknown as Record<string, unknown>[]);
          return undefined;
        }
        for (const view of views) {
          terminal.out(headOf(view));
          if (view.rows.length > 0) printRows(terminal, 'table', view.rows as unknown as Record<string, unknown>[]);
        }
        return undefined;
      }),
    );
}
