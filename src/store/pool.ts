import { setTimeout as sleep } from "node:timers/promises";
import type { Target } from "./address.js";
import { Connection, ConnectionError } from "./connection.js";
import { Results } from "./results.js";
import type { Address } from "./socket.js";
import type { StallWatch } from "./stall.js";

/** What came of a pool's connections since it was made. */
export interface PoolHistory {
  opened: number;
  /** Tries to open one on a host that failed. */
  failed: number;
  /** Those that ended without our closing them, by the code of what ended them, or OTHER. */
  readonly lost: Record<(typeof endings)[number], number>;
  /** The host of the last that was opened, as the database URL names it; empty: none was. */
  host: string;
}

/** What may end a connection; OTHER is an answer that was too large. */
const endings = ["CONNECTION_LOST", "CONNECTION_DEAD", "NOT_ACKNOWLEDGED", "OTHER"] as const;

/** The connections to one database. Who borrows one gives it back. */
export interface Pool {
  /** Whether a connection is there that nobody uses. */
  hasIdle(): boolean;
  /** How many there are that nobody uses. */
  idle(): number;
  /** One that is there; undefined when there is none. */
  borrowIdle(): Connection | undefined;
  /**
   * One that is there, or a new one. While connections cannot be opened all who ask wait for one
   * try after the other, made after a growing pause of at most a second, and hear its error.
   */
  borrow(): Promise<Connection>;
  giveBack(connection: Connection): void;
  /**
   * Replaces all connections, those in use when they are given back, because this one turned out
   * to be no good; unless that was done since it was opened, or within the last second.
   */
  renewAfter(connection: Connection): void;
  /** What came of its connections so far. */
  readonly history: PoolHistory;
  /** See Db. */
  readonly distributed: ReadonlySet<string>;
  /** Closes all, after at most `timeoutMs` also those in use. */
  close(timeoutMs: number): Promise<void>;
}

/** Within which a connection has to be there, with one host and with each of several. */
const openMs = 10_000;
const openOneOfManyMs = 3_000;
/** The pauses between tries that fail. */
const leastPauseMs = 10;
const mostPauseMs = 1_000;
/** A server that stays read-only must not have its connections replaced with each write. */
const renewMs = 1_000;
/** The age at which a connection is replaced, so that a pooler or a name may lead elsewhere. */
const lifeMs = 45 * 60_000;
/** After which Postgres is asked whether it works on a statement at all. */
const quietMs = 5_000;
/** Within which an answer has to arrive of which Postgres says that it was given. */
const arrivalMs = 1_000;
const watchMs = 1_000;
const sweepMs = 500;
const mostLeft = 100;
/** The slowest way to Postgres on which a statement is not taken for lost. */
const leastBytesPerMs = 250;

