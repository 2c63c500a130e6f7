/** Turns an operation's events into one line per finished step. */
import type { OperationEvent } from '@clustermesh/contract';
import { formatDuration } from './duration.ts';
import type { Terminal } from './terminal.ts';

export interface StepLines {
  onEvent(event: OperationEvent): void;
  /** What the operation is doing, for a timeout's message. */
  current(): string;
}

export function createStepLines(options: {
  readonly side: string;
  readonly terminal: Terminal;
  readonly now: () => number;
  /** Called after each event with what is going on. */
  readonly onChange?: () => void;
}): StepLines {
  const { side, terminal, now } = options;
  const printed = new Set<string>();
  let step = '';
  let message = '';
  /** What the operation waits for beside its step; no word of the step's own. */
  let said = '';
  let since = now();

  const finish = () => {
    if (step === '' || printed.has(step)) return;
    printed.add(step);
    terminal.out(`  ${side}  ${step.padEnd(20)}${message}  (${formatDuration(now() - since)})`);
  };

  return {
    onEvent: (event) => {
      if (event.state === 'waiting' && event.errorCode !== '') {
        if (said !== event.message) terminal.err(`${side}: ${event.message}`);
        said = event.message;
        return;
      }
      if (event.step !== step) {
        if (event.state !== 'failed') finish();
        // The first step counts from the start: what came before it is its preparation.
        if (step !== '') since = now();
        step = event.step;
      }
      message = event.message;
      said = '';
      options.onChange?.();
    },
    current: () =>
      step === '' ? (message === '' ? 'not started' : message) : `${step}: ${message === '' ? 'running' : message}`,
  };
}
