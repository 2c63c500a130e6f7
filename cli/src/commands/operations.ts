import { MeshError } from '@clustermesh/contract';
import {
  type CommandKit,
  contextOption,
  type Format,
  onlyContext,
  outputOption,
  print,
  withSide,
} from '../command-kit.ts';
import { EXIT_CODES_HELP } from '../exit-codes.ts';
import { operationDetails, operationsTable } from '../operations.ts';
import type { Side } from '../side.ts';
import { watchOperation } from '../watch-operation.ts';

interface Given {
  readonly context?: string;
  readonly output: Format;
}

export function addOperations({ add, terminal, places, signal }: CommandKit): void {
  const operations = add('operations', 'what connect, disconnect and rotate ca are doing, and did in the last week');
  const addTo = (name: string, description: string) =>
    add(name, description, operations).addOption(contextOption()).addHelpText('after', `\n${EXIT_CODES_HELP}`);
  const at = <T>(given: { context?: string }, use: (side: Side) => Promise<T>) =>
    withSide(onlyContext(given.context, places), places, use);

  addTo('list', 'all operations, the newest first')
    .addOption(outputOption())
    .action(async (given: Given) => {
      const { operations: all } = await at(given, (side) => side.call('ListOperations', {}));
      print(terminal, given.output, all, (list) => operationsTable(list, Date.now()));
    });

  addTo('show <id>', 'one operation, step by step')
    .addOption(outputOption())
    .action(async (id: string, given: Given) => {
      const { operations: all } = await at(given, (side) => side.call('ListOperations', {}));
      const found = all.find((operation) => operation.id === id);
      if (found === undefined) {
        throw new MeshError({
          code: 'not-found',
          message: `showing operation ${id}: there is no such operation`,
          hint: 'clustermesh operations list shows all; they are kept for a week',
        });
      }
      print(terminal, given.output, found, operationDetails);
    });

  const watch = (side: Side, id: string) => watchOperation(side, id, { terminal, signal });

  addTo('watch <id>', 'follow an operation to its end; fails if it failed').action((id: string, given: Given) =>
    at(given, (side) => watch(side, id)),
  );

  addTo('retry <id>', 'start an operation that failed or was cancelled once more, and follow it').action(
    (id: string, given: Given) =>
      at(given, async (side) => {
        const again = await side.call('RetryOperation', { id });
        terminal.out(`${id} goes on as ${again.id}`);
        await watch(side, again.id);
      }),
  );

  addTo('cancel <id>', 'end an operation; what a connect had begun is taken back').action((id: string, given: Given) =>
    at(given, async (side) => {
      await side.call('CancelOperation', { id });
      terminal.out(`${id}: cancelled`);
    }),
  );
}
