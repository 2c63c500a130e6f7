import { type CommandKit, type Format, outputOption, print, withSides } from '../command-kit.ts';
import { EXIT_CODES_HELP } from '../exit-codes.ts';
import { preflight, preflightTable, refusalOf } from '../preflight.ts';

export function addPreflight({ add, terminal, places }: CommandKit): void {
  add('preflight', 'check from both sides whether two clusters can be connected; nothing is changed')
    .requiredOption('--context <context>', 'one cluster')
    .requiredOption('--destination-context <context>', 'the other cluster')
    .addOption(outputOption())
    .addHelpText('after', `\n${EXIT_CODES_HELP}`)
    .action(async (given: { context: string; destinationContext: string; output: Format }) => {
      const reports = await withSides([given.context, given.destinationContext], places, ([source, destination]) =>
        preflight(source!, destination!),
      );
      print(terminal, given.output, reports, (all) => preflightTable(all, terminal.paint));
      const refusal = refusalOf(reports);
      if (refusal !== undefined) throw refusal;
    });
}
