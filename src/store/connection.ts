import type { Socket } from "node:net";
import postgres from "postgres";
import { type Wired, withBind } from "./bind.js";
import type { Parameter, Row, Signal } from "./db.js";
import type { Arriving, Results } from "./results.js";
import { quoteSchema } from "./schema_name.js";
import { type Address, type Encryption, openSocket } from "./socket.js";
import type { StallWatch } from "./stall.js";

/** What a statement returned: its rows, and how many rows its command says it touched. */
export type Result = Row[] & { command: string; count: number };

/** What postgres.js makes of a URL and options; its version is pinned for this. */
export type ParsedOptions = ReturnType<typeof postgres>["options"];

/** A host of a database URL: where it listens, and how postgres.js is to log in there. */
export interface Host {
  address: Address;
  encryption: Encryption;
  options: ParsedOptions;
}

/** Within which a statement that was cancelled has to end before its connection is given up. */
const graceMs = 2_000;
/** Within which a cancel request has to reach Postgres. */
const cancelMs = 2_000;
/** Within which a connection that is closed says goodbye. */
const partingMs = 1_000;

/** The connection, or the way to it, failed; what a statement did on it is not known. */
export class ConnectionError extends Error {
  override readonly name = "ConnectionError";
  constructor(
    /**
     * CONNECT_FAILED and CONNECT_TIMEOUT: it was never there. CONNECTION_LOST: it ended.
     * CONNECTION_DEAD: it was given up because nothing came back. NOT_ACKNOWLEDGED: Postgres did
     * not say that the statement was carried out.
     */
    readonly code:
      | "CONNECT_FAILED"
      | "CONNECT_TIMEOUT"
      | "CONNECTION_LOST"
      | "CONNECTION_DEAD"
      | "CONNECTION_CLOSED"
      | "NOT_ACKNOWLEDGED",
    message: string,
    options?: ErrorOptions,
  ) {
    super(message, options);
  }
}

/** A statement on its way. */
interface Running extends Arriving {
  bytes: number;
  /** By performance.now(). */
  since: number;
  parameters: readonly Wired[];
  /** The statement, as postgres.js describes it. */
  query: Described;
  /** Whether its columns of bytes were asked for as they are. */
  isBinary: boolean;
  fail: (error: Error) => void;
}

/**
 * One connection to Postgres, from its start-up to its end. It carries one statement at a time and
 * never connects again: who wants another opens another.
 *
 * That is what keeps postgres.js honest. In a client of its own that reconnects, a statement issued
 * between a socket's "error" and its "close" is never sent and is answered by the ReadyForQuery of
 * the next connection: an empty success (seen: 27 of 5,023 acknowledged writes lost). Here a client
 * has one socket, which we make, and with it everything on it ends. Besides, the invariant is
 * checked: **no CommandComplete, no acknowledgement**.
 */
export class Connection {
  /** Which backend of Postgres serves it. */
  backendPid = 0;
  /** Whether a pooler stands between: the keys to cancel with are not those of the backend. */
  isPooled = false;
  /** Whether it refuses writes, as a standby does. */
  isReadOnly = false;
  /** Which Postgres it leads to, as long as that one runs. */
  server = "";
  /** The quoted names of the schemas whose tables Citus distributes there. */
  distributed: readonly string[] = [];
  /** Statements that were carried out on it. */
  completed = 0;
  readonly openedAt = performance.now();
  /** How long it lives, as a multiple of what is usual: not all of a pool end at once. */
  readonly lifetime = 0.75 + Math.random() / 2;
  /** When its statement was last asked after, by performance.now(). */
  lookedAt = 0;
  /** Called once when it has ended, however. */
  onEnd: (connection: Connection) => void = () => {};
  /** Why it has ended. */
  ended: Error | undefined;
  readonly #sql: ReturnType<typeof postgres>;
  readonly #socket: Socket;
  readonly #prepare: boolean;
  #running: Running | undefined;
  #cancelling = false;
  /** The process id that came with the key to cancel with. */
  #keyPid = 0;
  readonly #results: Results;

