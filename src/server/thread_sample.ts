import { create } from "@bufbuild/protobuf";
import {
  ThreadFilterSchema,
  ThreadOrder,
  ThreadStatus,
} from "../../gen/checkpointd/v1/thread_service_pb.js";
import type { Log } from "../log.js";
import { put, type Samples } from "../metrics/samples.js";
import type { Db } from "../store/db.js";
import { countHeldLeases } from "../store/leases.js";
import { readThreads } from "../store/read_threads.js";
import { describeCause } from "./call_log.js";

/** How the latest threads stand. */
export interface ThreadSample {
  /** Adds what the last look found; nothing before the first. */
  addTo(samples: Samples): void;
  stop(): void;
}

/** How often it is looked: not for each scrape, of which there may be many. */
const everyMs = 60_000;
/** What a look may take; a database that needs longer has other things to do. */
const limitMs = 5_000;
/** Root checkpoints walked past for each of the threads, to bound what a look costs. */
const checkpointsAThread = 4;
/** Leases counted at the most. */
const mostLeases = 10_000;

/**
 * Looks once a minute how the `most` latest threads stand, or fewer where the latest checkpoints are of
 * fewer, which one statement tells as it would somebody who lists them, and how many leases are held. It takes a turn among the long statements,
 * so it never keeps a short call waiting. Errors are logged; what was found before is told no more.
 */
export function startThreadSample(db: Db, most: number, log: Log, ms = everyMs): ThreadSample {
  const stopping = new AbortController();
  let found:
    | { statuses: Record<string, number>; leases: number; ms: number; at: number }
    | undefined;

  async function look(): Promise<void> {
    const since = performance.now();
    const signal = AbortSignal.any([stopping.signal, AbortSignal.timeout(limitMs)]);
    try {
      const { threads } = await readThreads(
        db,
        {
          filter: create(ThreadFilterSchema),
          order: ThreadOrder.NEWEST_FIRST,
          withCounts: false,
          withoutMetadata: true,
          examine: most,
          walk: checkpointsAThread * most,
          limit: most,
        },
        signal,
      );
      const statuses: Record<string, number> = {};
      for (const name of names) statuses[name] = 0;
      for (const { status } of threads) {
        const name = nameOf(status);
        if (name in statuses) statuses[name] = (statuses[name] ?? 0) + 1;
      }
      const leases = await countHeldLeases(db, mostLeases, signal);
      found = { statuses, leases, ms: performance.now() - since, at: Date.now() };
    } catch (error) {
      found = undefined;
      if (!stopping.signal.aborted) {
        log.warn({ error: describeCause(error) }, "threads could not be sampled");
      }
    }
  }

  void look();
  const timer = setInterval(() => void look(), ms).unref();
  return {
    addTo(samples) {
      if (!found) return;
      for (const [status, n] of Object.entries(found.statuses)) {
        put(samples, "sampledThreads", n, status);
      }
      put(samples, "leasesHeld", found.leases);
      put(samples, "sampleSeconds", found.ms / 1e3);
      put(samples, "sampledAt", found.at / 1e3);
    },
    stop() {
      clearInterval(timer);
      stopping.abort();
    },
  };
}

const nameOf = (status: ThreadStatus) => (ThreadStatus[status] ?? "").toLowerCase();
const names = [
  ThreadStatus.COMPLETED,
  ThreadStatus.PENDING,
  ThreadStatus.INTERRUPTED,
  ThreadStatus.FAILED,
].map(nameOf);
