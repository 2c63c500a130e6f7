import { type CommandKit, contextOption, onlyContext, withSide, withSides } from '../command-kit.ts';
import { type ContextPlaces, listContexts } from '../contexts.ts';
import { disable } from '../disable.ts';
import { parseDuration } from '../duration.ts';
import { EXIT_CODES_HELP, UsageError } from '../exit-codes.ts';
import type { Side } from '../side.ts';

export function addEnable({ add, terminal, places }: CommandKit): void {
  add('enable', 'let a cluster connect with others, as every new one may, after a disable')
    .addOption(contextOption())
    .addHelpText('after', `\n${EXIT_CODES_HELP}`)
    .action((given: { context?: string }) =>
      withSide(onlyContext(given.context, places), places, async (side) => {
        await side.call('Enable', {});
        const status = await side.call('GetStatus', {});
        const { endpoints } = status.cluster;
        if (endpoints.length === 0)
          terminal.err(`warning: ${side.name}: peers cannot reach it; set advertise.endpoints in its apiserver.yaml`);
        if (!status.redisConnected)
          terminal.err(`warning: ${side.name}: its Redis is unreachable: a connect waits for it`);
        terminal.out(
          `clustermesh is enabled on ${side.name}: peers reach it at ${endpoints.join(', ') || 'no endpoint'}`,
        );
      }),
    );
}

interface DisableGiven {
  readonly context?: string;
  readonly yes?: boolean;
  readonly timeout: string;
}

export function addDisable({ add, terminal, places, signal }: CommandKit): void {
  add('disable', 'part from every peer, on both sides where it can be told, and connect with nobody until enabled')
    .addOption(contextOption())
    .option('--yes', 'do not ask')
    .option('--timeout <duration>', 'give up following after this time; the clusters go on', '5m')
    .addHelpText('after', `\n${EXIT_CODES_HELP}`)
    .action(async (given: DisableGiven) => {
      const timeoutMs = parseDuration(given.timeout);
      const own = onlyContext(given.context, places);
      await withSide(own, places, async (side) => {
        const peers = (await side.call('GetStatus', {})).peers.map(({ name }) => name);
        if (given.yes !== true) await confirm(side, peers);
        await withOthers(side, peers, places, (others) => disable({ side, others, timeoutMs, terminal, signal }));
      });
    });

  async function confirm(side: Side, peers: readonly string[]): Promise<void> {
    const what =
      peers.length === 0 ? 'It has no peers.' : `It is parted from ${peers.join(', ')}; traffic between them ends.`;
    const refused = (why: string) =>
      new UsageError({
        code: 'invalid-argument',
        message: `disabling clustermesh on ${side.name}: ${why}`,
        hint: `${what} To go on without being asked: --yes`,
      });
    if (terminal.ask === undefined) throw refused('there is nobody to ask');
    if (!(await terminal.ask(`Disable clustermesh on ${side.name}? ${what}`, signal))) throw refused('not confirmed');
  }
}

/** Those of the peers whose context can be found by their name. */
function withOthers<T>(
  side: Side,
  peers: readonly string[],
  places: ContextPlaces,
  use: (others: ReadonlyMap<string, Side>) => Promise<T>,
): Promise<T> {
  const contexts = listContexts(places);
  // Of the same lab, where several are up.
  const instance = instanceOf(side.context.name);
  const found = peers.flatMap((peer) => {
    const named = contexts.filter(({ cluster }) => cluster === peer);
    return named.find(({ name }) => instanceOf(name) === instance) ?? (named.length === 1 ? named : []);
  });
  return withSides(found, places, (sides) => use(new Map(sides.map((other) => [other.name, other]))));
}

const instanceOf = (context: string): string => context.split('/').slice(0, -1).join('/');