  private constructor(
    readonly host: Host,
    socket: Socket,
    stall: Pick<StallWatch, "hasStoodStillSince">,
    results: Results,
  ) {
    const { address, options } = host;
    this.#socket = socket;
    this.#results = results;
    // postgres.js writes a statement some moments after it has it, and the first time in two steps.
    // What it still has when the process stood still must not go out (see stall.ts).
    const write = socket.write.bind(socket) as (...parameters: unknown[]) => boolean;
    socket.write = (messages: Uint8Array, ...rest: unknown[]) => {
      if (stall.hasStoodStillSince(this.openedAt)) {
        this.end(lost("the server stood still, and with it the connection to Postgres"));
        return false;
      }
      const chunks = this.#bind(messages);
      if (chunks.length === 1) return write(chunks[0], ...rest);
      socket.cork();
      for (const chunk of chunks.slice(0, -1)) write(chunk);
      const hasRoom = write(chunks.at(-1), ...rest);
      socket.uncork();
      return hasRoom;
    };
    this.#prepare = options.prepare;
    let used = false;
    this.#sql = postgres({
      ...options,
      ...("path" in address
        ? { path: address.path }
        : { host: [address.host], port: [address.port], path: false }),
      max: 1,
      parameters: {},
      shared: { retries: 0, typeArrayMap: {} },
      socket: () => {
        // postgres.js asks for a socket when it connects, when it does so again, which is not to
        // happen, and in the same tick as it is asked to cancel.
        if (this.#cancelling) return connect(host, cancelMs);
        if (used || socket.destroyed) throw lost("the connection ended during its start-up");
        used = true;
        return socket;
      },
      onclose: () => this.end(lost("the connection to Postgres ended")),
    } as never);
    // Postgres says nothing before postgres.js, which listens too, has greeted it.
    socket.on("data", ({ length }: Buffer) => {
      const running = this.#running;
      // As text, bytes are twice as many.
      if (running) results.count(running, running.isBinary ? length : length / 2);
    });
  }

  /**
   * Opens one, within `timeoutMs`.
   *
   * @throws ConnectionError, or the error with which Postgres refused it
   */
  static async open(
    host: Host,
    timeoutMs: number,
    stall: Pick<StallWatch, "hasStoodStillSince">,
    results: Results,
  ): Promise<Connection> {
    const deadline = performance.now() + timeoutMs;
    const socket = await connect(host, timeoutMs);
    const connection = new Connection(host, socket, stall, results);
    const timer = setTimeout(
      () => connection.end(timedOut(`Postgres did not answer within ${timeoutMs} ms`)),
      Math.max(1, deadline - performance.now()),
    );
    try {
      const [row] = await connection.send(lookAround, []);
      const [pid, readOnly, server = "", hasCitus] = row?.map(String) ?? [];
      if (hasCitus === "t") {
        const schemas = await connection.send(findDistributed, []);
        connection.distributed = schemas.map(([schema]) => quoteSchema(String(schema)));
      }
      connection.completed = 0;
      connection.backendPid = Number(pid);
      connection.isPooled = connection.#keyPid !== connection.backendPid;
      connection.isReadOnly = readOnly === "on";
      connection.server = server;
      return connection;
    } catch (error) {
      connection.end(error as Error);
      if (isOfPostgres(error) || (error as ConnectionError).code === "CONNECT_TIMEOUT") throw error;
      const { cause = error } = error as Error;
      throw failed(cause as Error);
    } finally {
      clearTimeout(timer);
    }
  }

  /** Since when a statement runs, by performance.now(); undefined while none does. */
  get runningSince(): number | undefined {
    return this.#running?.since;
  }

  /** About how much the statement brings that runs. */
  get sentBytes(): number {
    return this.#running?.bytes ?? 0;
  }

  /** How much Postgres has sent on it. */
  get bytesRead(): number {
    return this.#socket.bytesRead;
  }

  /**
   * Runs one statement. When the signal aborts it is cancelled in Postgres; if neither it nor the
   * cancel request comes back, the connection is given up. Rejects with Postgres' error, or with a
   * ConnectionError when the connection ends before Postgres said that the statement was carried
   * out: then it may have been or not.
   */
  send(text: string, parameters: readonly Parameter[], signal?: Signal): Promise<Result> {
    return new Promise((resolve, reject) => {
      if (this.ended !== undefined || signal?.aborted) {
        reject(this.ended ?? signal?.reason);
        return;
      }
      let bytes = 0;
      const wired = parameters.map((parameter) => {
        const each = toWire(parameter);
        if (typeof each === "object" || typeof each === "string") bytes += each?.length ?? 0;
        return each;
      });
      const nulls = wired.map(() => null);
      const query = this.#sql.unsafe(text, nulls, { prepare: this.#prepare }).raw();
      let timer: NodeJS.Timeout | undefined;
      let abandonedAt = 0;
      const cancel = () => {
        const waitedMs = performance.now() - abandonedAt;
        if (waitedMs >= graceMs) {
          this.end(dead("neither a statement nor its cancel request was answered"));
          return;
        }
        // Again and again, because Postgres forgets a request that overtakes its statement.
        this.#cancel(query as unknown as Cancellable);
        timer = setTimeout(cancel, Math.min(Math.max(100, waitedMs), graceMs - waitedMs));
      };
      const onAbort = () => {
        abandonedAt = performance.now();
        cancel();
      };
      const settle = () => {
        this.#running = undefined;
        this.#results.end(running);
        signal?.removeEventListener("abort", onAbort);
        clearTimeout(timer);
      };
      const fail = (error: Error) => {
        settle();
        reject(error);
      };
      const running: Running = {
        since: performance.now(),
        bytes,
        parameters: wired,
        query: query as unknown as Described,
        isBinary: false,
        fail,
        received: 0,
        // To cancel it would leave what is on its way already, of which there is too much.
        giveUp: (error) => this.end(error),
      };
      this.#running = running;
      signal?.addEventListener("abort", onAbort);
      query.then(
        (rows) => {
          // Whatever comes after its end is not Postgres' word.
          if (this.ended !== undefined) return;
          const result = rows as unknown as Result;
          if (typeof result.command !== "string") {
            this.end(
              new ConnectionError(
                "NOT_ACKNOWLEDGED",
                "Postgres did not say that the statement was carried out",
              ),
            );
            return;
          }
          settle();
          this.completed++;
          this.#keyPid ||= (query as unknown as Cancellable).state?.pid ?? 0;
          resolve(withBytes(withoutHoles(result), running.isBinary));
        },
        (error: Error) => {
          if (this.ended !== undefined) return;
          if (isOfPostgres(error)) {
            fail(error);
            // FATAL and PANIC, where the connection is over whether or not its socket is.
            if (severityOf(error) !== "ERROR") this.end(lost(error.message, error));
          } else if (isOfSocket(error)) {
            this.end(lost("the connection to Postgres broke", error));
          } else {
            // A mistake of ours, such as a parameter that cannot be sent. The connection may wait
            // for the rest of it.
            fail(error);
            this.end(lost("a statement could not be sent", error));
          }
        },
      );
    });
  }

  /** What postgres.js wants to write, with the statement's parameters and the formats of its columns. */
  #bind(messages: Uint8Array): Uint8Array[] {
    const running = this.#running;
    if (running === undefined) return [messages];
    return withBind(messages, () => {
      // Not known yet where postgres.js did not ask, or where the answer is on its way.
      const columns = running.query.statement?.columns ?? [];
      running.isBinary = columns.some(isOfBytes);
      const formats = running.isBinary ? columns.map((column) => (isOfBytes(column) ? 1 : 0)) : [];
      return { parameters: running.parameters, formats };
    });
  }

  /** Ends it at once; a statement that runs fails with the error. Idempotent. */
  end(error: Error): void {
    if (this.ended !== undefined) return;
    this.ended = error;
    this.#socket.destroy();
    this.#running?.fail(error);
    this.onEnd(this);
  }

  /** Says goodbye to Postgres and closes it; not while a statement runs. */
  async close(): Promise<void> {
    if (this.ended !== undefined) return;
    this.ended = new ConnectionError("CONNECTION_CLOSED", "the connection was closed");
    this.onEnd(this);
    await this.#sql.end({ timeout: partingMs / 1000 });
    this.#socket.destroy();
  }

  /** Asks Postgres to cancel it. Whether that helps, the statement's end tells. */
  #cancel(query: Cancellable): void {
    // Only a statement that Postgres has: cancelled earlier, postgres.js would strand it.
    if (!query.state || !query.active) return;
    // Not query.cancel(), which drops the promise of the connection it opens, so that a refused
    // one would end the process.
    this.#cancelling = true;
    query.canceller(query).catch(() => {});
    this.#cancelling = false;
  }
}

