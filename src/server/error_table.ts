/**
 * What clients are told of trouble with the database: the table of SQLSTATEs and of the words
 * for broken connections, and how long to wait before a retry.
 */
import { CheckpointdError, type ErrorCode, type ErrorReason } from "../errors.js";

type Row = [match: RegExp, code: ErrorCode, reason: ErrorReason, message: string];

/**
 * The first row that matches `SQLSTATE message` holds. Everything that may pass is UNAVAILABLE or
 * ABORTED, which clients of every language repeat. So is a full disk: RESOURCE_EXHAUSTED would be
 * HTTP's 429, "you ask too often", and few clients repeat it, while 503 is what retry-after was
 * made for.
 *
 * Messages are looked at only where Postgres has one SQLSTATE for several things, in the words of
 * its lc_messages: in another language than English what someone cancelled counts as timed out.
 */
const rows: readonly Row[] = [
  [/^53100/, "unavailable", "DISK_FULL", "the database's disk is full; free space on it"],
  [
    /^(53300|08P01 .*(no more connections allowed|max_client_conn))/,
    "unavailable",
    "TOO_MANY_CONNECTIONS",
    "the database has no connection left; raise its limit or lower --pool-size",
  ],
  [
    /^53/,
    "unavailable",
    "OUT_OF_RESOURCES",
    "the database ran out of memory or of another resource, try again",
  ],
  [
    /^25006/,
    "unavailable",
    "READ_ONLY",
    "the database is a standby or read-only; connect the server to the primary",
  ],
  [
    /^57014 .*user request/,
    "aborted",
    "STATEMENT_CANCELLED",
    "someone cancelled the statement in the database, try again",
  ],
  [
    /^(57014|25P04)/,
    "deadline_exceeded",
    "STATEMENT_TIMEOUT",
    "the statement took longer than the database's statement_timeout allows",
  ],
  [
    /^55P03/,
    "aborted",
    "LOCK_TIMEOUT",
    "the statement waited for a lock longer than the database's lock_timeout allows, try again",
  ],
  // A column, a schema, a table, a function, a type, or the key of an ON CONFLICT.
  [
    /^(42P01|42703|3F000|42883|42704|42P10)/,
    "unavailable",
    "SCHEMA_OLD",
    "the database's tables are missing or older than this server; run checkpointd migrate",
  ],
  [
    /^(28|AUTH_TYPE_NOT_IMPLEMENTED|SASL_)/,
    "unavailable",
    "ACCESS_DENIED",
    "the database refuses the server's user name or password; correct the server's database URL",
  ],
  [
    /^42501/,
    "internal",
    "PRIVILEGE_MISSING",
    "the server's database role lacks a privilege; grant it what the documentation names",
  ],
  // The store says more where it knows the request (store/keys.ts).
  [
    /^54000/,
    "invalid_argument",
    "TOO_LONG",
    "a name is too long for an index of the database, or a value beyond another limit of it; " +
      "use shorter node names, a join of fewer nodes or a shorter thread id",
  ],
  [/^(40001|40P01)/, "aborted", "CONFLICT", "lost a conflict with another write, try again"],
  // PgBouncer in transaction mode. Its other protocol violations are broken connections.
  [
    /^(26000|42P05|08P01 .*(startup parameter|prepared statement))/,
    "unavailable",
    "POOLER",
    "a connection pooler does not keep what was prepared; start the server with --no-prepare",
  ],
  [/^57P03/, "unavailable", "STARTING_UP", "the database takes no connections yet, try again"],
  [
    /^57P0[12]/,
    "unavailable",
    "SHUTTING_DOWN",
    "the database or its administrator ended the connection, try again",
  ],
  [
    /^XX00[12]/,
    "data_loss",
    "DATA_CORRUPTED",
    "the database found its files damaged; restore them before going on",
  ],
  [
    /^(3D000|57P04)/,
    "unavailable",
    "DATABASE_UNAVAILABLE",
    "there is no database of the name that the server was given",
  ],
  // The store's words and postgres.js's, and Postgres's timeouts of idle sessions. What ran may or
  // may not have been carried out.
  [
    /^(CONNECTION_\w+|NOT_ACKNOWLEDGED|ECONNRESET|EPIPE|080(03|06|07)|25P03|57P05)/,
    "unavailable",
    "DATABASE_UNAVAILABLE",
    "the connection to the database ended before it had answered, try again",
  ],
  [
    /^(08|CONNECT_|E(CONN\w+|TIMEDOUT|HOSTUNREACH|HOSTDOWN|NETUNREACH|NETDOWN|NOTFOUND|AI_AGAIN|NOENT)\b)/,
    "unavailable",
    "DATABASE_UNAVAILABLE",
    "the database cannot be reached, try again",
  ],
];

/** The error to be told for one of the database or of a connection to it, if the table has it. */
export function toTold(error: unknown): CheckpointdError | undefined {
  const { code, message, cause } = error as { code?: unknown; message?: unknown; cause?: unknown };
  if (typeof code !== "string") return undefined;
  // Why a connection could not be made, or ended, is told rather than that it was not.
  const why = /^(CONNECT|NOT_ACK)/.test(code) && cause ? toTold(cause) : undefined;
  if (why) return why;
  const text = `${code} ${message}`;
  const row = rows.find(([match]) => match.test(text));
  return row && new CheckpointdError(row[1], row[3], { reason: row[2] }, { cause: error });
}

/**
 * How long to wait before a retry is worth it, in milliseconds, for the reasons that pass by
 * themselves or once an operator has acted. What passes within moments is tried again soon, what
 * waits for somebody is not asked for too often.
 */
export const retryDelayMs: Partial<Record<ErrorReason, number>> = {
  CONFLICT: 50,
  DRAINING: 100,
  SHUTTING_DOWN: 100,
  POOLER: 250,
  QUEUE_FULL: 250,
  SERVER_STALLED: 250,
  STATEMENT_CANCELLED: 250,
  DATABASE_UNAVAILABLE: 500,
  LOCK_TIMEOUT: 500,
  LIMIT_REACHED: 1000,
  NOT_READY: 500,
  READ_ONLY: 500,
  STARTING_UP: 500,
  OUT_OF_RESOURCES: 1000,
  OVERLOADED: 1000,
  QUEUE_TIMEOUT: 1000,
  SCHEMA_OLD: 1000,
  STATEMENT_TIMEOUT: 1000,
  TOO_MANY_CONNECTIONS: 1000,
  SCHEMA_NEW: 5000,
  ACCESS_DENIED: 5000,
  DISK_FULL: 5000,
};
