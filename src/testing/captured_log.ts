import { type DestinationStream, pino } from "pino";
import type { Log } from "../log.js";

/** A log whose lines a test can read. */
export interface CapturedLog {
  readonly log: Log;
  /** Everything written so far, as it would have reached standard error. */
  text(): string;
  /** The lines written so far, parsed, that have every given field. */
  lines(having?: Record<string, unknown>): Record<string, unknown>[];
}

/** Creates a log of every level, none of it sampled, that keeps its lines in memory. */
export function captureLog(
  create = (destination: DestinationStream): Log =>
    pino({ level: "debug", base: null }, destination),
): CapturedLog {
  const written: string[] = [];
  return {
    log: create({ write: (line) => void written.push(line) }),
    text: () => written.join(""),
    lines: (having = {}) =>
      written
        .map((line) => JSON.parse(line) as Record<string, unknown>)
        .filter((line) => Object.entries(having).every(([name, value]) => line[name] === value)),
  };
}