/** What postgres.js keeps of a running query; its version is pinned for this. */
interface Cancellable {
  state: { pid: number } | null;
  active: boolean;
  canceller: (query: unknown) => Promise<void>;
}

/** Also of it. */
interface Described {
  statement?: { columns?: readonly Column[] };
}
interface Column {
  type: number;
}

/** The type of bytea. */
const isOfBytes = ({ type }: Column) => type === 17;

/** Reading it also tells that the connection carries statements. */
const lookAround = `select pg_backend_pid(), current_setting('transaction_read_only'),
  pg_postmaster_start_time(), to_regclass('pg_catalog.pg_dist_partition') is not null`;

/**
 * Citus cannot plan a statement without the values of its parameters: where there are such tables, the
 * session gives up what address.ts asks for.
 */
const findDistributed = `
select n.nspname, set_config('plan_cache_mode', 'force_custom_plan', false)
from pg_catalog.pg_dist_partition d
join pg_catalog.pg_class c on c.oid = d.logicalrelid and c.relname = 'checkpoints'
join pg_catalog.pg_namespace n on n.oid = c.relnamespace
where d.partmethod = 'h'`;

const lost = (message: string, cause?: Error) =>
  new ConnectionError("CONNECTION_LOST", message, cause && { cause });
const dead = (message: string) => new ConnectionError("CONNECTION_DEAD", message);
const failed = (cause: Error) =>
  new ConnectionError("CONNECT_FAILED", `no connection to Postgres: ${cause.message}`, { cause });
