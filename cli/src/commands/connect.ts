import { Option } from 'commander';
import { type CommandKit, withSides } from '../command-kit.ts';
import { connect } from '../connect.ts';
import { disconnect } from '../disconnect.ts';
import { parseDuration } from '../duration.ts';
import { EXIT_CODES_HELP, UsageError } from '../exit-codes.ts';

export function addConnect({ add, terminal, places, signal }: CommandKit): void {
  add('connect', 'connect two clusters, in both directions')
    .requiredOption('--context <context>', 'one cluster')
    .requiredOption('--destination-context <context>', 'the other cluster')
    .option('--timeout <duration>', 'give up following after this time; the clusters go on', '2m')
    .addHelpText('after', `\n${EXIT_CODES_HELP}`)
    .action(async (given: { context: string; destinationContext: string; timeout: string }) => {
      const timeoutMs = parseDuration(given.timeout);
      await withSides([given.context, given.destinationContext], places, ([source, destination]) =>
        connect({ source: source!, destination: destination!, timeoutMs, terminal, signal }),
      );
    });
}

export function addDisconnect({ add, terminal, places, signal }: CommandKit): void {
  add('disconnect', 'end the connection of two clusters; a peer that is dead holds nothing up')
    .requiredOption('--context <context>', 'one cluster')
    .addOption(new Option('--destination-context <context>', 'the other cluster').conflicts('peer'))
    .option('--peer <cluster>', 'cluster name of a peer that is gone for good: only --context is told')
    .option('--timeout <duration>', 'give up following after this time; the clusters go on', '5m')
    .addHelpText('after', `\n${EXIT_CODES_HELP}`)
    .action(async (given: { context: string; destinationContext?: string; peer?: string; timeout: string }) => {
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
        return disconnect({ source: source!, destination, peer, timeoutMs, terminal, signal });
      });
    });
}
