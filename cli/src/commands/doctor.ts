import type { Diagnosis } from '@clustermesh/contract';
import {
  type CommandKit,
  contextOption,
  type Format,
  onlyContext,
  outputOption,
  print,
  withSide,
} from '../command-kit.ts';
import { doctor } from '../doctor.ts';
import { EXIT_CODES_HELP } from '../exit-codes.ts';
import { checkTable, firstFailure, type Subject } from '../findings.ts';

interface Given {
  readonly context?: string;
  readonly peer?: string;
  readonly output: Format;
}

const subjectsOf = (diagnoses: readonly Diagnosis[]): Subject[] =>
  diagnoses.map(({ subject, checks }) => ({ cells: [subject], name: subject, checks }));

export function addDoctor({ add, terminal, places }: CommandKit): void {
  add('doctor', 'look for what is wrong, and say why and how to mend it; nothing is changed')
    .addOption(contextOption())
    .option('--peer <cluster>', 'only the way to this peer, and the cluster itself')
    .addOption(outputOption())
    .addHelpText('after', `\n${EXIT_CODES_HELP}`)
    .action(async (given: Given) => {
      const diagnoses = await withSide(onlyContext(given.context, places), places, (side) =>
        doctor(side, given.peer ?? ''),
      );
      print(terminal, given.output, diagnoses, (all) => checkTable(['SUBJECT'], subjectsOf(all), terminal.paint));
      const failure = firstFailure(subjectsOf(diagnoses), 'listed above');
      if (failure !== undefined) throw failure;
    });
}
