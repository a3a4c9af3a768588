/** Resuming what was left: claims, looks whether it is the graph's, runs, renews, releases. */
import { hostname } from "node:os";
import { setTimeout as delay } from "node:timers/promises";
import { Code, ConnectError } from "@connectrpc/connect";
import type { RunnableConfig } from "@langchain/core/runnables";
import { findForeign } from "./foreign_threads.js";
import { LEASE_TOKEN } from "./names.js";
import { createPauses } from "./pauses.js";
import type { ConnectSaver } from "./saver.js";
import type { Lease, Thread, ThreadFilter } from "./threads.js";

/** What a graph compiled with the saver has: LangGraph's `invoke`, and what it is made of. */
export interface ResumableGraph {
  invoke(input: null, config: RunnableConfig): Promise<unknown>;
  /** Its nodes and channels by their names. */
  nodes?: object;
  channels?: object;
  /** The saver it was compiled with. */
  checkpointer?: unknown;
}

/** Options of {@link recoverThreads}. Durations in milliseconds. */
export interface RecoverOptions extends Omit<ThreadFilter, "status" | "graph"> {
  /**
   * Also threads that carry no graph's name: those that savers without one left, or LangGraph's own,
   * if all that the thread's checkpoint names is the graph's. What is resumed carries the name from
   * then on. Default false; true where the saver has no name itself.
   */
  unnamed?: boolean;
  /** Who claims, for people to read. Default: the host's name and the process id. */
  owner?: string;
  /** Threads that run at once. Default 1. */
  concurrency?: number;
  /**
   * How long a lease holds without being renewed, which happens every third of it: after a crash
   * the thread is free again when it ends. Default 60000, 1000 to 3600000. A thread that was skipped or
   * did not move is let alone for so long, and twice as long each time it happens again, up to an
   * hour.
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
  /** Called when a thread was not run because it is not the graph's: the reason says what is not. */
  onSkipped?: (thread: Thread, reason: Error) => void;
}

/** How the run of one thread ended. */
export interface Recovered {
  thread: Thread;
  /**
   * - `resumed`: the graph returned, and the thread has moved (maybe to an interrupt).
   * - `failed`: the graph threw.
   * - `stuck`: the graph returned, and the thread stands where it stood: the same latest checkpoint,
   *   and nothing that a task wrote since.
   * - `lost`: the lease was lost, and nothing was stored since.
   *
   * A thread that failed or is stuck stays under its lease until that runs out, so that no worker
   * tries it at once.
   */
  outcome: "resumed" | "failed" | "stuck" | "lost";
  error?: unknown;
}

/** How many runs ended how, and how many times a thread was skipped. */
export interface RecoverySummary {
  resumed: number;
  failed: number;
  stuck: number;
  lost: number;
  skipped: number;
}

/**
 * Resumes the threads that were left with work to do: claims each, runs
 * `graph.invoke(null, …)`, which executes only what was not stored, renews the lease meanwhile
 * and releases it. Any number of processes may do so at once: a thread is run by one, and one
 * that lost its lease can store nothing any more. Interrupted and failed threads are left alone.
 *
 * Takes only threads of its graph: those that carry the saver's name ({@link ConnectSaver.graph}), and
 * of them only such as wait for nodes that the graph has. Give the savers of every graph in a database
 * a name. A saver without one takes threads without one, if everything that their checkpoint names
 * (nodes that have run or wait, channels, an input that waits) is the graph's: that keeps another
 * application's threads out unless its names are the same, as those of two small chat graphs may be.
 *
 * A thread that was run and did not move, and one that was skipped, are not tried again before
 * `leaseMs`, twice as long each time; they are remembered, 1000 at the most, by this call and no
 * longer. With so many of them nothing more is claimed until the first may be tried again.
 *
 * Returns when nothing is left to claim, or with `pollMs` when `signal` aborts. Rejects when the
 * service cannot be reached, and with a TypeError when the graph was compiled with a saver of another
 * name, or when neither a name nor the graph's nodes tell which threads are its.
 *
 * A graph that pauses at interruptBefore or interruptAfter must not be recovered so: the tables
 * cannot tell such a pause from a crash, and it would be run past it.
 */
