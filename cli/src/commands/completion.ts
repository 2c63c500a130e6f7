import { Argument } from 'commander';
import type { CommandKit } from '../command-kit.ts';
import { candidates, completionScript, SHELLS, type Shell } from '../completion.ts';
import { listContexts } from '../contexts.ts';

export function addCompletion({ add, program, terminal, places }: CommandKit): void {
  add('completion', 'print a completion script for a shell')
    .addArgument(new Argument('<shell>').choices([...SHELLS]))
    .action((shell: Shell) => terminal.out(completionScript(shell)));

  const contexts = () => {
    try {
      return listContexts(places).map((context) => context.name);
    } catch {
      // A broken handle file must not speak up while somebody types.
      return [];
    }
  };
  add('__complete', 'what the completion scripts ask', program)
    .argument('[words...]')
    .allowUnknownOption()
    .action((words: string[]) => {
      for (const found of candidates(program, words, contexts)) terminal.out(found);
    });
}
