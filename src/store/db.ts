import { setTimeout as sleep } from "node:timers/promises";
import { CheckpointdError } from "../errors.js";
import { parseDatabaseUrl } from "./address.js";
import { type Connection, ConnectionError, type Result } from "./connection.js";
import { createPool, type PoolHistory } from "./pool.js";
import { createQueue, createTurns } from "./queue.js";
import { Results } from "./results.js";
import { checkSchemaName, quoteSchema } from "./schema_name.js";
import { startStallWatch } from "./stall.js";
import { guardFromNow, type LeftOut } from "./undeliverable.js";

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
  /** Whose it is: while many wait for a connection, each source has its turn. */
  readonly source?: object | undefined;
  /** Where there is one, how long its statements waited for a connection is added, in ms. */
  queueMs?: number;
  /** Where there is one, how long its statements ran is added, in ms; of a shared one its share. */
  databaseMs?: number | undefined;
  /** Where there is one, it is raised to the number of calls that shared a statement. */
  batchSize?: number;
  /** Where there is one, it is told of each statement that ended. */
  ran?: ((statement: RanStatement) => void) | undefined;
}

/** A statement that was sent and has ended. */
export interface RanStatement {
  readonly text: string;
  /** When it was sent, by performance.now(). */
  readonly since: number;
  /** The calls that travelled in it. */
  readonly calls: number;
  /** Undefined where Postgres said that it was carried out. */
  readonly error: unknown;
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

/**
 * Runs a statement on a connection that is held, and returns its rows and how many it touched. See
 * {@link Db.run}.
 */
export type Run = (
  text: string,
  parameters: readonly Parameter[],
  signal?: Signal,
) => Promise<Result>;

/** A bounded pool of connections to one database. */
export interface Db {
  /** The quoted schema, to be put before a table's name: `"public"`. */
  readonly schema: string;
  /**
   * The quoted names of the schemas whose tables Citus distributes. Known once a connection was
   * opened, and looked up again with each that is.
   */
  readonly distributed: ReadonlySet<string>;
  /** See undeliverable.ts: until when, by performance.now(), what prints JSON looks at it first. */
  readonly guard: { until: number };
  /** Tells whoever opened the pool of a checkpoint that is left out of an answer. */
  leaveOut(checkpoint: LeftOut): void;
  /** Statements running now, and calls waiting for a connection. */
  load(): { running: number; waiting: number };
  /** What its connections do and did, to be told to whoever watches the server. */
  measures(): {
    idle: number;
    /** Statements of `runLong` that run, and how many may. */
    long: number;
    longLimit: number;
    /** Bytes of results that have arrived so far of statements that run, and how many may. */
    resultBytes: number;
    resultBytesLimit: number;
    history: Readonly<PoolHistory>;
  };
  /**
   * Runs one statement in a round trip of its own and returns its rows.
   *
   * Waits for a connection in a queue that is bounded in length (RESOURCE_EXHAUSTED) and in
   * time (UNAVAILABLE). When `signal` aborts, a waiting statement is given up and a running
   * one is cancelled in Postgres; the signal's reason is thrown. A deadlock, a serialization
   * failure and a cancellation that was meant for somebody else are tried again, so the
   * statement must be idempotent. Resolves only when Postgres said that the statement was carried
   * out. Throws Postgres' errors as postgres.js raises them, and a ConnectionError when the
   * connection failed: what the statement did is not known then.
   */
  run: Run;
  /**
   * Runs a statement as `run` does, for lists and other reads that may take long: all of them
   * together hold at most a quarter of the connections, so that they leave room for the short ones.
   * One that takes two minutes is cancelled (DEADLINE_EXCEEDED), whatever its caller allows.
   */
  runLong: Run;
  /**
   * Runs statements in one transaction (READ COMMITTED, so each sees what was committed before
   * it began) on one connection, and commits when `use` returns. Waits for the connection, is
   * cancelled and is tried again as a whole as `run` is; an error of `use` rolls back.
   */
  transaction<T>(use: (run: Run) => Promise<T>, signal?: Signal): Promise<T>;
  /**
   * Calls `use` with a connection when one is free, as soon as there is one, and frees it when
   * the promise settles; or calls `fail` when none could be opened. In turn with `run`, but
   * without its bounds: who waits holds a place. Nothing is tried again (see `conflictPause`).
   */
  withConnection(use: (run: Run) => Promise<void>, fail: (error: unknown) => void): void;
  /** Whether a connection may be used; it may have to be opened first. */
  isFree(): boolean;
  /** Whether a connection is free and open. */
  hasIdle(): boolean;
  /**
   * Takes one of the bounded places for calls that wait, until the returned function is
   * called. `giveUp` is called with the error when the wait is too long or the signal aborts;
   * the place is free then. Throws RESOURCE_EXHAUSTED when no place is left.
   */
  takePlace(signal: Signal | undefined, giveUp: (reason: unknown) => void): () => void;
  /** Closes every connection, waiting at most `timeoutMs` for running statements. */
  close(timeoutMs: number): Promise<void>;
}

/**
 * Whether the tables are distributed over several nodes by thread. A statement is of one thread then,
 * and names it in each table that it reads, or is a fan-out that all nodes can answer by themselves.
 */
export const isDistributed = ({ distributed, schema }: Pick<Db, "distributed" | "schema">) =>
  distributed.size > 0 && distributed.has(schema);

const conflictTries = 5;
/** What a long statement may take: a hundred times what one on rows that fit its bounds takes. */
const longMs = 120_000;

/**
 * Opens the pool. Connects on first use, so it succeeds while the database is down.
 *
 * @throws when the schema's name cannot be one, or the URL asks for a server that takes no writes
 */
export function openDb(options: DbOptions, leaveOut: Db["leaveOut"] = () => {}): Db {
  checkSchemaName(options.schema);
  const target = parseDatabaseUrl(options.databaseUrl, options.prepare);
  const stall = startStallWatch();
  const results = new Results();
  const pool = createPool(target, stall, results);
  const turns = createTurns(options.poolSize);
  const longLimit = Math.max(1, Math.floor(options.poolSize / 4));
  const longTurns = createTurns(longLimit);
  const { takePlace, takeTurn, waiting } = createQueue(options);

  /** A connection and its turn, which end together with `giveBack`. */
  async function borrow(signal: Signal | undefined): Promise<Connection> {
    await takeTurn(turns, signal);
    const idle = pool.borrowIdle();
    if (idle) return idle;
    return new Promise((resolve, reject) => {
      let isGone = false;
      let leave = () => {};
      try {
        leave = takePlace(signal, (reason) => {
          isGone = true;
          reject(reason);
        });
      } catch (error) {
        turns.release();
        reject(error);
        return;
      }
      // The turn is kept to the end: there are never more connections than turns.
      pool.borrow().then(
        (connection) => {
          if (isGone) {
            giveBack(connection);
            return;
          }
          leave();
          resolve(connection);
        },
        (error) => {
          turns.release();
          if (isGone) return;
          leave();
          reject(error);
        },
      );
    });
  }

  function giveBack(connection: Connection): void {
    pool.giveBack(connection);
    turns.release();
  }

  async function send(
    connection: Connection,
    text: string,
    parameters: readonly Parameter[],
    signal: Signal | undefined,
  ): Promise<Result> {
    // Not awaited for nothing: that is one more turn for each statement.
    const pause = stall.catchUp();
    if (pause) await pause;
    stall.check();
    try {
      return await connection.send(text, parameters, signal);
    } catch (error) {
      const { code } = error as { code?: string };
      // The server became a standby, or another one took over: look where the address leads now.
      // And what was cut without a word was hardly alone.
      if (code === "25006" || code === "CONNECTION_DEAD") pool.renewAfter(connection);
      throw error;
    }
  }

  /** Runs a statement; `onEnd` is called when it has ended, which may be after its caller heard. */
  async function runAlone(
    text: string,
    parameters: readonly Parameter[],
    signal: Signal | undefined,
    onEnd: () => void,
    limit: Signal | undefined = signal,
  ): Promise<Result> {
    let connection: Connection;
    try {
      connection = await borrow(signal);
    } catch (error) {
      onEnd();
      throw error;
    }
    // The caller is told at once; the connection is free when the statement has ended.
    const since = performance.now();
    const rows = tryAgain(() => send(connection, text, parameters, limit), limit).finally(() => {
      if (signal?.databaseMs !== undefined) signal.databaseMs += performance.now() - since;
      giveBack(connection);
      onEnd();
    });
    if (!signal) return rows;
    return orAborted(signal.ran ? telling([signal], text, since, rows) : rows, signal);
  }

  const guard = { until: 0 };
  return {
    schema: quoteSchema(options.schema),
    distributed: pool.distributed,
    guard,
    leaveOut(checkpoint) {
      guardFromNow(guard);
      leaveOut(checkpoint);
    },
    load: () => ({ running: turns.taken(), waiting: waiting() }),
    measures: () => ({
      idle: pool.idle(),
      long: longTurns.taken(),
      longLimit,
      resultBytes: results.inAll,
      resultBytesLimit: results.limits.inAll,
      history: pool.history,
    }),
    isFree: turns.isFree,
    hasIdle: () => turns.isFree() && pool.hasIdle(),
    takePlace,
    async run(text, parameters, signal) {
      signal?.throwIfAborted();
      return runAlone(text, parameters, signal, () => {});
    },
    async runLong(text, parameters, signal) {
      signal?.throwIfAborted();
      await takeTurn(longTurns, signal);
      const limit = startLimit(signal, longMs);
      const onEnd = () => {
        limit.end();
        longTurns.release();
      };
      return runAlone(text, parameters, signal, onEnd, limit.signal);
    },
    async transaction<T>(use: (run: Run) => Promise<T>, signal?: Signal) {
      signal?.throwIfAborted();
      const connection = await borrow(signal);
      const held: Run = (text, parameters) => {
        const since = performance.now();
        const result = send(connection, text, parameters, signal);
        return signal?.ran ? telling([signal], text, since, result) : result;
      };
      const result = tryAgain(() => transact(connection, () => use(held)), signal).finally(() =>
        giveBack(connection),
      );
      return signal ? orAborted(result, signal) : result;
    },
    withConnection(use, fail) {
      const carry = async (connection: Connection) => {
        const run: Run = (text, parameters, signal) => send(connection, text, parameters, signal);
        const pause = stall.catchUp();
        if (pause) await pause;
        await use(run).finally(() => giveBack(connection));
      };
      const start = () => {
        const idle = pool.borrowIdle();
        if (idle) {
          void carry(idle);
          return;
        }
        pool.borrow().then(carry, (error) => {
          turns.release();
          fail(error);
        });
      };
      if (turns.take()) start();
      else turns.order.stand(turns.waiting, { start, place: 0 }, use);
    },
    async close(timeoutMs) {
      await pool.close(timeoutMs);
      stall.stop();
    },
  };
}

/** One transaction. Resolves only when Postgres said that it was committed. */
async function transact<T>(connection: Connection, use: () => Promise<T>): Promise<T> {
  let result: T;
  try {
    await connection.send("begin", [], AbortSignal.timeout(commitMs));
    result = await use();
  } catch (error) {
    await connection.send("rollback", [], AbortSignal.timeout(rollbackMs)).catch((reason) => {
      // A transaction that may still be open must not be the next caller's.
      connection.end(reason as Error);
    });
    throw error;
  }
  // Postgres answers ROLLBACK to the commit of a transaction in which a statement failed.
  const { command } = await connection.send("commit", [], AbortSignal.timeout(commitMs));
  if (command !== "COMMIT") {
    throw new ConnectionError("NOT_ACKNOWLEDGED", `Postgres answered ${command} to a commit`);
  }
  return result;
}

/** Within which a transaction has to be rolled back, and begun or committed. */
const rollbackMs = 2_000;
const commitMs = 30_000;

/** Tells those who want to know how the statement ended that they travelled in. */
export async function telling<T>(
  signals: readonly (Signal | undefined)[],
  text: string,
  since: number,
  result: Promise<T>,
): Promise<T> {
  let error: unknown;
  try {
    return await result;
  } catch (reason) {
    error = reason;
    throw reason;
  } finally {
    for (const signal of signals) signal?.ran?.({ text, since, calls: signals.length, error });
  }
}

/**
 * Throws unless the statement touched as many rows as it had to: no acknowledgement for a write of
 * which Postgres does not say that it was stored.
 */
export function expectCount({ count }: Result, rows: number): void {
  if (count === rows) return;
  throw new ConnectionError(
    "NOT_ACKNOWLEDGED",
    `Postgres says that ${count} rows were stored of ${rows}`,
  );
}

async function tryAgain<T>(use: () => Promise<T>, signal: Signal | undefined): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    signal?.throwIfAborted();
    try {
      return await use();
    } catch (error) {
      signal?.throwIfAborted();
      const pauseMs = conflictPause(error, attempt);
      if (pauseMs === undefined) throw error;
      await sleep(pauseMs);
    }
  }
}

