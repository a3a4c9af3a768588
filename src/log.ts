import { type DestinationStream, type LogFn, type Logger, pino } from "pino";
import { clean } from "./clean.js";

/** The levels of the log, from silent to chatty. */
export type LogLevel = "silent" | "error" | "warn" | "info" | "debug";

/** A structured log. Fields first, then a fixed sentence. */
export type Log = Logger;

/** Lines of a kind that are written in a window; further ones are counted. */
const linesAWindow = 5;
/** Kinds that are told apart at a time. */
const kindsAtATime = 200;
/** The fields that, with level and sentence, make lines of one kind; all have few values. */
const kindFields = ["rpc", "code", "reason", "slow", "rule", "pid"] as const;

/**
 * Creates the log: one JSON object a line on standard error, so that standard output stays
 * free for what a command prints.
 *
 * Lines that repeat are sampled: the first 5 of a kind are written, and when `windowMs` have
 * passed since the first, or the process exits, one more says in `suppressed` how many were left
 * out. Lines of level debug are all written.
 */
export function createLog(
  level: LogLevel,
  destination: DestinationStream = pino.destination(2),
  windowMs = 10_000,
): Log {
  return pino(
    {
      level,
      base: null,
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
      hooks: {
        logMethod: createSampler(windowMs),
        // JSON leaves C1 and what turns the writing direction as they are, and people read the log.
        streamWrite: (line) => `${clean(line.slice(0, -1))}\n`,
      },
    },
    destination,
  );
}

/** Lines of one kind since the first of them. */
interface Kind {
  lines: number;
  /** Writes how many lines were left out, if any. */
  summarize: () => void;
}

/** The kinds of all logs that have left something out; the process says so when it exits. */
const unsaid = new Set<Kind>();
let saysAtExit = false;

/** Those whose lines are all written. */
const unsampled = new WeakSet<Logger>();

/** The same log without sampling, and whatever its level is unless that is silent: who uses it has a limit of its own. */
export function withoutSampling(log: Log): Log {
  const child = log.child({}, { level: log.level === "silent" ? "silent" : "info" });
  unsampled.add(child);
  return child;
}

function createSampler(windowMs: number) {
  const kinds = new Map<string, Kind>();

  return function sample(this: Logger, args: Parameters<LogFn>, write: LogFn, level: number): void {
    if (level <= pino.levels.values.debug! || unsampled.has(this)) {
      write.apply(this, args);
      return;
    }
    let { key, fields, sentence } = kindOf(args, level);
    if (kinds.size >= kindsAtATime && !kinds.has(key)) {
      [key, fields, sentence] = [`${level}`, {}, "lines of many other kinds"];
    }
    const kind =
      kinds.get(key) ??
      begin(key, () => {
        write.apply(this, [
          { ...fields, suppressed: kind.lines - linesAWindow, withinMs: windowMs },
          sentence,
        ]);
      });
    kind.lines++;
    if (kind.lines <= linesAWindow) write.apply(this, args);
    else if (kind.lines === linesAWindow + 1) sayAtExit(kind);
  };

  function begin(key: string, write: () => void): Kind {
    const kind: Kind = {
      lines: 0,
      summarize() {
        unsaid.delete(kind);
        if (kind.lines > linesAWindow) write();
      },
    };
    kinds.set(key, kind);
    setTimeout(() => {
      kinds.delete(key);
      kind.summarize();
    }, windowMs).unref();
    return kind;
  }
}

function kindOf(args: Parameters<LogFn>, level: number) {
  const [first, second] = args as [unknown, unknown];
  const given = (typeof first === "object" && first !== null ? first : {}) as Record<
    string,
    unknown
  >;
  const sentence = String(typeof first === "string" ? first : second);
  const { code } = (given.error ?? given.err ?? {}) as { code?: unknown };
  const fields: Record<string, unknown> = {};
  for (const name of kindFields) if (given[name] !== undefined) fields[name] = given[name];
  if (code !== undefined) fields.error = { code };
  return { key: `${level} ${sentence} ${JSON.stringify(fields)}`, fields, sentence };
}

function sayAtExit(kind: Kind): void {
  unsaid.add(kind);
  if (saysAtExit) return;
  saysAtExit = true;
  const sayAll = () => {
    for (const each of unsaid) each.summarize();
  };
  process.on("exit", sayAll);
  // With nothing left to do, pino closes standard error before "exit".
  process.prependListener("beforeExit", sayAll);
}
