import { CheckpointdError } from "../errors.js";
import type { Log } from "../log.js";
import type { Db, DbOptions } from "../store/db.js";
import { type Look, lookAtTables, TableTrouble } from "../store/look.js";
import { explainTrouble } from "../store/trouble.js";
import { version } from "../version.js";
import { describeCause } from "./call_log.js";

const retryMs = 500;
const recheckMs = 5000;

/** What is measured of the database by looking at it. */
export interface ReadinessMeasures {
  isReachable: boolean;
  /** False too where it is not reached. */
  isWritable: boolean;
  /** How long the last look took, in milliseconds; undefined before the first. */
  lookMs: number | undefined;
  /** Locks of others on the tables. */
  locks: number;
  /** As {@link Look} has it, at the last look. */
  standbyLagBytes: number | undefined;
  /** As {@link Look} has it, of the last Postgres that answered; undefined before the first. */
  startedAt: number | undefined;
}

/** Watches whether the database can be used. */
export interface Readiness {
  /** Whether it could be used, for writes too, when last looked at. */
  isReady(): boolean;
  /**
   * Whether it could ever be used; from then on each call finds out for itself. Throws the
   * refusal of every call while the schema is older or newer than this version can serve.
   */
  wasReady(): boolean;
  /** What the last look found, to be told to whoever watches the server. */
  measures(): ReadinessMeasures;
  /** Resolves when the tables were brought up to date, at once when that is not asked for. */
  readonly migrated: Promise<void>;
  /** Resolves when it can be used for the first time. */
  readonly firstTime: Promise<void>;
  /** Ends the watch; the database counts as not ready from then on. */
  stop(): void;
}

/**
 * Migrates if asked to, or waits for whoever does, then looks at the tables again and again:
 * every half second until the database can be used, every five seconds while it can. What is
 * wrong is logged as a sentence, once a change. `onTooOld` is called at each look that finds the
 * tables too new: its clients have to go elsewhere, since this server cannot serve them any more.
 */
export function startReadiness(
  db: Db,
  options: DbOptions & { migrate: boolean | Promise<void>; migrationUrl?: string },
  log: Log,
  onChange: (ready: boolean) => void,
  onTooOld: () => void = () => {},
): Readiness {
  const stopping = new AbortController();
  let ready = false;
  let everReady = false;
  let refusal: (() => CheckpointdError) | undefined;
  let lastProblem = "";
  let lastMissing = 0;
  let locksSeen = new Map<string, number>();
  const told = new Set<string>();
  let resolveFirstTime: () => void;
  const firstTime = new Promise<void>((resolve) => {
    resolveFirstTime = resolve;
  });
  const measures: ReadinessMeasures = {
    isReachable: false,
    isWritable: false,
    lookMs: undefined,
    locks: 0,
    standbyLagBytes: undefined,
    startedAt: undefined,
  };
  let isMigrated = !options.migrate;
  let resolveMigrated: () => void;
  const migrated = new Promise<void>((resolve) => {
    resolveMigrated = resolve;
    if (isMigrated) resolve();
  });

  const set = (now: boolean) => {
    if (now === ready) return;
    ready = now;
    onChange(now);
  };

  const notReady = (problem: string, fields: object = {}) => {
    set(false);
    if (problem === lastProblem) return;
    lastProblem = problem;
    log.warn(fields, `not ready: ${problem}`);
  };

  const bringUpToDate = async () => {
    if (typeof options.migrate === "object") {
      await options.migrate;
    } else {
      // Only now: node-pg-migrate and what it needs are half of what a server loads.
      const { migrate } = await import("../store/migrate.js");
      await migrate({
        databaseUrl: options.migrationUrl ?? options.databaseUrl,
        schema: options.schema,
        onProgress: (line) => log.info(line),
        signal: stopping.signal,
      });
    }
    isMigrated = true;
    resolveMigrated();
  };

  const warnOnce = (sentence: string) => {
    if (!told.has(sentence)) log.warn(sentence);
    told.add(sentence);
  };

  const judge = (found: Look) => {
    const { trouble, newer, needs, missing, mayReadMigrations, hasSettings, locks } = found;
    if (!mayReadMigrations) {
      warnOnce(
        "the role may not read checkpointd_migrations: whether the schema fits this version is not checked; grant SELECT on it",
      );
    }
    // PgBouncer's ignore_startup_parameters. With max_prepared_statements it does no harm.
    if (options.prepare && !hasSettings) {
      warnOnce(
        "a pooler before the database dropped the session's setting plan_cache_mode: unless it keeps prepared statements, start with --no-prepare",
      );
    }
    // Fewer at each look: somebody is migrating.
    const isOld = missing.length > 0 && missing.length === lastMissing;
    lastMissing = missing.length;
    refusal = refusalOf({ newer, needs, missing: isOld ? missing : [] });
    if (newer.length > 0) {
      onTooOld();
      notReady(`${describeNewer(found)}; calls are refused`);
    } else if (missing.length > 0 && !isOld) {
      set(false);
    } else if (isOld) {
      notReady(
        `the tables are older than this version (without ${missing.join()}): run checkpointd migrate; calls are refused until then`,
      );
    } else if (trouble) {
      notReady(explain(trouble), { error: describeCause(trouble) });
    } else {
      lastProblem = "";
      if (!everReady) log.info({ schema: options.schema }, "database ready");
      else if (!ready) log.info("database ready again");
      everReady = true;
      set(true);
      resolveFirstTime();
    }
    // One that is there at two looks was held for seconds; it is told once.
    locksSeen = new Map(locks.map((lock) => [lock, (locksSeen.get(lock) ?? 0) + 1]));
    const held = locks.filter((lock) => locksSeen.get(lock) === 2);
    if (held.length > 0) {
      log.warn({ locks: held }, "somebody holds a lock in Postgres that makes calls wait");
    }
  };

  const look = async () => {
    let since = performance.now();
    try {
      if (!isMigrated) await bringUpToDate();
      since = performance.now();
      const signal = AbortSignal.any([stopping.signal, AbortSignal.timeout(recheckMs)]);
      const found = await lookAtTables(db, options.schema, signal);
      measures.isReachable = true;
      measures.isWritable = found.trouble?.code !== "25006";
      measures.locks = found.locks.length;
      measures.standbyLagBytes = found.standbyLagBytes;
      measures.startedAt = found.startedAt;
      measures.lookMs = performance.now() - since;
      if (!stopping.signal.aborted) judge(found);
    } catch (error) {
      if (stopping.signal.aborted || isBusy(error)) return;
      const isReadOnly = (error as { code?: unknown }).code === "25006";
      const isReachable = isReadOnly || isOfTables(error);
      const isWritable = isReachable && !isReadOnly;
      Object.assign(measures, { isReachable, isWritable, locks: 0, standbyLagBytes: undefined });
      measures.lookMs = performance.now() - since;
      notReady(explain(error), { error: describeCause(error) });
    }
  };

  const loop = async () => {
    while (!stopping.signal.aborted) {
      await look();
      await sleep(ready ? recheckMs : retryMs, stopping.signal);
    }
  };
  void loop();

  return {
    isReady: () => ready,
    wasReady() {
      if (refusal) throw refusal();
      return everReady;
    },
    measures: () => measures,
    migrated,
    firstTime,
    stop() {
      stopping.abort();
      ready = false;
    },
  };
}