/** A signal that aborts with the other, and after so long by itself, until it is ended. */
function startLimit(signal: Signal | undefined, ms: number) {
  const limit = new AbortController();
  const onAbort = () => limit.abort(signal?.reason);
  const timer = setTimeout(() => {
    const message = `the statement took longer than the ${ms} ms that one may`;
    limit.abort(
      new CheckpointdError("deadline_exceeded", message, {
        reason: "STATEMENT_TIMEOUT",
        limit: ms,
      }),
    );
  }, ms);
  signal?.addEventListener("abort", onAbort);
  const end = () => {
    clearTimeout(timer);
    signal?.removeEventListener("abort", onAbort);
  };
  return { signal: limit.signal, end };
}

function orAborted<T>(result: Promise<T>, signal: Signal): Promise<T> {
  return new Promise((resolve, reject) => {
    const onAbort = () => reject(signal.reason);
    signal.addEventListener("abort", onAbort);
    result.then(resolve, reject).finally(() => signal.removeEventListener("abort", onAbort));
  });
}

/**
 * How long to wait, in ms, before a statement that failed with the error is tried again after so
 * many attempts; undefined if it may not be.
 *
 * 40001 and 40P01 are lost conflicts. 57014 "due to user request" without an abort of ours is
 * the cancel request of a statement that had just finished, hitting its successor on the same
 * connection: the protocol names a connection, not a statement.
 */
export function conflictPause(error: unknown, attempts: number): number | undefined {
  const { code, message } = error as { code?: string; message?: string };
  const isConflict =
    code === "40001" || code === "40P01" || (code === "57014" && message?.includes("user request"));
  if (!isConflict || attempts >= conflictTries) return undefined;
  return Math.random() * 10 * 2 ** attempts;
}
