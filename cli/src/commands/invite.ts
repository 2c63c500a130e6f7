import { readFileSync } from 'node:fs';
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
import { join } from '../join.ts';

export function addInvite({ add, terminal, places }: CommandKit): void {
  add('invite', 'print an invitation with which one cluster may join, once')
    .addOption(contextOption())
    .option('--ttl <duration>', 'how long it may be used', '15m')
    .addOption(outputOption())
    .addHelpText('after', `\n${EXIT_CODES_HELP}`)
    .action(async (given: { context?: string; ttl: string; output: Format }) => {
      const ttlMs = parseDuration(given.ttl);
      if (ttlMs <= 0)
        throw new MeshError({ code: 'invalid-argument', message: `inviting: a lifetime of ${given.ttl} is none` });
      const invitation = await withSide(onlyContext(given.context, places), places, (side) =>
        side.call('CreateInvite', { ttlMs }),
      );
      print(terminal, given.output, invitation, ({ token }) => token);
      if (given.output === 'table')
        terminal.err(
          `until ${new Date(invitation.expiresUnixMs).toISOString()}, and once: clustermesh join TOKEN. Whoever has it can join: pass it on over a way that you trust`,
        );
    });
}

export function addJoin({ add, terminal, places, signal }: CommandKit): void {
  add(
    'join <token>',
    'join the cluster that printed this invitation, in both directions; "-" reads it from standard input',
  )
    .addOption(contextOption())
    .option('--timeout <duration>', 'give up following after this time; the clusters go on', '2m')
    .addHelpText('after', `\n${EXIT_CODES_HELP}`)
    .action(async (given: string, options: { context?: string; timeout: string }) => {
      const timeoutMs = parseDuration(options.timeout);
      const token = given === '-' ? readFileSync(0, 'utf8') : given;
      await withSide(onlyContext(options.context, places), places, (side) =>
        join({ side, token, timeoutMs, terminal, signal }),
      );
    });
}
