export { type Context, type ContextPlaces, listContexts, resolveContext } from './contexts.ts';
export { report, type StatusReport, statusTable, whatIsMissing } from './status.ts';
