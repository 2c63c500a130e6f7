import { type DestinationStream, type Logger, pino } from 'pino';

export type Log = Logger;

/** JSON lines on stdout or where told; level from CM_LOG_LEVEL (default info). Children carry a `subsystem`. */
export function createLog(name: string, destination?: DestinationStream): Log {
  const options = {
    name,
    level: process.env.CM_LOG_LEVEL ?? 'info',
    base: { pid: process.pid },
    timestamp: pino.stdTimeFunctions.isoTime,
  };
  return destination === undefined ? pino(options) : pino(options, destination);
}

/** For tests and commands that print their own output. */
export function silentLog(): Log {
  return pino({ level: 'silent' });
}
