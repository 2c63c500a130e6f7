/** How operations read. Pure. */
import type { OperationInfo } from '@clustermesh/contract';
import { table } from '@clustermesh/runtime';
import { formatDuration } from './duration.ts';

export function operationsTable(operations: readonly OperationInfo[], nowMs: number): string {
  if (operations.length === 0) return 'no operations in the last week';
  return table(
    ['ID', 'KIND', 'PEER', 'STATE', 'AGE', 'STEP', 'MESSAGE'],
    operations.map((operation) => {
      const step = currentStep(operation);
      return [
        operation.id,
        operation.kind,
        operation.peer,
        operation.state,
        formatDuration(Math.max(0, nowMs - operation.createdUnixMs)),
        operation.state === 'done' ? '' : (step?.step ?? ''),
        step?.message ?? '',
      ];
    }),
  ).join('\n');
}

/** The step that failed, runs or is next; the last one when all are done. */
function currentStep({ steps }: OperationInfo): OperationInfo['steps'][number] | undefined {
  return steps.find((step) => step.errorCode !== '') ?? steps.find((step) => step.state !== 'done') ?? steps.at(-1);
}

export function operationDetails(operation: OperationInfo): string {
  const failed = operation.steps.find((step) => step.errorCode !== '');
  return [
    `operation ${operation.id}: ${operation.kind} of ${operation.peer}, ${operation.state}`,
    `started ${new Date(operation.createdUnixMs).toISOString()}`,
    '',
    ...table(
      ['STEP', 'STATE', 'TRIES', 'TOOK', 'MESSAGE'],
      operation.steps.map((step) => [
        step.step,
        step.state,
        String(step.attempts),
        step.endedUnixMs > 0 && step.startedUnixMs > 0 ? formatDuration(step.endedUnixMs - step.startedUnixMs) : '-',
        step === failed || step.errorCode === '' ? step.message : '',
      ]),
    ),
    ...(failed === undefined || failed.hint === '' ? [] : ['', `hint: ${failed.hint}`]),
  ].join('\n');
}
