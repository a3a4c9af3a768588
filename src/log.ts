import { type Logger, pino } from "pino";

/** The levels of the log, from silent to chatty. */
export const logLevels = ["silent", "error", "warn", "info", "debug"] as const;

/** A structured log. Fields first, then a fixed sentence. */
export type Log = Logger;

/**
 * Creates the log: one JSON object a line on standard error, so that standard output stays
 * free for what a command prints.
 */
export function createLog(level: (typeof logLevels)[number]): Log {
  return pino(
    {
      level,
      base: null,
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
    },
    pino.destination(2),
  );
}