/** Opens no connection yet. */
export function createPool(target: Target, stall: StallWatch, results = new Results()): Pool {
  const { hosts, mustWrite } = target;
  const idle: Connection[] = [];
  const lent = new Set<Connection>();
  /** Where the last connection was opened. */
  let preferred = 0;
  /** Which Postgres it led to. */
  let server = "";
  let failures = 0;
  let failedAt = Number.NEGATIVE_INFINITY;
  let pauseMs = 0;
  let attempt: Promise<void> | undefined;
  let renewedAt = Number.NEGATIVE_INFINITY;
  /** Ended connections whose process in Postgres may not have. */
  const left: Connection[] = [];
  let sweep: NodeJS.Timeout | undefined;
  let closing = false;
  const distributed = new Set<string>();
  let onAllBack = () => {};
  const history: PoolHistory = {
    opened: 0,
    failed: 0,
    lost: { CONNECTION_LOST: 0, CONNECTION_DEAD: 0, NOT_ACKNOWLEDGED: 0, OTHER: 0 },
    host: "",
  };

  const watch = setInterval(lookForDead, watchMs).unref();

  /** Several that failed side by side count once. */
  function noteFailure(since: number): void {
    if (since < failedAt) return;
    failedAt = performance.now();
    failures++;
    const longest = Math.min(mostPauseMs, leastPauseMs * 2 ** Math.min(failures, 10));
    pauseMs = longest * (0.5 + Math.random() / 2);
  }

  async function open(): Promise<Connection> {
    const began = performance.now();
    let failure: unknown;
    let isReadOnly = false;
    for (let i = 0; i < hosts.length; i++) {
      const at = (preferred + i) % hosts.length;
      try {
        const timeoutMs = hosts.length > 1 ? openOneOfManyMs : openMs;
        const connection = await Connection.open(hosts[at]!, timeoutMs, stall, results);
        if (mustWrite && connection.isReadOnly) {
          void connection.close();
          isReadOnly = true;
          continue;
        }
        preferred = at;
        // The address leads elsewhere now. Those that still lead to the old one would read there
        // what is written here.
        if (server !== "" && server !== connection.server) renew(connection.openedAt);
        server = connection.server;
        if (left.length > 0) sweepLeft();
        connection.onEnd = forget;
        history.opened++;
        history.host = toName(connection.host.address);
        distributed.clear();
        for (const schema of connection.distributed) distributed.add(schema);
        return connection;
      } catch (error) {
        history.failed++;
        failure = error;
      }
    }
    noteFailure(began);
    throw isReadOnly ? readOnly(failure) : failure;
  }

  function forget(connection: Connection): void {
    const at = idle.indexOf(connection);
    if (at >= 0) idle.splice(at, 1);
    const { code } = connection.ended as Partial<ConnectionError>;
    if (code === "CONNECTION_CLOSED") return;
    history.lost[endings.find((known) => known === code) ?? "OTHER"]++;
    // One that ends before it carried anything is no better than one that cannot be opened.
    if (connection.completed === 0) noteFailure(connection.openedAt);
    if (!connection.isPooled) {
      left.push(connection);
      sweepLeft();
    }
  }

  function borrowIdle(): Connection | undefined {
    for (;;) {
      const connection = idle.pop();
      // One from before this process stood still sends nothing more (see Connection): it would fail
      // whoever gets it, who asked later and knows nothing of that.
      if (connection && stall.hasStoodStillSince(connection.openedAt)) {
        connection.end(new ConnectionError("CONNECTION_LOST", "the server stood still"));
        continue;
      }
      if (connection) lent.add(connection);
      return connection;
    }
  }

  async function tryAfterPause(): Promise<void> {
    await sleep(Math.max(0, failedAt + pauseMs - performance.now()), undefined, { ref: false });
    if (closing) return;
    const connection = await open();
    if (closing) void connection.close();
    else idle.push(connection);
  }

  async function borrow(): Promise<Connection> {
    for (;;) {
      if (closing) {
        throw new ConnectionError("CONNECTION_CLOSED", "the connections to Postgres were closed");
      }
      const connection = borrowIdle();
      if (connection) return connection;
      if (failures === 0) {
        const opened = await open();
        lent.add(opened);
        return opened;
      }
      attempt ??= tryAfterPause().finally(() => {
        attempt = undefined;
      });
      await attempt;
    }
  }

  function giveBack(connection: Connection): void {
    lent.delete(connection);
    if (connection.completed > 0) failures = 0;
    const { ended, openedAt, lifetime } = connection;
    if (ended === undefined) {
      const isOld = openedAt < renewedAt || performance.now() > openedAt + lifeMs * lifetime;
      if (closing || isOld) void connection.close();
      else idle.push(connection);
    }
    if (lent.size === 0) onAllBack();
  }

  function renew(at: number): void {
    renewedAt = at;
    for (const connection of [...idle]) void connection.close();
  }

  function renewAfter({ openedAt }: Connection): void {
    const now = performance.now();
    if (openedAt >= renewedAt && now >= renewedAt + renewMs) renew(now);
  }

  /**
   * A connection that was cut without a word, at a firewall or by a failover, looks like one whose
   * statement takes long. Postgres knows the difference.
   */
  function lookForDead(): void {
    const now = performance.now();
    for (const connection of lent) {
      const { runningSince = now, sentBytes, isPooled, lookedAt } = connection;
      // Postgres knows nothing of a statement until all of it is there.
      const arrivedBy = runningSince + quietMs + sentBytes / leastBytesPerMs;
      if (isPooled || now < arrivedBy || now < lookedAt + quietMs) continue;
      connection.lookedAt = now;
      // What cannot be asked tells nothing.
      void endIfDead(connection, runningSince).catch(() => {});
    }
  }

  async function endIfDead(connection: Connection, since: number): Promise<void> {
    const { bytesRead } = connection;
    if (await isWorkingOn(connection)) return;
    await sleep(arrivalMs, undefined, { ref: false });
    const isSilent = () => connection.runningSince === since && connection.bytesRead === bytesRead;
    if (!isSilent()) return;
    // The statement may still be on its way. It must not arrive after it was repeated elsewhere,
    // and after what was done then: a write would come back that was deleted.
    await endBackends(connection, [connection.backendPid]);
    if (!isSilent()) return;
    connection.end(
      new ConnectionError("CONNECTION_DEAD", "Postgres does not know of a statement it was sent"),
    );
  }

  async function isWorkingOn(connection: Connection): Promise<boolean> {
    const [row] = await askBeside(
      connection,
      `select state like 'idle%' or wait_event is not distinct from 'ClientRead'
       from pg_stat_activity where pid = ${connection.backendPid}`,
    );
    if (!row) return false;
    const [isIdle] = row;
    return String(isIdle) !== "t";
  }

  /** Ends processes of the Postgres that the connection leads to. */
  function endBackends(connection: Connection, pids: readonly number[]) {
    return askBeside(
      connection,
      `select pg_terminate_backend(pid) from pg_stat_activity
       where pid in (${pids.join()}) and application_name = 'checkpointd'`,
    );
  }

  /**
   * Postgres may not know that a connection has ended, whose end a firewall or a proxy kept from
   * it. Half a statement holds its locks then, behind which a migration waits for hours and behind
   * that everybody; and a whole one may be carried out late.
   */
  function sweepLeft(): void {
    sweep ??= setTimeout(() => {
      sweep = undefined;
      const gone = left.splice(0);
      const last = gone.at(-1);
      if (closing || last === undefined) return;
      // Of a Postgres that has ended since, they have ended too.
      const pids = gone.filter(({ server: of }) => of === last.server);
      // What cannot be asked now is when a connection is opened again.
      const numbers = pids.map(({ backendPid }) => backendPid);
      endBackends(last, numbers).catch(() => left.push(...pids.slice(-mostLeft)));
    }, sweepMs).unref();
  }

  async function askBeside({ host, server }: Connection, text: string) {
    const asking = await Connection.open(host, openOneOfManyMs, stall, results);
    try {
      // The address may lead elsewhere by now, where the number is somebody else's.
      if (asking.server !== server) return [];
      return await asking.send(text, [], AbortSignal.timeout(openOneOfManyMs));
    } finally {
      void asking.close();
    }
  }

  return {
    hasIdle: () => idle.length > 0,
    idle: () => idle.length,
    borrowIdle,
    borrow,
    giveBack,
    renewAfter,
    history,
    distributed,
    async close(timeoutMs) {
      closing = true;
      clearInterval(watch);
      clearTimeout(sweep);
      const closed = [...idle].map((connection) => connection.close());
      if (lent.size > 0) {
        const allBack = new Promise<void>((resolve) => {
          onAllBack = resolve;
        });
        await Promise.race([allBack, sleep(timeoutMs)]);
      }
      for (const connection of lent) {
        connection.end(new ConnectionError("CONNECTION_CLOSED", "the pool was closed"));
      }
      await Promise.all(closed);
    },
  };
}

const toName = (address: Address) =>
  "path" in address ? address.path : `${address.host}:${address.port}`;

/** With what went wrong on other hosts, of which one may be who should take them. */
function readOnly(cause: unknown): Error {
  const message = "no host of the database URL takes writes";
  return Object.assign(new Error(message, { cause }), { code: "25006" });
}
