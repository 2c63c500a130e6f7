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
import { failureOf } from '../connect.ts';
import { EXIT_CODES_HELP } from '../exit-codes.ts';
import { operationDetails, operationsTable } from '../operations.ts';
import { follow, type Side } from '../side.ts';
import { createStepLines } from '../step-lines.ts';

interface Given {
  readonly context?: string;
  readonly output: Format;
}

export function addOperations({ add, terminal, places, signal }: CommandKit): void {
  const operations = add('operations', 'what connect and disconnect are doing, and did in the last week');
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

  const watch = async (side: Side, id: string): Promise<void> => {
    const lines = createStepLines({
      side: side.name,
      terminal,
      now: () => performance.now(),
      onChange: () => terminal.progress(`${side.name}: ${lines.current()}`),
    });
    const end = await follow(side, id, { signal, terminal, onEvent: lines.onEvent });
    terminal.progress('');
    if (end === undefined) throw new MeshError({ code: 'cancelled', message: 'interrupted' });
    if (end.state === 'failed') throw failureOf(end, side);
    terminal.out(`${id}: done`);
  };

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