export async function recoverThreads(
  saver: ConnectSaver,
  graph: ResumableGraph,
  options: RecoverOptions = {},
): Promise<RecoverySummary> {
  checkGraph(saver, graph);
  const { concurrency = 1, leaseMs = 60_000, pollMs, signal } = options;
  const { unnamed = saver.graph === undefined } = options;
  const summary: RecoverySummary = { resumed: 0, failed: 0, stuck: 0, skipped: 0, lost: 0 };
  const running = new Set<Promise<void>>();
  // Of those that run: a thread is free at the service before this call has counted how it ended.
  const underWay = new Set<string>();
  const pauses = createPauses(leaseMs);

  /** What is free and not let alone; named threads first. */
  const claim = async (limit: number): Promise<Lease[]> => {
    const except = [...new Set([...pauses.threads(), ...underWay])];
    if (except.length >= mostExcepted) return [];
    const claimed: Lease[] = [];
    for (const name of [saver.graph, ...(unnamed ? [null] : [])]) {
      if (name === undefined || claimed.length >= limit) continue;
      const wanted = toClaim(options, leaseMs, limit - claimed.length);
      claimed.push(...(await saver.threads.claim({ ...wanted, graph: name, except })));
    }
    const excepted = new Set(except);
    const isWanted = ({ thread }: Lease) =>
      !excepted.has(thread.threadId) &&
      (thread.graph === undefined ? unnamed : thread.graph === saver.graph);
    // A server that is older than the two conditions takes no notice of them.
    for (const lease of claimed) if (!isWanted(lease)) await release(saver, lease);
    return claimed.filter(isWanted);
  };

  try {
    while (!signal?.aborted) {
      const leases = await claim(concurrency - running.size);
      for (const lease of leases) {
        const { threadId } = lease.thread;
        underWay.add(threadId);
        const run = recover(saver, graph, lease, leaseMs, options).then(({ done, hasMoved }) => {
          running.delete(run);
          underWay.delete(threadId);
          if (hasMoved) pauses.forget(threadId);
          else pauses.pause(threadId);
          if (done instanceof Error) {
            summary.skipped++;
            options.onSkipped?.(lease.thread, done);
          } else {
            summary[done.outcome]++;
            options.onRecovered?.(done);
          }
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

/** Threads that a claim can be told to leave out. */
const mostExcepted = 1_000;

function checkGraph(saver: ConnectSaver, { nodes, channels, checkpointer }: ResumableGraph): void {
  if (saver.graph === undefined && !(nodes && channels)) {
    throw new TypeError(
      "recoverThreads cannot tell which threads are this graph's: give the saver the option graph, " +
        "a name, or recover with a compiled graph",
    );
  }
  const own = (checkpointer as Partial<ConnectSaver> | undefined)?.graph;
  if (own !== undefined && own !== saver.graph) {
    throw new TypeError(
      `the graph was compiled with a saver of ${JSON.stringify(own)}, and threads of ` +
        `${JSON.stringify(saver.graph ?? "no name")} are to be recovered: use the same saver for both`,
    );
  }
}

function toClaim(options: RecoverOptions, leaseMs: number, limit: number) {
  const { graceMs, prefix, metadata, updatedAfter, updatedBefore } = options;
  return {
    owner: options.owner ?? `${hostname()}:${process.pid}`,
    limit,
    leaseMs,
    ...(graceMs === undefined ? {} : { graceMs }),
    ...(prefix === undefined ? {} : { prefix }),
    ...(metadata === undefined ? {} : { metadata }),
    ...(updatedAfter === undefined ? {} : { updatedAfter }),
    ...(updatedBefore === undefined ? {} : { updatedBefore }),
  };
}

/** A lease that cannot be released runs out by itself. */
const release = (saver: ConnectSaver, { thread, token }: Lease) =>
  saver.threads.release(thread.threadId, token).catch(() => {});

/** How the run ended, or why there was none; and whether the thread has moved. */
async function recover(
  saver: ConnectSaver,
  graph: ResumableGraph,
  lease: Lease,
  leaseMs: number,
  options: RecoverOptions,
): Promise<{ done: Recovered | Error; hasMoved: boolean }> {
  const { thread, token } = lease;
  const lost = new AbortController();
  const ended = new AbortController();
  let hasMoved = false;
  const unwatch = saver.threads.watch(token, {
    onLost: (error) => lost.abort(error),
    onStored(checkpointId) {
      if (checkpointId !== thread.checkpointId) hasMoved = true;
    },
  });
  const renewing = keep(saver, lease, leaseMs, lost, ended.signal);
  let done: Recovered | Error = { thread, outcome: "resumed" };
  try {
    const foreign = await findForeign(saver, graph, thread);
    if (foreign) done = foreign;
    else await run(graph, lease, lost.signal, options);
  } catch (error) {
    done = { thread, outcome: "failed", error };
  }
  ended.abort();
  await renewing;
  unwatch();
  if (done instanceof Error) {
    // Free at once: another version of the graph may have what this one lacks.
    await release(saver, lease);
    return { done, hasMoved: false };
  }
  if (lost.signal.aborted) return { done: { ...done, outcome: "lost" }, hasMoved: true };
  if (options.signal?.aborted) {
    await release(saver, lease);
    return { done, hasMoved };
  }
  hasMoved ||= await standsElsewhere(saver, thread);
  if (done.outcome === "failed") return { done, hasMoved };
  if (!hasMoved) return { done: { thread, outcome: "stuck" }, hasMoved };
  await release(saver, lease);
  return { done, hasMoved };
}

function run(
  graph: ResumableGraph,
  { thread, token }: Lease,
  lost: AbortSignal,
  { signal, config }: RecoverOptions,
): Promise<unknown> {
  const signals = [lost, ...(signal ? [signal] : []), ...(config?.signal ? [config.signal] : [])];
  return graph.invoke(null, {
    ...config,
    configurable: {
      ...config?.configurable,
      thread_id: thread.threadId,
      [LEASE_TOKEN]: token,
    },
    signal: AbortSignal.any(signals),
  });
}

/** Whether the thread has another checkpoint or status by now: also what other savers stored counts. */
async function standsElsewhere(saver: ConnectSaver, before: Thread): Promise<boolean> {
  try {
    const now = await saver.threads.get(before.threadId);
    return now?.checkpointId !== before.checkpointId || now.status !== before.status;
  } catch {
    // The next claim will say that the service cannot be reached.
    return false;
  }
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
