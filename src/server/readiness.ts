import { CheckpointdError } from "../errors.js";
import type { Log } from "../log.js";
import type { Db, DbOptions } from "../store/db.js";
import { describeCause } from "./call_log.js";

const retryMs = 500;
const recheckMs = 5000;

/** Watches whether the database can be used. */
export interface Readiness {
  /** Whether it could be used when last looked at. */
  isReady(): boolean;
  /** Whether it could ever be used; from then on each call finds out for itself. */
  wasReady(): boolean;
  /** Resolves when it can be used for the first time. */
  readonly firstTime: Promise<void>;
  /** Ends the watch; the database counts as not ready from then on. */
  stop(): void;
}

/**
 * Migrates if asked to, or waits for whoever does, then looks at the tables again and again:
 * every half second until the database answers, every five seconds while it does. Failures are
 * logged once a change.
 */
export function startReadiness(
  db: Db,
  options: DbOptions & { migrate: boolean | Promise<void> },
  log: Log,
  onChange: (ready: boolean) => void,
): Readiness {
  const stopping = new AbortController();
  let ready = false;
  let everReady = false;
  let migrated = !options.migrate;
  let lastProblem = "";
  let resolveFirstTime: () => void;
  const firstTime = new Promise<void>((resolve) => {
    resolveFirstTime = resolve;
  });

  const set = (now: boolean) => {
    if (now === ready) return;
    ready = now;
    onChange(now);
  };

  const look = async () => {
    try {
      if (!migrated && typeof options.migrate === "object") {
        await options.migrate;
        migrated = true;
      } else if (!migrated) {
        // Only now: node-pg-migrate and what it needs are half of what a server loads.
        const { migrate } = await import("../store/migrate.js");
        await migrate({
          databaseUrl: options.databaseUrl,
          schema: options.schema,
          onProgress: (line) => log.info(line),
          signal: stopping.signal,
        });
        migrated = true;
      }
      await db.run(
        probe(db.schema),
        [],
        AbortSignal.any([stopping.signal, AbortSignal.timeout(recheckMs)]),
      );
      lastProblem = "";
      if (stopping.signal.aborted) return;
      if (!everReady) log.info({ schema: options.schema }, "database ready");
      else if (!ready) log.info("database ready again");
      everReady = true;
      set(true);
      resolveFirstTime();
    } catch (error) {
      // A busy pool says nothing about the database.
      if (stopping.signal.aborted || error instanceof CheckpointdError) return;
      set(false);
      const problem = String((error as { code?: string }).code ?? error);
      if (problem === lastProblem) return;
      lastProblem = problem;
      const missing = problem === "42P01" || problem === "42703" || problem === "3F000";
      log.warn(
        { error: describeCause(error) },
        missing
          ? "not ready: LangGraph's tables are missing or old; run checkpointd migrate"
          : "not ready: the database cannot be used; trying again every half second",
      );
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
    wasReady: () => everReady,
    firstTime,
    stop() {
      stopping.abort();
      ready = false;
    },
  };
}

/** Reads no row; fails when a table or a column that we rely on is missing. */
const probe = (schema: string) => `
select from (select created_at from ${schema}.checkpoints) as c, ${schema}.checkpoint_blobs,
  (select task_path from ${schema}.checkpoint_writes) as w, ${schema}.checkpointd_claims
limit 0`;

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
