/** `map list`, `map dump`, `map get`, `drops`: what the kernel holds and has counted. */
import { MAP_NAMES, MeshError } from '@clustermesh/contract';
import { type CommandKit, EXIT, outputOption, type PrintOptions, printRows, readMap } from './kit.ts';

interface ListedMap {
  readonly name: string;
  readonly id: number;
  readonly rows: number | null;
  readonly maxEntries: number;
  readonly pin: string;
}

const NAMES = `MAP is ${MAP_NAMES.join(', ')}, or a kernel map as \`map list\` names it (cm_…).`;

export function addMaps({ terminal, group, add, withAgent }: CommandKit): void {
  const map = group('map', "the kernel's maps of this node");

  add('list', 'the pinned maps, how many rows they hold and how many they could', map)
    .addOption(outputOption())
    .action((options: PrintOptions) =>
      withAgent(options, async (rpc) => {
        const maps = JSON.parse((await rpc.ListMaps({})).json) as ListedMap[];
        const full = ({ rows, maxEntries }: ListedMap) =>
          rows === null ? undefined : `${((rows / maxEntries) * 100).toFixed(1)} %`;
        if (options.output === 'json') printRows(terminal, 'json', maps as unknown as Record<string, unknown>[]);
        else
          printRows(
            terminal,
            'table',
            maps.map((one) => ({ ...one, full: full(one) })),
            ['name', 'id', 'rows', 'maxEntries', 'full', 'pin'],
          );
        return undefined;
      }),
    );

  add('dump', 'all rows of a map', map)
    .argument('<map>')
    .addOption(outputOption())
    .addHelpText('after', `\n${NAMES}`)
    .action((name: string, options: PrintOptions) =>
      withAgent(options, async (rpc) => {
        printRows(terminal, options.output, await readMap(rpc, name));
        return undefined;
      }),
    );

  add('get', 'the rows of a map that a key or value names', map)
    .argument('<map>')
    .argument('<text>', 'what a field of the row must be: an address, a prefix, an id, address:port/protocol …')
    .addOption(outputOption())
    .addHelpText('after', `\n${NAMES}\nEnds with 1 if there is no such row.`)
    .action((name: string, text: string, options: PrintOptions) =>
      withAgent(options, async (rpc) => {
        const found = (await readMap(rpc, name)).filter((row) => names(row, text));
        if (found.length === 0) {
          throw new MeshError({
            code: 'not-found',
            message: `looking for ${JSON.stringify(text)} in ${name}: no row has it in one of its fields`,
            hint: `\`map dump ${name}\` shows all rows.`,
          });
        }
        printRows(terminal, options.output, found);
        return undefined;
      }),
    );

  add('drops', 'packets that the programs counted, by reason and direction')
    .option('--all', 'also what was forwarded or only noted')
    .addOption(outputOption())
    .action((options: PrintOptions & { readonly all?: boolean }) =>
      withAgent(options, async (rpc) => {
        const counters = await readMap(rpc, 'drops');
        const isRefused = (counter: (typeof counters)[number]) =>
          counter.class === 'dropped' || counter.class === 'answered';
        printRows(terminal, options.output, options.all ? counters : counters.filter(isRefused), [
          'reason',
          'class',
          'direction',
          'packets',
          'bytes',
        ]);
        return EXIT.ok;
      }),
    );
}

/** One of the row's fields, at any depth, is this text; a host's prefix goes by its address too. */
function names(value: unknown, text: string): boolean {
  if (typeof value === 'object' && value !== null) return Object.values(value).some((inner) => names(inner, text));
  return String(value) === text || String(value) === `${text}/32` || String(value) === `${text}/128`;
}
