import { create } from "@bufbuild/protobuf";
import {
  type ThreadCounts,
  ThreadCountsSchema,
  ThreadFilterSchema,
} from "../../gen/checkpointd/v1/thread_service_pb.js";
import type { Log } from "../log.js";
import type { RetentionRule } from "../settings/retention_rules.js";
import { add } from "../store/counts.js";
import { type Db, type DbOptions, openDb } from "../store/db.js";
import { pruneThreads } from "../store/prune.js";
import { describeCause, logLeftOut } from "./call_log.js";

/** How much longer than it worked it rests: it takes a fifth of one connection at the most. */
const restFactor = 4;

/** The retention that runs in the background. */
export interface Retention {
  /** Ends it, and a run under way after the statement that runs. */
  stop(): Promise<void>;
}

/** What retention did since the server started. */
export interface RetentionTally {
  runs: Record<"done" | "elsewhere" | "failed", number>;
  removed: ThreadCounts;
  /** Milliseconds of runs that were done. */
  ms: number;
  /** When one was last done, here or elsewhere; 0: none was. */
  doneAt: number;
}

/** Nothing yet. */
export function createRetentionTally(): RetentionTally {
  const runs = { done: 0, elsewhere: 0, failed: 0 };
  return { runs, removed: create(ThreadCountsSchema), ms: 0, doneAt: 0 };
}

/**
 * Applies the rules now and then every `intervalMs`, one replica at a time: who does not get the
 * advisory lock leaves it for this time. A run has a connection of its own, so that agents do not
 * wait for it, and says in the log what each rule removed. Errors are logged; the next run
 * tries again.
 *
 * The lock belongs to a session, so it needs a direct connection, not a transaction pooler. If
 * the connection breaks the lock is free; two runs at once would do no harm.
 */
export function startRetention(
  options: DbOptions,
  rules: readonly RetentionRule[],
  intervalMs: number,
  log: Log,
  tally: RetentionTally = createRetentionTally(),
): Retention {
  const stopping = new AbortController();
  const { signal } = stopping;
  const loop = async () => {
    while (!signal.aborted) {
      const db = openDb({ ...options, poolSize: 1 }, logLeftOut(log));
      try {
        tally.runs[(await runOnce(db, rules, log, signal, tally)) ? "done" : "elsewhere"]++;
        tally.doneAt = Date.now();
      } catch (error) {
        if (signal.aborted) continue;
        tally.runs.failed++;
        log.error({ error: describeCause(error) }, "retention failed");
      } finally {
        await db.close(signal.aborted ? 500 : 5_000);
      }
      await rest(intervalMs, signal);
    }
  };
  const ended = loop();
  return {
    async stop() {
      stopping.abort(new Error("the server stops"));
      await ended;
    },
  };
}

/** Returns whether it ran here. */
async function runOnce(
  db: Db,
  rules: readonly RetentionRule[],
  log: Log,
  signal: AbortSignal,
  tally: RetentionTally,
): Promise<boolean> {
  const [row] = await db.run(
    `select pg_try_advisory_lock(hashtextextended('checkpointd retention ' || $1, 0))`,
    [db.schema],
    signal,
  );
  if (String(row?.[0]) !== "t") {
    log.debug("retention: another replica runs it");
    return false;
  }
  const earlier: string[] = [];
  for (const rule of rules) {
    const started = performance.now();
    let worked = started;
    let threads = 0;
    let examined = 0n;
    const removed = create(ThreadCountsSchema);
    const prune = {
      filter: create(ThreadFilterSchema, { metadataFilterJson: rule.metadata ?? "" }),
      threadIds: [],
      keepLast: rule.keepLast,
      olderThanMs: rule.olderThanMs,
      dryRun: false,
      without: [...earlier],
      pause: async () => {
        await rest((performance.now() - worked) * restFactor, signal);
        worked = performance.now();
      },
    };
    for await (const message of pruneThreads(db, prune, signal)) {
      examined = message.threadsExamined;
      if (!message.removed) continue;
      threads++;
      add(removed, message.removed);
      add(tally.removed, message.removed);
    }
    const { checkpoints, blobs, writes, storedBytes } = removed;
    log.info(
      {
        rule: rule.text,
        examined: Number(examined),
        threads,
        checkpoints: Number(checkpoints),
        blobs: Number(blobs),
        writes: Number(writes),
        storedBytes: Number(storedBytes),
        ms: Math.round(performance.now() - started),
      },
      "retention",
    );
    tally.ms += performance.now() - started;
    if (rule.metadata) earlier.push(rule.metadata);
  }
  return true;
}

function rest(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    if (signal.aborted) {
      resolve();
      return;
    }
    const done = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal.addEventListener("abort", done);
  });
}
