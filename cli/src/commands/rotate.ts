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
import { parseDuration } from '../duration.ts';
import { EXIT_CODES_HELP } from '../exit-codes.ts';
import { newRequest, type Side, whenPossible } from '../side.ts';
import { watchOperation } from '../watch-operation.ts';

export function addRotate({ add, terminal, places, signal }: CommandKit): void {
  async function started<T>(side: Side, start: () => Promise<T>): Promise<T> {
    // Asked first: an apiserver that was never there is an error, one that goes away in the middle is waited for.
    await side.call('GetCluster', {});
    const answer = await whenPossible(side, { signal, terminal }, start);
    if (answer === undefined) throw new MeshError({ code: 'cancelled', message: 'interrupted' });
    return answer;
  }

  const rotate = add('rotate', 'replace the keys and certificates of a cluster');
  add('leaves', 'issue every certificate of the cluster’s own anew, due or not; nobody is cut off', rotate)
    .addOption(contextOption())
    .addOption(outputOption())
    .addHelpText('after', `\n${EXIT_CODES_HELP}`)
    .action(async (given: { context?: string; output: Format }) => {
      await withSide(onlyContext(given.context, places), places, async (side) => {
        terminal.progress(`${side.name}: issuing`);
        // Repeated, it issues once more, which is as good as once.
        const { issued } = await started(side, () => side.call('RotateLeaves', {}));
        terminal.progress('');
        print(terminal, given.output, { cluster: side.name, issued }, () =>
          [
            ...issued.map(({ file, reason }) => `issued ${file} (${reason})`),
            `${side.name}: ${issued.length} issued; they are taken up at the next handshake`,
          ].join('\n'),
        );
      });
    });

  const several = (value: string, previous: readonly string[]) => [...previous, value];
  add('ca', 'replace the CA of the cluster, with an overlap in which both are trusted; run again, it goes on', rotate)
    .addOption(contextOption())
    .option('--overlap <duration>', 'how long both are trusted at least after the new one signs', '1h')
    .option('--without <name>', 'peer or node that is not waited for; may be repeated', several, [])
    .option('--no-wait', 'start it and come back; clustermesh operations watch follows it')
    .addHelpText('after', `\n${EXIT_CODES_HELP}`)
    .action(async (given: { context?: string; overlap: string; without: readonly string[]; wait: boolean }) => {
      const overlapMs = parseDuration(given.overlap);
      await withSide(onlyContext(given.context, places), places, async (side) => {
        const request = newRequest();
        const { id } = await started(side, () => side.call('RotateCa', { overlapMs, without: given.without, request }));
        if (given.wait) await watchOperation(side, id, { terminal, signal });
        else terminal.out(id);
      });
    });
}
