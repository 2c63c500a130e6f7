import { statSync } from 'node:fs';
import { type CommandKit, withSides } from '../command-kit.ts';
import { listContexts } from '../contexts.ts';
import { EXIT_CODES_HELP, UsageError } from '../exit-codes.ts';
import { sysdump } from '../sysdump.ts';

interface Given {
  readonly context: readonly string[];
  readonly include: readonly string[];
  readonly outputFile?: string;
}

const several = (value: string, previous: readonly string[]) => [...previous, value];

export function addSysdump({ add, terminal, places }: CommandKit): void {
  add('sysdump', 'collect what helps to understand a mesh into one .tar.gz, without secrets')
    .option(
      '--context <context>',
      'a cluster; may be repeated; without it, every cluster that can be found',
      several,
      [],
    )
    .option('--include <file>', 'a log or configuration of this host to take along; may be repeated', several, [])
    .option('--output-file <file>', 'default: clustermesh-sysdump-<time>.tar.gz')
    .addHelpText('after', `\n${EXIT_CODES_HELP}`)
    .action(async (given: Given) => {
      const contexts = given.context.length > 0 ? given.context : listContexts(places);
      if (contexts.length === 0) {
        throw new UsageError({
          code: 'not-found',
          message: 'collecting a sysdump: no cluster was found',
          hint: 'name one with --context, or set CLUSTERMESH_CONTEXTS',
        });
      }
      const file =
        given.outputFile ?? `clustermesh-sysdump-${new Date().toISOString().replaceAll(/[:.]/g, '-')}.tar.gz`;
      const { missing, parts } = await withSides(contexts, places, (sides) =>
        sysdump({ sides, include: given.include, file }),
      );
      for (const reason of missing) terminal.err(`missing: ${reason}`);
      terminal.out(
        `${file}: ${parts} files, ${statSync(file).size} bytes; private keys, tokens and passwords were removed`,
      );
    });
}