const timedOut = (message: string) => new ConnectionError("CONNECT_TIMEOUT", message);

/** Connects, or rejects with a ConnectionError that tells Node's reason. */
function connect({ address, encryption }: Host, timeoutMs: number): Promise<Socket> {
  const late = () => timedOut(`no connection to Postgres within ${timeoutMs} ms`);
  return openSocket(address, encryption, timeoutMs, late).catch((error: Error) => {
    throw error instanceof ConnectionError ? error : failed(error);
  });
}

function isOfPostgres(error: unknown): error is Error & { severity?: string } {
  return (error as Error).name === "PostgresError";
}

/** PgBouncer leaves out the one that is not translated. */
function severityOf(error: { severity?: string; severity_local?: string }): string | undefined {
  return error.severity ?? error.severity_local;
}

/** Whether Node or postgres.js says that a connection could not be made or kept. */
function isOfSocket(error: unknown): boolean {
  return /^(CONN|E[A-Z]+$|ERR_(STREAM|SSL|TLS|SOCKET))/.test(
    String((error as { code?: unknown }).code),
  );
}

/** Arrays as Postgres reads them. postgres.js would have to read the catalog's types first. */
function toWire(parameter: Parameter): Wired {
  if (!Array.isArray(parameter)) return parameter as Exclude<Parameter, readonly unknown[]>;
  let text = "{";
  for (const element of parameter) {
    if (text.length > 1) text += ",";
    if (element === null) text += "NULL";
    else if (typeof element === "number") text += element;
    else text += `"${/["\\]/.test(element) ? element.replace(/["\\]/g, "\\$&") : element}"`;
  }
  return `${text}}`;
}

/**
 * postgres.js goes on counting from the rows of a statement that failed, or was cancelled, after
 * its first ones: those of the next on that connection come behind as many holes
 * (porsager/postgres#1119, #1181).
 */
function withoutHoles(rows: Result): Result {
  if (rows.length > 0 && !(0 in rows))
    rows.splice(
      0,
      (rows as Row[]).findIndex((row) => row),
    );
  return rows;
}

/**
 * Columns of bytes as the bytes they are. They come so, but from a statement that is run the first
 * time on a connection they may come as text: `\\x` and two hexadecimal digits a byte.
 */
function withBytes(rows: Result, isBinary: boolean): Result {
  if (isBinary || rows.length === 0) return rows;
  const { columns = [] } = rows as unknown as { columns?: readonly Column[] };
  for (const [i, column] of columns.entries()) {
    if (!isOfBytes(column)) continue;
    for (const row of rows as unknown as (Buffer | null)[][]) {
      const cell = row[i];
      if (cell) row[i] = Buffer.from(cell.toString("latin1", 2), "hex");
    }
  }
  return rows;
}
