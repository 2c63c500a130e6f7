import { InvalidArgumentError, Option } from 'commander';
import { type CommandKit, withSides } from '../command-kit.ts';
import { CONNECT_MODES, type ConnectMode, connectMany } from '../connect-many.ts';
import { disconnect } from '../disconnect.ts';
import { parseDuration } from '../duration.ts';
import { EXIT_CODES_HELP, UsageError } from '../exit-codes.ts';

interface ConnectGiven {
  readonly context: string;
  readonly destinationContext: readonly string[];
  readonly mode: ConnectMode;
  readonly parallel: number;
  readonly timeout: string;
}

const severalNames = (value: string, previous: readonly string[] = []): string[] => [
  ...previous,
  ...value.split(',').filter((name) => name !== ''),
];

function atLeastOne(value: string): number {
  const number = Number(value);
  if (Number.isInteger(number) && number >= 1) return number;
  throw new InvalidArgumentError('it must be a whole number of 1 or more');
}

export function addConnect({ add, terminal, places, signal }: CommandKit): void {
  add('connect', 'connect clusters, in both directions unless told otherwise')
    .requiredOption('--context <context>', 'one cluster')
    .requiredOption(
      '--destination-context <context>',
      'the other clusters; may be repeated, or a list with ","',
      severalNames,
    )
    .addOption(
      new Option(
        '--mode <mode>',
        'bidirectional: --context with each of the others; unicast: --context reads each of the others; mesh: every pair',
      )
        .choices([...CONNECT_MODES])
        .default('bidirectional'),
    )
    .option('--parallel <pairs>', 'connect so many pairs at a time', atLeastOne, 4)
    .option('--timeout <duration>', 'give up following after this time; the clusters go on', '2m')
    .addHelpText('after', `\n${EXIT_CODES_HELP}`)
    .action(async ({ context, destinationContext, mode, parallel, timeout }: ConnectGiven) => {
      const timeoutMs = parseDuration(timeout);
      await withSides([context, ...destinationContext], places, (sides) =>
        connectMany({ sides, mode, parallel, timeoutMs, terminal, signal }),
      );
    });
}

interface DisconnectGiven {
  readonly context: string;
  readonly destinationContext?: string;
  readonly peer?: string;
  readonly drain?: boolean;
  readonly timeout: string;
}

export function addDisconnect({ add, terminal, places, signal }: CommandKit): void {
  add('disconnect', 'end the connection of two clusters; a peer that is dead holds nothing up')
    .requiredOption('--context <context>', 'one cluster')
    .addOption(new Option('--destination-context <context>', 'the other cluster').conflicts('peer'))
    .option('--peer <cluster>', 'cluster name of a peer that is gone for good: only --context is told')
    .option('--drain', 'first move traffic away on both sides, and wait until every node has applied that')
    .option('--timeout <duration>', 'give up following after this time; the clusters go on', '5m')
    .addHelpText('after', `\n${EXIT_CODES_HELP}`)
    .action(async (given: DisconnectGiven) => {
      const timeoutMs = parseDuration(given.timeout);
      const other = given.destinationContext;
      if (other === undefined && given.peer === undefined) {
        throw new UsageError({
          code: 'invalid-argument',
          message: 'disconnecting: the other cluster is not named',
          hint: 'give --destination-context, or --peer for a cluster that is gone',
        });
      }
      const names = other === undefined ? [given.context] : [given.context, other];
      await withSides(names, places, ([source, destination]) => {
        const peer = destination?.name ?? given.peer!;
        const drain = given.drain === true;
        return disconnect({ source: source!, destination, peer, drain, timeoutMs, terminal, signal });
      });
    });
}