/** A busy pool, or a process that stood still, says nothing about the database. */
function isBusy(error: unknown): boolean {
  const reason = error instanceof CheckpointdError && error.detail?.reason;
  return reason === "QUEUE_FULL" || reason === "QUEUE_TIMEOUT" || reason === "SERVER_STALLED";
}

/** Whether Postgres let us in, and has said this of what is there. */
function isOfTables(error: unknown): boolean {
  const { code } = error as { code?: unknown };
  return typeof code === "string" && /^(0A|3F|42|55)[0-9A-Z]{3}$/.test(code);
}

function explain(error: unknown): string {
  const { message } = error as Error;
  let sentence = explainTrouble(error) ?? `the database cannot be used: ${message}`;
  if (error instanceof TableTrouble) sentence += ` (${message})`;
  return `${sentence}; trying again every half second`;
}

/** What of a look says whether this version can serve the tables. */
type Versions = Pick<Look, "newer" | "needs" | "missing">;

/** Returns what calls on tables that this version cannot serve are refused with; undefined if it can. */
export function refusalOf({
  newer,
  needs,
  missing,
}: Versions): (() => CheckpointdError) | undefined {
  if (newer.length > 0) return () => schemaNew(needs);
  return missing.length > 0 ? schemaOld : undefined;
}

/** For the log: why tables are too new, and what to start. */
export const describeNewer = ({ newer, needs }: Versions): string =>
  `a newer version has changed the tables in a way that this one cannot serve (${newer.join()}): start ${needs === undefined ? "the newer version" : `version ${needs} or a later one, this is ${version()}`}`;

// UNAVAILABLE and not FAILED_PRECONDITION: while replicas are replaced one by one the next try
// may reach one of the other version.
const schemaNew = (needs: string | undefined) =>
  new CheckpointdError(
    "unavailable",
    `a newer version has changed the database's tables; this server is too old for them${needs === undefined ? "" : `: it is version ${version()}, and they need ${needs} or later`}`,
    { reason: "SCHEMA_NEW" },
  );
const schemaOld = () =>
  new CheckpointdError(
    "unavailable",
    "the database's tables are older than this server; run checkpointd migrate",
    { reason: "SCHEMA_OLD" },
  );

function sleep(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal.addEventListener("abort", done);
  });
}
