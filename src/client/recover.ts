/** Resuming what was left: claims, runs, renews, releases. */
import { hostname } from "node:os";
import { setTimeout as delay } from "node:timers/promises";
import { Code, ConnectError } from "@connectrpc/connect";
import type { RunnableConfig } from "@langchain/core/runnables";
import { LEASE_TOKEN } from "./names.js";
import type { ConnectSaver } from "./saver.js";
import type { Lease, Thread, ThreadFilter } from "./threads.js";

/** What a graph compiled with the saver has: LangGraph's `invoke`. */
export interface ResumableGraph {
  invoke(input: null, config: RunnableConfig): Promise<unknown>;
}

/** Options of {@link recoverThreads}. Durations in milliseconds. */
export interface RecoverOptions extends Omit<ThreadFilter, "status"> {
  /** Who claims, for people to read. Default: the host's name and the process id. */
  owner?: string;
  /** Threads that run at once. Default 1. */
  concurrency?: number;
  /**
   * How long a lease holds without being renewed, which happens every third of it: after a crash
   * the thread is free again when it ends. Default 60000, at least 1000.
   */
  leaseMs?: number;
  /**
   * Only threads that were not updated for so long: longer than a step of the graph takes,
   * because a thread that somebody runs without a lease looks like one that was left. Default
   * 60000.
   */
  graceMs?: number;
  /** Look again after so long when nothing is left. Default: return. */
  pollMs?: number;
  /** Stops claiming; runs under way are told to stop by their config's signal. */
  signal?: AbortSignal;
  /** What every run's config has besides the thread: a recursion limit, callbacks, context. */
  config?: RunnableConfig;
  /** Called when a run has ended. */
  onRecovered?: (recovered: Recovered) => void;
}

/** How the run of one thread ended. */
export interface Recovered {
  thread: Thread;
  /**
   * `resumed`: the graph returned (it may have stopped at an interrupt). `failed`: it threw; the
   * lease is left to run out, so that the thread is not tried again at once. `lost`: the lease was
   * lost, and nothing was stored since.
   */
  outcome: "resumed" | "failed" | "lost";
  error?: unknown;
}

/** How many runs ended how. */
export interface RecoverySummary {
  resumed: number;
  failed: number;
  lost: number;
}

/**
 * Resumes the threads that were left with work to do: claims each, runs
 * `graph.invoke(null, …)`, which executes only what was not stored, renews the lease meanwhile
 * and releases it. Any number of processes may do so at once: a thread is run by one, and one
 * that lost its lease can store nothing any more. Interrupted and failed threads are left alone.
 *
 * Returns when nothing is left to claim, or with `pollMs` when `signal` aborts. Rejects when the
 * service cannot be reached.
 *
 * A graph that pauses at interruptBefore or interruptAfter must not be recovered so: the tables
 * cannot tell such a pause from a crash, and it would be run past it.
 */
export async function recoverThreads(
  saver: ConnectSaver,
  graph: ResumableGraph,
  options: RecoverOptions = {},
): Promise<RecoverySummary> {
  const { concurrency = 1, leaseMs = 60_000, pollMs, signal, onRecovered } = options;
  const { prefix, metadata, updatedAfter, updatedBefore } = options;
  const summary: RecoverySummary = { resumed: 0, failed: 0, lost: 0 };
  const running = new Set<Promise<void>>();
  try {
    while (!signal?.aborted) {
      const leases = await saver.threads.claim({
        owner: options.owner ?? `${hostname()}:${process.pid}`,
        limit: concurrency - running.size,
        leaseMs,
        ...(options.graceMs === undefined ? {} : { graceMs: options.graceMs }),
        ...(prefix === undefined ? {} : { prefix }),
        ...(metadata === undefined ? {} : { metadata }),
        ...(updatedAfter === undefined ? {} : { updatedAfter }),
        ...(updatedBefore === undefined ? {} : { updatedBefore }),
      });
      for (const lease of leases) {
        const run = runUnderLease(saver, graph, lease, leaseMs, options).then((recovered) => {
          running.delete(run);
          summary[recovered.outcome]++;
          onRecovered?.(recovered);
        });
        running.add(run);
      }
      if (running.size >= concurrency) await Promise.race(running);
      else if (leases.length > 0) continue;
      else if (running.size > 0) await Promise.race(running);
      else if (pollMs === undefined) return summary;
      else await delay(pollMs, undefined, signal ? { signal } : {}).catch(() => {});
    }
  } finally {
    await Promise.all(running);
  }
  return summary;
}

async function runUnderLease(
  saver: ConnectSaver,
  graph: ResumableGraph,
  lease: Lease,
  leaseMs: number,
  { signal, config }: RecoverOptions,
): Promise<Recovered> {
  const { thread, token } = lease;
  const lost = new AbortController();
  const ended = new AbortController();
  const unwatch = saver.threads.watch(token, (error) => lost.abort(error));
  const renewing = keep(saver, lease, leaseMs, lost, ended.signal);
  const signals = [
    lost.signal,
    ...(signal ? [signal] : []),
    ...(config?.signal ? [config.signal] : []),
  ];
  let recovered: Recovered = { thread, outcome: "resumed" };
  try {
    await graph.invoke(null, {
      ...config,
      configurable: {
        ...config?.configurable,
        thread_id: thread.threadId,
        [LEASE_TOKEN]: token,
      },
      signal: AbortSignal.any(signals),
    });
  } catch (error) {
    recovered = { thread, outcome: "failed", error };
  }
  ended.abort();
  await renewing;
  unwatch();
  if (lost.signal.aborted) return { ...recovered, outcome: "lost" };
  if (recovered.outcome === "failed" && !signal?.aborted) return recovered;
  // Not released, the lease runs out by itself.
  await saver.threads.release(thread.threadId, token).catch(() => {});
  return recovered;
}

/** Renews until `ended`; aborts `lost` when somebody else may have the thread. */
async function keep(
  saver: ConnectSaver,
  lease: Lease,
  leaseMs: number,
  lost: AbortController,
  ended: AbortSignal,
): Promise<void> {
  // By this clock and from before the request: never later than the database has it.
  let heldUntil = performance.now() + leaseMs;
  while (!ended.aborted) {
    await delay(leaseMs / 3, undefined, { signal: ended }).catch(() => {});
    if (ended.aborted) return;
    const asked = performance.now();
    try {
      await saver.threads.renew(lease.thread.threadId, lease.token, leaseMs);
      heldUntil = asked + leaseMs;
    } catch (error) {
      const isLost = error instanceof ConnectError && error.code === Code.FailedPrecondition;
      if (!isLost && performance.now() < heldUntil) continue;
      lost.abort(error);
      return;
    }
  }
}
