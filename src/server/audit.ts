/** Who did what to which thread: one line of JSON for each, apart from the log of the calls. */
import { pino } from "pino";
import { clean } from "../clean.js";
import type { Log } from "../log.js";
import type { Call } from "./call.js";
import { toConnectError } from "./connect_error.js";

/**
 * A log that is added to a file, which its owner alone may read, line by line. A line is written when
 * what it tells of was done, and not lost with the process.
 */
export function createAuditLog(path: string): Log {
  const destination = pino.destination({ dest: path, mode: 0o600, mkdir: true, sync: true });
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

/** What is told of a call. */
export interface Audited {
  /** The operation of {@link accessRules} or the name of what else was done, such as "deleteThread". */
  action: string;
  /** The thread, or those, that the request names; a prefix with a star. */
  threads: readonly string[];
  /** Where in the principal's grants the one is that allowed it, where one did. */
  grant?: number | undefined;
  /** Undefined: it was carried out. */
  error?: unknown;
}

/** Writes the audit log. */
export type Audit = (call: Call, audited: Audited) => void;

/** Lines a second at the most; those beyond are counted, so that nobody fills the disk with denials. */
const linesASecond = 200;
/** Of the names of a request that are told; a prune may name a thousand threads. */
const namesALine = 20;

/**
 * Returns what writes lines with the principal, its tenant, the grant that allowed it, the action, the
 * threads, the result, the peer and the request's id. It writes to `log` as "audit", whatever the
 * level.
 */
export function createAudit(log: Log): Audit {
  let windowAt = 0;
  let lines = 0;
  return (call, { action, threads, grant, error }) => {
    const now = performance.now();
    if (now - windowAt > 1_000) {
      if (lines > linesASecond) log.info({ suppressed: lines - linesASecond }, "audit");
      windowAt = now;
      lines = 0;
    }
    if (++lines > linesASecond) return;
    const { principal, peer, requestId, trace } = call;
    log.info(
      {
        principal: principal?.name,
        tenant: principal?.tenant,
        ...(grant === undefined ? {} : { grant }),
        action,
        threads: threads.slice(0, namesALine),
        ...(threads.length > namesALine ? { ofThreads: threads.length } : {}),
        result: error === undefined ? "ok" : resultOf(error),
        peer,
        requestId,
        ...trace?.ids,
      },
      "audit",
    );
  };
}

function resultOf(error: unknown): string {
  const { rawMessage } = toConnectError(error);
  const reason = (error as { detail?: { reason?: string } }).detail?.reason;
  return reason ?? rawMessage;
}
