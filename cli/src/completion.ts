/** Shell completion: the shells ask the command itself (`clustermesh __complete WORDS…`), so that it always knows what there is. */
import type { Command, Option } from 'commander';

export const SHELLS = ['bash', 'zsh', 'fish'] as const;
export type Shell = (typeof SHELLS)[number];

/**
 * What may stand in place of the last word (which may be empty). `words` begins after `clustermesh`; `contexts` is asked only where a
 * context is expected.
 */
export function candidates(program: Command, words: readonly string[], contexts: () => readonly string[]): string[] {
  const typed = words.at(-1) ?? '';
  let command = program;
  let pending: Option | undefined;
  for (const word of words.slice(0, -1)) {
    if (pending !== undefined) pending = undefined;
    else if (word.startsWith('-')) pending = valueOption(command, word);
    else command = command.commands.find((child) => child.name() === word) ?? command;
  }
  const [, name, value] = /^(--[^=]+)=(.*)$/.exec(typed) ?? [];
  const inline = name === undefined ? undefined : valueOption(command, name);
  if (inline !== undefined) return starting(valuesOf(inline, contexts), value!).map((found) => `${name}=${found}`);
  if (pending !== undefined) return starting(valuesOf(pending, contexts), typed);
  const arguments_ = command.registeredArguments.flatMap((argument) => argument.argChoices ?? []);
  const names = visible(command).map((child) => child.name());
  if (!typed.startsWith('-')) return starting([...names, ...arguments_], typed);
  return starting([...command.options.map((option) => option.long ?? option.short ?? ''), '--help'], typed);
}

const starting = (all: readonly string[], typed: string): string[] => all.filter((one) => one.startsWith(typed));

const visible = (command: Command): Command[] => command.commands.filter((child) => !child.name().startsWith('_'));

/** The option of that name, if it takes a value. */
function valueOption(command: Command, word: string): Option | undefined {
  const option = command.options.find(({ long, short }) => long === word || short === word);
  return option !== undefined && (option.required || option.optional) ? option : undefined;
}

function valuesOf(option: Option, contexts: () => readonly string[]): readonly string[] {
  if (option.argChoices !== undefined) return option.argChoices;
  return option.long?.endsWith('context') === true ? contexts() : [];
}

/** To be sourced, or put where the shell looks for completions. */
export function completionScript(shell: Shell): string {
  switch (shell) {
    case 'bash':
      return `# clustermesh completion bash > /etc/bash_completion.d/clustermesh
_clustermesh() {
  local IFS=$'\\n'
  COMPREPLY=($(clustermesh __complete -- "\${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
}
complete -o default -F _clustermesh clustermesh`;
    case 'zsh':
      return `#compdef clustermesh
# clustermesh completion zsh > "\${fpath[1]}/_clustermesh"
_clustermesh() {
  local -a found
  found=("\${(@f)$(clustermesh __complete -- "\${(@)words[2,CURRENT]}" 2>/dev/null)}")
  compadd -a found
}
compdef _clustermesh clustermesh`;
    case 'fish':
      return `# clustermesh completion fish > ~/.config/fish/completions/clustermesh.fish
complete -c clustermesh -f -a '(clustermesh __complete -- (commandline -opc)[2..] (commandline -ct) 2>/dev/null)'`;
  }
}
