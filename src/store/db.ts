import postgres from "postgres";
import { CheckpointdError } from "../errors.js";
import { checkSchemaName, quoteSchema } from "./schema_name.js";

/** One row of a result, column by column, as Postgres sent it in text form; null for NULL. */
export type Row = readonly (Buffer | null)[];

/** A parameter of a statement. Bytes travel as bytea, arrays as Postgres arrays. */
export type Parameter = string | number | null | Uint8Array | readonly (string | number | null)[];

/** How to reach Postgres and how much of it to use. */
export interface DbOptions {
  /** A postgres:// URL. */
  databaseUrl: string;
  /** The schema that holds LangGraph's tables. */
  schema: string;
  /** Connections held at the most. */
  poolSize: number;
  /** Statements that may wait for a connection at the most. */
  queueLimit: number;
  /** How long a statement may wait for a connection, in milliseconds. */
  queueTimeoutMs: number;
  /** Whether to use named prepared statements; false behind a transaction pooler. */
  prepare: boolean;
}

/** A bounded pool of connections to one database. */
export interface Db {
  /** The quoted schema, to be put before a table's name: `"public"`. */
  readonly schema: string;
  /** Statements running now, and statements waiting for a connection. */
  load(): { running: number; waiting: number };
  /**
   * Runs one statement in a round trip of its own and returns its rows.
   *
   * Waits for a connection in a queue that is bounded in length (RESOURCE_EXHAUSTED) and in
   * time (UNAVAILABLE). When `signal` aborts, a waiting statement is given up and a running
   * one is cancelled in Postgres; the signal's reason is thrown. A deadlock, a serialization
   * failure and a cancellation that was meant for somebody else are tried again, so the
   * statement must be idempotent. Errors of Postgres and of the connection are thrown as
   * postgres.js raises them.
   */
  run(text: string, parameters: readonly Parameter[], signal?: AbortSignal): Promise<Row[]>;
  /** Closes every connection, waiting at most `timeoutMs` for running statements. */
  close(timeoutMs: number): Promise<void>;
}

interface Waiter {
  start: () => void;
  timer: NodeJS.Timeout;
}

const conflictTries = 5;

/**
 * Opens the pool. Connects on first use, so it succeeds while the database is down.
 *
 * @throws when the schema's name cannot be one
 */
export function openDb(options: DbOptions): Db {
  checkSchemaName(options.schema);
  const sql = postgres(options.databaseUrl, {
    max: options.poolSize,
    prepare: options.prepare,
    connect_timeout: 10,
    // postgres.js backs off up to 20 s after a failed connect and holds statements meanwhile;
    // a database that comes back must be seen within a second.
    backoff: (retries: number) => Math.min(1, 0.05 * 2 ** Math.min(retries, 10)),
    connection: { application_name: "checkpointd" },
    onnotice: () => {},
  });
  const waiting: Waiter[] = [];
  let running = 0;

  // postgres.js has a queue of its own, without a bound or a timeout (porsager/postgres#824).
  // Never handing it more statements than it has connections keeps that queue empty.
  async function acquire(signal: AbortSignal | undefined): Promise<void> {
    if (running < options.poolSize) {
      running++;
      return;
    }
    if (waiting.length >= options.queueLimit) {
      throw new CheckpointdError(
        "resource_exhausted",
        `too many calls are waiting for a database connection (limit ${options.queueLimit})`,
        { reason: "QUEUE_FULL", limit: options.queueLimit },
      );
    }
    await new Promise<void>((resolve, reject) => {
      const leave = () => {
        waiting.splice(waiting.indexOf(waiter), 1);
        clearTimeout(waiter.timer);
        signal?.removeEventListener("abort", onAbort);
      };
      const onAbort = () => {
        leave();
        reject(signal?.reason);
      };
      const waiter: Waiter = {
        start: () => {
          clearTimeout(waiter.timer);
          signal?.removeEventListener("abort", onAbort);
          resolve();
        },
        timer: setTimeout(() => {
          leave();
          reject(
            new CheckpointdError(
              "unavailable",
              `no database connection became free within ${options.queueTimeoutMs} ms`,
              { reason: "QUEUE_TIMEOUT", limit: options.queueTimeoutMs },
            ),
          );
        }, options.queueTimeoutMs),
      };
      waiting.push(waiter);
      signal?.addEventListener("abort", onAbort);
    });
  }

  function release(): void {
    const next = waiting.shift();
    if (next) next.start();
    else running--;
  }

  async function execute(
    text: string,
    parameters: readonly Parameter[],
    signal: AbortSignal | undefined,
  ): Promise<Row[]> {
    const query = sql.unsafe(text, parameters as never, { prepare: options.prepare }).raw();
    if (!signal) return (await query) as unknown as Row[];
    const onAbort = () => cancel(query as unknown as Cancellable);
    signal.addEventListener("abort", onAbort);
    try {
      return (await query) as unknown as Row[];
    } finally {
      signal.removeEventListener("abort", onAbort);
    }
  }

  return {
    schema: quoteSchema(options.schema),
    load: () => ({ running, waiting: waiting.length }),
    async run(text, parameters, signal) {
      signal?.throwIfAborted();
      await acquire(signal);
      try {
        for (let attempt = 1; ; attempt++) {
          try {
            return await execute(text, parameters, signal);
          } catch (error) {
            signal?.throwIfAborted();
            if (attempt >= conflictTries || !mayRunAgain(error)) throw error;
            await new Promise((resolve) => setTimeout(resolve, Math.random() * 10 * 2 ** attempt));
            signal?.throwIfAborted();
          }
        }
      } finally {
        release();
      }
    },
    async close(timeoutMs) {
      // end() without a timeout can hang after a disconnect (porsager/postgres#1097).
      await sql.end({ timeout: timeoutMs / 1000 });
    },
  };
}

interface Cancellable {
  canceller: ((query: unknown) => Promise<void>) | null;
}

/**
 * Asks Postgres to cancel a running query. `query.cancel()` drops the promise of the
 * connection it opens for that, so a refused connection would be an unhandled rejection and
 * end the process; calling what it calls lets us catch it.
 */
function cancel(query: Cancellable): void {
  const { canceller } = query;
  query.canceller = null;
  canceller?.(query).catch(() => {});
}

/**
 * 40001 and 40P01 are lost conflicts. 57014 "due to user request" without an abort of ours is
 * the cancel request of a statement that had just finished, hitting its successor on the same
 * connection: the protocol names a connection, not a statement.
 */
function mayRunAgain(error: unknown): boolean {
  const { code, message } = error as { code?: string; message?: string };
  if (code === "40001" || code === "40P01") return true;
  return code === "57014" && message !== undefined && message.includes("user request");
}
