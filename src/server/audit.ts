/** Who did what to which thread: one line of JSON for each, apart from the log of the calls. */
import { pino } from "pino";
import type { LoadTold } from "../auth/authenticator.js";
import { clean } from "../clean.js";
import { type Log, withoutSampling } from "../log.js";
import type { Call } from "./call.js";
import { describeCause } from "./call_log.js";
import { toConnectError } from "./connect_error.js";

/**
 * A log that is added to a file, which its owner alone may read, line by line. A line is written when
 * what it tells of was done, and not lost with the process.
 */
export function createAuditLog(path: string): Log {
  const destination = pino.destination({
    dest: path,
    mode: 0o600,
    mkdir: true,
    sync: true,
    // What could not be written is kept and tried again with the next line.
    maxLength: 16 * 1024 * 1024,
  });
  return pino(
    {
      base: null,
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
      hooks: { streamWrite: (line) => `${clean(line.slice(0, -1))}\n` },
    },
    destination,
  );
}

/** Names that a line tells: some of them, and how many there are. */
export interface Names {
  readonly some: readonly string[];
  readonly count: number;
}

/** What is told of a call. */
export interface Audited {
  /** The operation of {@link accessRules} or the name of what else was done, such as "deleteThread". */
  action: string;
  /** The threads that the request names, or that it came to. */
  threads: Names;
  /** Where it is of all threads that begin so. */
  prefix?: string | undefined;
  /** The runs that the request names. */
  runs?: Names;
  /** Where in the principal's grants the one is that allowed it, where one did. */
  grant?: number | undefined;
  /** Undefined: it was carried out. */
  error?: unknown;
}

/** Writes the audit log. */
export interface Audit {
  /** Tells that somebody did something, or was denied it. */
  call(call: Call, audited: Audited): void;
  /** Tells which auth file is in force from now on, or why it is not the one that is there. */
  loaded(told: LoadTold): void;
  /** Writes what was left out since the last second. */
  stop(): void;
}

/**
 * Lines a second at the most; those beyond are counted, so that nobody fills the disk. Each principal
 * has its own, and one for denials, which cost nothing, and one for the others: so nobody hides what
 * was done, neither its own nor another's, behind denials.
 */
const linesASecond = { denials: 50, others: 200 };
/** The same of the denials of all principals. */
const denialsInAll = 1_000;
/** Of the names of a request that are told; a prune may name a thousand threads. */
const namesALine = 20;
/** A denial comes before anything else is looked at: a name may be as long as a request. */
const lettersAName = 300;

/** Those of a list that are told. */
export const toNames = (names: readonly string[]): Names => ({
  some: names.slice(0, namesALine),
  count: names.length,
});

/** Adds a name to those of before. */
export const withName = ({ some, count }: Names, name: string): Names => ({
  some: some.length < namesALine ? [...some, name] : some,
  count: count + 1,
});

/** What one principal has told in this second. */
interface Told {
  readonly who: object;
  lines: number;
}

/**
 * Returns what writes lines with the principal, its tenant, the credential, the grant that allowed it, the
 * action, the threads, the result, the peer and the request's id. It writes to `file`, else to `log` as
 * "audit", all of them and whatever its level. So it does while the file cannot be written: what was done
 * is to be told somewhere, and a full disk ends no call.
 */
export function createAudit(log: Log, file?: Log): Audit {
  const otherwise = withoutSampling(log);
  const write = (line: object) => {
    try {
      (file ?? otherwise).info(line, "audit");
    } catch (error) {
      log.error({ error: describeCause(error) }, "the audit log cannot be written: it stands here");
      otherwise.info(line, "audit");
    }
  };
  let second = new Map<string, Told>();
  let denials = 0;
  let timer: NodeJS.Timeout | undefined;

  function summarize(): void {
    clearTimeout(timer);
    timer = undefined;
    const over = second;
    second = new Map();
    const beyondAll = Math.max(0, denials - denialsInAll);
    denials = 0;
    for (const [key, { who, lines }] of over) {
      const isDenials = key.startsWith("denials");
      const suppressed = lines - linesASecond[isDenials ? "denials" : "others"];
      if (suppressed <= 0) continue;
      write({ ...who, ...(isDenials ? { result: "denied" } : {}), suppressed });
    }
    if (beyondAll > 0) write({ result: "denied", suppressed: beyondAll });
  }

  /** Counts a line, and tells whether it is to be written. */
  function count(who: { principal?: string; tenant?: string }, isDenied: boolean): boolean {
    timer ??= setTimeout(summarize, 1_000).unref();
    const kind = isDenied ? "denials" : "others";
    const key = JSON.stringify([who.tenant, who.principal]);
    const told = second.get(kind + key) ?? { who, lines: 0 };
    second.set(kind + key, told);
    told.lines++;
    if (told.lines > linesASecond[kind]) return false;
    return !isDenied || ++denials <= denialsInAll;
  }

  return {
    call({ principal, peer, requestId, trace }, { action, threads, prefix, runs, grant, error }) {
      const result = error === undefined ? "ok" : resultOf(error);
      const who = principal ? { principal: principal.name, tenant: principal.tenant } : {};
      if (!count(who, result === "NOT_GRANTED")) return;
      const { credential } = principal ?? {};
      write({
        ...who,
        credential,
        ...(grant === undefined ? {} : { grant }),
        action,
        threads: threads.some.map(shorten),
        ...(threads.count > namesALine ? { ofThreads: threads.count } : {}),
        ...(prefix === undefined ? {} : { prefix: shorten(prefix) }),
        ...(runs ? { runs: runs.some.map(shorten), ofRuns: runs.count } : {}),
        result,
        peer,
        requestId,
        ...trace?.ids,
      });
    },
    loaded(told) {
      const { error, ...rest } = told;
      write({ action: "loadAuthFile", ...rest, result: error ?? "ok" });
    },
    stop: summarize,
  };
}

const shorten = (name: string) =>
  name.length > lettersAName ? `${name.slice(0, lettersAName)}… (${name.length} characters)` : name;

function resultOf(error: unknown): string {
  const { rawMessage } = toConnectError(error);
  const reason = (error as { detail?: { reason?: string } }).detail?.reason;
  return reason ?? rawMessage;
}
