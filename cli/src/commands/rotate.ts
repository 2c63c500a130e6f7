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

export function addRotate({ add, terminal, places }: CommandKit): void {
  const rotate = add('rotate', 'replace the keys and certificates of a cluster');
  add('leaves', 'issue every certificate of the cluster’s own anew, due or not; nobody is cut off', rotate)
    .addOption(contextOption())
    .addOption(outputOption())
    .addHelpText('after', `\n${EXIT_CODES_HELP}`)
    .action(async (given: { context?: string; output: Format }) => {
      await withSide(onlyContext(given.context, places), places, async (side) => {
        terminal.progress(`${side.name}: issuing`);
        const { issued } = await side.call('RotateLeaves', {});
        terminal.progress('');
        print(terminal, given.output, { cluster: side.name, issued }, () =>
          [
            ...issued.map(({ file, reason }) => `issued ${file} (${reason})`),
            `${side.name}: ${issued.length} issued; they are taken up at the next handshake`,
          ].join('\n'),
        );
      });
    });
}
