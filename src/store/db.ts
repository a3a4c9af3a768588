import postgres from "postgres";
import { CheckpointdError } from "../errors.js";
import { checkSchemaName, quoteSchema } from "./schema_name.js";

/** One row of a result, column by column, as Postgres sent it in text form; null for NULL. */
export type Row = readonly (Buffer | null)[];

/** A parameter of a statement. Bytes travel as bytea, arrays as Postgres arrays. */
export type Parameter = string | number | null | Uint8Array | readonly (string | number | null)[];

/**
 * What a statement needs of an AbortSignal. One of these a call costs a microsecond where an
 * AbortSignal with a listener costs ten.
 */
export interface Signal {
  readonly aborted: boolean;
  readonly reason: unknown;
  throwIfAborted(): void;
  addEventListener(type: "abort", listener: () => void): void;
  removeEventListener(type: "abort", listener: () => void): void;
}

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

/** Runs a statement on a connection that is held, and returns its rows. See {@link Db.run}. */
export type Run = (
  text: string,
  parameters: readonly Parameter[],
  signal?: Signal,
) => Promise<Row[]>;

/** A bounded pool of connections to one database. */
export interface Db {
  /** The quoted schema, to be put before a table's name: `"public"`. */
  readonly schema: string;
  /** Statements running now, and calls waiting for a connection. */
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
  run: Run;
  /**
   * Runs statements in one transaction (READ COMMITTED, so each sees what was committed before
   * it began) on one connection, and commits when `use` returns. Waits for the connection, is
   * cancelled and is tried again as a whole as `run` is; an error of `use` rolls back.
   */
  transaction<T>(use: (run: Run) => Promise<T>, signal?: Signal): Promise<T>;
  /**
   * Calls `use` with a connection when one is free, at once if there is one, and frees it when
   * the promise settles. In turn with `run`, but without its bounds: who waits holds a place.
   */
  withConnection(use: (run: Run) => Promise<void>): void;
  /** Whether a connection is free. */
  isFree(): boolean;
  /**
   * Takes one of the bounded places for calls that wait, until the returned function is
   * called. `giveUp` is called with the error when the wait is too long or the signal aborts;
   * the place is free then. Throws RESOURCE_EXHAUSTED when no place is left.
   */
  takePlace(signal: Signal | undefined, giveUp: (reason: unknown) => void): () => void;
  /** Closes every connection, waiting at most `timeoutMs` for running statements. */
  close(timeoutMs: number): Promise<void>;
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
    connection: {
      application_name: "checkpointd",
      // Each statement has one good plan (plans.test.ts looks at the generic ones). Left to
      // itself Postgres plans those with arrays anew every time: 0.6 ms for a getTuple. Not
      // through a pooler, which refuses settings it does not know.
      ...(options.prepare ? { plan_cache_mode: "force_generic_plan" } : {}),
    },
    onnotice: () => {},
  });
  // Those that wait for a connection, in turn. postgres.js has a queue of its own, without a
  // bound or a timeout (porsager/postgres#824); never handing it more statements than it has
  // connections keeps that one empty.
  const turns: (() => void)[] = [];
  let running = 0;
  let waiting = 0;

  function release(): void {
    const next = turns.shift();
    if (next) next();
    else running--;
  }

  function takePlace(signal: Signal | undefined, giveUp: (reason: unknown) => void) {
    const { queueLimit, queueTimeoutMs } = options;
    if (waiting >= queueLimit) {
      throw new CheckpointdError(
        "resource_exhausted",
        `too many calls are waiting for a database connection (limit ${queueLimit})`,
        { reason: "QUEUE_FULL", limit: queueLimit },
      );
    }
    waiting++;
    const leave = () => {
      waiting--;
      clearTimeout(timer);
      signal?.removeEventListener("abort", onAbort);
    };
    const onAbort = () => {
      leave();
      giveUp(signal?.reason);
    };
    const timer = setTimeout(() => {
      leave();
      giveUp(
        new CheckpointdError(
          "unavailable",
          `no database connection became free within ${queueTimeoutMs} ms`,
          { reason: "QUEUE_TIMEOUT", limit: queueTimeoutMs },
        ),
      );
    }, queueTimeoutMs);
    signal?.addEventListener("abort", onAbort);
    return leave;
  }

  async function acquire(signal: Signal | undefined): Promise<void> {
    if (running < options.poolSize) {
      running++;
      return;
    }
    await new Promise<void>((resolve, reject) => {
      const start = () => {
        leave();
        resolve();
      };
      const leave = takePlace(signal, (reason) => {
        turns.splice(turns.indexOf(start), 1);
        reject(reason);
      });
      turns.push(start);
    });
  }

  async function send(
    connection: postgres.ISql,
    text: string,
    parameters: readonly Parameter[],
    signal: Signal | undefined,
  ): Promise<Row[]> {
    const query = connection.unsafe(text, parameters as never, { prepare: options.prepare }).raw();
    if (!signal) return withoutHoles((await query) as unknown as Row[]);
    let timer: NodeJS.Timeout | undefined;
    const cancel = () => {
      // Only a statement that Postgres has: cancelled earlier, postgres.js would strand the
      // connection it waits for. Not query.cancel(), which drops the promise of the connection
      // it opens, so that a refused one would end the process. Again and again, because
      // Postgres forgets a request that overtakes its statement.
      const { state, active, canceller } = query as unknown as Cancellable;
      if (state && active) canceller(query).catch(() => {});
      timer = setTimeout(cancel, 100);
    };
    signal.addEventListener("abort", cancel);
    try {
      return withoutHoles((await query) as unknown as Row[]);
    } finally {
      signal.removeEventListener("abort", cancel);
      clearTimeout(timer);
    }
  }

  const execute: Run = (text, parameters, signal) =>
    tryAgain(() => send(sql, text, parameters, signal), signal);

  async function tryAgain<T>(use: () => Promise<T>, signal: Signal | undefined): Promise<T> {
    for (let attempt = 1; ; attempt++) {
      signal?.throwIfAborted();
      try {
        return await use();
      } catch (error) {
        signal?.throwIfAborted();
        if (attempt >= conflictTries || !mayRunAgain(error)) throw error;
        await new Promise((resolve) => setTimeout(resolve, Math.random() * 10 * 2 ** attempt));
      }
    }
  }

  return {
    schema: quoteSchema(options.schema),
    load: () => ({ running, waiting }),
    isFree: () => running < options.poolSize,
    takePlace,
    async run(text, parameters, signal) {
      signal?.throwIfAborted();
      await acquire(signal);
      // The caller is told at once; the connection is free when the statement has ended.
      const rows = execute(text, parameters, signal).finally(release);
      return signal ? orAborted(rows, signal) : rows;
    },
    async transaction<T>(use: (run: Run) => Promise<T>, signal?: Signal) {
      signal?.throwIfAborted();
      await acquire(signal);
      // Not settled by the statements inside: a connection that closes leaves those that are
      // queued unsettled (porsager/postgres#1186), while begin rejects.
      const result = tryAgain(
        () =>
          sql.begin((held) =>
            use((text, parameters) => send(held, text, parameters, signal)),
          ) as Promise<T>,
        signal,
      ).finally(release);
      return signal ? orAborted(result, signal) : result;
    },
    withConnection(use) {
      const start = () => void use(execute).finally(release);
      if (running < options.poolSize) {
        running++;
        start();
      } else {
        turns.push(start);
      }
    },
    async close(timeoutMs) {
      // end() without a timeout can hang after a disconnect (porsager/postgres#1097).
      await sql.end({ timeout: timeoutMs / 1000 });
    },
  };
}

/** What postgres.js keeps of a running query; its version is pinned for this. */
interface Cancellable {
  state: unknown;
  active: boolean;
  canceller: (query: unknown) => Promise<void>;
}

/**
 * postgres.js goes on counting from the rows of a statement that failed, or was cancelled, after
 * its first ones: those of the next on that connection come behind as many holes
 * (porsager/postgres#1119, #1181).
 */
function withoutHoles(rows: Row[]): Row[] {
  return rows.length === 0 || 0 in rows ? rows : rows.slice(rows.findIndex((row) => row));
}

function orAborted<T>(result: Promise<T>, signal: Signal): Promise<T> {
  return new Promise((resolve, reject) => {
    const onAbort = () => reject(signal.reason);
    signal.addEventListener("abort", onAbort);
    result.then(resolve, reject).finally(() => signal.removeEventListener("abort", onAbort));
  });
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
