/** `verify`: are the kernel's tables as they should be? */

import type { TableVerdict } from '../verify.ts';
import { type CommandKit, EXIT, outputOption, type PrintOptions, printRows } from './kit.ts';

export function addVerify({ terminal, add, withAgent }: CommandKit): void {
  add('verify', "hold the kernel's tables against what they should contain")
    .addOption(outputOption())
    .addHelpText(
      'after',
      `
Nothing is changed. A row that differs is looked at again for two seconds, so that rows on their way do not count.
Ends with 1 if rows are missing, unexpected, different, refused by the kernel, or still waiting.`,
    )
    .action((options: PrintOptions) =>
      withAgent(options, async (rpc) => {
        const { json } = await rpc.Verify({}, { timeoutMs: 120_000 });
        const tables = JSON.parse(json) as TableVerdict[];
        const isRight = tables.every(({ differences }) => differences === 0);
        if (options.output === 'json') {
          terminal.out(JSON.stringify({ ok: isRight, tables }, null, 2));
        } else {
          printRows(terminal, 'table', tables as unknown as Record<string, unknown>[], [
            'table',
            'desired',
            'held',
            'differences',
          ]);
          for (const { table, examples } of tables) {
            for (const { key, kind, reason, desired, held } of examples) {
              const sides =
                reason ??
                [desired && `should be ${JSON.stringify(desired)}`, held && `is ${JSON.stringify(held)}`]
                  .filter(Boolean)
                  .join(', ');
              terminal.out(`${table} ${key}: ${kind}${sides === '' ? '' : `: ${sides}`}`);
            }
          }
        }
        return isRight ? EXIT.ok : EXIT.failed;
      }),
    );
}
