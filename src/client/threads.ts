/** What there is to know and to do about threads as a whole: ThreadService from an agent. */
import type { MessageInitShape } from "@bufbuild/protobuf";
import {
  durationFromMs,
  type Timestamp,
  timestampDate,
  timestampFromDate,
} from "@bufbuild/protobuf/wkt";
import {
  type ListThreadsRequestSchema,
  type PruneThreadsRequestSchema,
  type ThreadCounts as StoredCounts,
  type Thread as StoredThread,
  type ThreadFilterSchema,
  ThreadOrder,
  ThreadStatus,
} from "../../gen/checkpointd/v1/thread_service_pb.js";
import { graphKey } from "../protocol/metadata.js";
import type { Calls } from "./calls.js";
import { checkName } from "./names.js";
import {
  checkArray,
  checkDate,
  checkFlag,
  checkInteger,
  checkLimit,
  checkMs,
  checkOptions,
  checkSignal,
  toJson,
} from "./options.js";
import { errorDetail } from "./retry.js";

/**
 * How a thread stands by what is stored of it: `pending` has work to run (it runs now, or whoever
 * ran it stopped), `interrupted` waits for an answer, `failed` has a task that ended with an
 * error. A pause at interruptBefore or interruptAfter cannot be told from a crash: pending.
 */
export type ThreadState = "completed" | "pending" | "interrupted" | "failed";

/** A thread and how it stands, by its latest root checkpoint. */
export interface Thread {
  threadId: string;
  checkpointId: string;
  /** When that checkpoint was made. */
  updatedAt: Date;
  /** The metadata's step, if it has one. */
  step: number | undefined;
  /** The metadata's source; empty if it has none. */
  source: string;
  status: ThreadState;
  /** The nodes that have not run, where the tables name them; "__pregel_tasks" for a Send. */
  pendingNodes: string[];
  /** The graph's name, if the saver that stored the checkpoint had one. */
  graph: string | undefined;
  /** Without that name. */
  metadata: Record<string, unknown>;
  /** Who holds it under a lease. */
  claim: { owner: string; expiresAt: Date } | undefined;
  /** What is stored of it, where it was asked for. */
  counts: ThreadCounts | undefined;
}

/** What is stored, or was removed or copied. Bytes are those of the values before compression. */
export interface ThreadCounts {
  checkpoints: number;
  blobs: number;
  writes: number;
  storedBytes: number;
}

/** Which threads; all conditions given must hold. */
export interface ThreadFilter {
  status?: ThreadState | readonly ThreadState[];
  /** What the thread's id begins with. */
  prefix?: string;
  /** What the metadata contains, nested objects by their keys. */
  metadata?: Record<string, unknown>;
  /** The graph's name; null: only threads that carry none. */
  graph?: string | null;
  /** Updated then or later. */
  updatedAfter?: Date;
  /** Updated earlier. */
  updatedBefore?: Date;
}

/** Options of every method of {@link Threads}. */
export interface CallOptions {
  /**
   * Gives the call up when it aborts, with its reason. What the service had begun by then may still
   * be done.
   */
  signal?: AbortSignal | undefined;
}

/** Options of {@link Threads.list}. */
export interface ListThreadsOptions extends ThreadFilter, CallOptions {
  /** The latest first (the default), or by thread id, byte by byte. */
  order?: "newest" | "id";
  limit?: number;
  /** Count what is stored of each, which reads the size of every row. */
  counts?: boolean;
}

/** Options of {@link Threads.claim}. Durations in milliseconds. */
export interface ClaimOptions extends ThreadFilter, CallOptions {
  /** Who claims, for people to read. */
  owner: string;
  /** How long the lease holds unless it is renewed, 1 s to 1 h. Default 60000. */
  leaseMs?: number;
  /** Only threads that were not updated for so long. Default 60000. */
  graceMs?: number;
  /** Threads at the most, up to 1000, of which one call gets 100. Default 1. */
  limit?: number;
  /** Only this thread, in whatever status unless `status` says otherwise, without grace. */
  threadId?: string;
  /** None of these, at most 1000. */
  except?: readonly string[];
}

/** A thread that is the caller's until the lease expires or is released. */
export interface Lease {
  thread: Thread;
  /**
   * Put it under LEASE_TOKEN into the config of what runs the thread, which then cannot store
   * anything any more once the lease is lost.
   */
  token: string;
  /** When the lease ends unless it is renewed, by the database's clock. */
  expiresAt: Date;
}

/** Options of {@link Threads.prune}: which threads, and what of them goes. */
export interface PruneOptions extends ThreadFilter, CallOptions {
  /** These threads and no filter. */
  threadIds?: readonly string[];
  /** Checkpoints that stay in each namespace, from 1. Give this or `delete`. */
  keepLast?: number;
  /** The whole thread goes. */
  delete?: true;
  /** Only checkpoints (with `delete`: threads) older than so many milliseconds. */
  olderThanMs?: number;
  /** Count what would go and remove nothing. */
  dryRun?: boolean;
}

/** What {@link Threads.prune} removed of one thread, or how far it has come. */
export interface Pruned {
  /** Absent: nothing was removed since the last. */
  threadId: string | undefined;
  removed: ThreadCounts;
  /** Threads looked at until now. */
  threadsExamined: number;
}

/** @internal What {@link Threads.watch} tells of a lease. */
export interface LeaseWatch {
  /** Something could not be stored because the lease is lost. */
  onLost: (error: unknown) => void;
  /** The checkpoint of this id was stored or, without one, what a task wrote. */
  onStored: (checkpointId: string | undefined) => void;
}

/**
 * The calls of ThreadService, with the saver's deadlines and retries. They reject with a
 * ConnectError; `errorDetail(error)` tells the field and limit. An option or argument that is not
 * allowed is a TypeError that names it, before anything is asked.
 */
export class Threads {
  readonly #calls: Calls;
  readonly #watched = new Map<string, LeaseWatch>();

  constructor(calls: Calls) {
    this.#calls = calls;
  }

  /**
   * Has `watch` told what is stored under this lease, until the returned function is called.
   *
   * @internal LangGraph does not wait for what it stores while a step runs, so a put that rejects
   * then ends the process as an unhandled rejection. Under a watched lease that is lost put and
   * putWrites resolve, with nothing stored, and `onLost` stops the run.
   */
  watch(token: string, watch: LeaseWatch): () => void {
    this.#watched.set(token, watch);
    return () => this.#watched.delete(token);
  }

  /** @internal Whether the error is the loss of a watched lease, which has been told then. */
  isLossTold(token: string, error: unknown): boolean {
    const watch = this.#watched.get(token);
    if (!watch || errorDetail(error)?.reason !== "LEASE_LOST") return false;
    watch.onLost(error);
    return true;
  }

  /** @internal Tells who watches the lease what was stored under it. */
  tellStored(token: string, checkpointId?: string): void {
    this.#watched.get(token)?.onStored(checkpointId);
  }

  /** The threads that match, each once, read as they are asked for. */
  async *list(options: ListThreadsOptions = {}): AsyncGenerator<Thread, void, undefined> {
    checkOptions("threads.list", options, listOptions);
    const { order = "newest" } = options;
    if (!Object.hasOwn(orders, order)) {
      throw new TypeError(`order must be one of ${Object.keys(orders).join(", ")}, not ${order}`);
    }
    const limit = checkLimit(options.limit);
    const request: MessageInitShape<typeof ListThreadsRequestSchema> = {
      filter: toFilter(options),
      order: orders[order],
      withCounts: checkFlag("counts", options.counts),
      ...(limit === undefined ? {} : { limit }),
    };
    if (request.limit === 0) return;
    const stream = this.#calls.stream(
      (service, context) => service.listThreads(request, context),
      ({ thread }) => {
        if (!thread) return;
        const { threadId, updateTime } = thread;
        request.after = { threadId, ...(updateTime ? { updateTime } : {}) };
        if (request.limit !== undefined) request.limit--;
      },
      checkSignal("signal", options.signal),
    );
    for await (const { thread } of stream) {
      if (thread) yield fromThread(thread);
      if (request.limit === 0) return;
    }
  }

  /** One thread; undefined if there is none. */
  async get(
    threadId: string,
    options: CallOptions & { counts?: boolean } = {},
  ): Promise<Thread | undefined> {
    checkOptions("threads.get", options, { counts: true, ...callOptions });
    const request = {
      threadId: checkName("threadId", threadId),
      withCounts: checkFlag("counts", options.counts),
    };
    const { thread } = await this.#calls.call(
      (service, context) => service.getThread(request, context),
      { signal: checkSignal("signal", options.signal) },
    );
    return thread && fromThread(thread);
  }

  /**
   * Takes leases on threads that match and are free, pending ones unless the options say
   * otherwise, newest first. Each thread goes to one of any number of callers. Repeated only where
   * the service certainly did not begin it (no connection was made, or it refused): what a lost
   * answer had claimed is free again when its lease expires.
   */
  async claim(options: ClaimOptions): Promise<Lease[]> {
    checkOptions("threads.claim", options, claimOptions);
    const { owner, limit = 1, threadId = "", except = [] } = options;
    const leaseMs = checkMs("leaseMs", options.leaseMs);
    const graceMs = checkMs("graceMs", options.graceMs);
    const request = {
      owner: checkName("owner", owner),
      limit: checkInteger("limit", limit, 0),
      threadId: checkName("threadId", threadId),
      exceptThreadIds: checkNames("except", except),
      filter: toFilter(options),
      ...(leaseMs === undefined ? {} : { leaseDuration: durationFromMs(leaseMs) }),
      ...(graceMs === undefined ? {} : { grace: durationFromMs(graceMs) }),
    };
    const { threads } = await this.#calls.call(
      (service, context) => service.claimThreads(request, context),
      { idempotent: false, signal: checkSignal("signal", options.signal) },
    );
    return threads.flatMap(({ thread, leaseToken, expireTime }) =>
      thread && expireTime
        ? [{ thread: fromThread(thread), token: leaseToken, expiresAt: timestampDate(expireTime) }]
        : [],
    );
  }

  /**
   * Prolongs a lease from now on and resolves with its new end. Rejects with FailedPrecondition
   * (LEASE_LOST) if it is not held any more.
   */
  async renew(
    threadId: string,
    token: string,
    leaseMs?: number,
    options: CallOptions = {},
  ): Promise<Date> {
    checkOptions("threads.renew", options, callOptions);
    const request = {
      threadId: checkName("threadId", threadId),
      leaseToken: checkName("token", token),
      ...(checkMs("leaseMs", leaseMs) === undefined
        ? {}
        : { leaseDuration: durationFromMs(leaseMs as number) }),
    };
    const { expireTime } = await this.#calls.call(
      (service, context) => service.renewClaim(request, context),
      { signal: checkSignal("signal", options.signal) },
    );
    return toDate(expireTime);
  }

  /** Ends a lease; nothing happens if it is not held any more, or is somebody else's. */
  async release(threadId: string, token: string, options: CallOptions = {}): Promise<void> {
    checkOptions("threads.release", options, callOptions);
    const request = {
      threadId: checkName("threadId", threadId),
      leaseToken: checkName("token", token),
    };
    await this.#calls.call((service, context) => service.releaseClaim(request, context), {
      signal: checkSignal("signal", options.signal),
    });
  }

  /**
   * Copies everything of a thread under another name, all or nothing. Rejects with
   * FailedPrecondition (TARGET_NOT_EMPTY) if anything is stored there, which a second call would
   * meet too: it is repeated only where the service certainly did not begin it. A source that does
   * not exist is copied as nothing.
   */
  async copy(source: string, target: string, options: CallOptions = {}): Promise<ThreadCounts> {
    checkOptions("threads.copy", options, callOptions);
    const request = {
      sourceThreadId: checkName("source", source),
      targetThreadId: checkName("target", target),
    };
    const { copied } = await this.#calls.call(
      (service, context) => service.copyThread(request, context),
      { idempotent: false, signal: checkSignal("signal", options.signal) },
    );
    return fromCounts(copied);
  }

  /**
   * Deletes the checkpoints whose metadata has one of these as `run_id`, in all threads. Rejects
   * with FailedPrecondition (STILL_NEEDED), and deletes nothing, if a checkpoint of another run
   * rebuilds a delta channel from one of them.
   */
  async deleteRuns(runIds: readonly string[], options: CallOptions = {}): Promise<ThreadCounts> {
    checkOptions("threads.deleteRuns", options, callOptions);
    const request = { runIds: checkNames("runIds", runIds) };
    const { removed } = await this.#calls.call(
      (service, context) => service.deleteRuns(request, context),
      { signal: checkSignal("signal", options.signal) },
    );
    return fromCounts(removed);
  }

  /**
   * Removes what the options let go, and tells of each thread that lost something, in the order of
   * their ids, each once. Nothing that a remaining checkpoint needs is removed. Leaving the loop early
   * stops it: what is removed by then stays removed.
   */
  async *prune(options: PruneOptions): AsyncGenerator<Pruned, void, undefined> {
    checkOptions("threads.prune", options, pruneOptions);
    const { threadIds = [], keepLast } = options;
    const olderThanMs = checkMs("olderThanMs", options.olderThanMs);
    const isWhole = checkFlag("delete", options.delete);
    const filter = toFilter(options);
    const request: MessageInitShape<typeof PruneThreadsRequestSchema> = {
      threadIds: checkNames("threadIds", threadIds),
      dryRun: checkFlag("dryRun", options.dryRun),
      ...(Object.keys(filter).length > 0 ? { filter } : {}),
      ...(olderThanMs === undefined ? {} : { olderThan: durationFromMs(olderThanMs) }),
      strategy:
        keepLast !== undefined
          ? { case: "keepLast", value: checkInteger("keepLast", keepLast, 0) }
          : isWhole
            ? { case: "delete", value: true }
            : { case: undefined },
    };
    if (keepLast !== undefined && isWhole) {
      throw new TypeError("prune: give keepLast or delete, not both");
    }
    // Of the calls that were cut off, until the last thread that they told.
    let examinedBefore = 0;
    let examined = 0;
    const stream = this.#calls.stream(
      (service, context) => {
        examinedBefore = examined;
        return service.pruneThreads(request, context);
      },
      ({ threadId, threadsExamined }) => {
        if (!threadId) return;
        request.afterThreadId = threadId;
        examined = examinedBefore + Number(threadsExamined);
      },
      checkSignal("signal", options.signal),
    );
    for await (const { threadId, removed, threadsExamined } of stream) {
      yield {
        threadId: threadId || undefined,
        removed: fromCounts(removed),
        threadsExamined: examinedBefore + Number(threadsExamined),
      };
    }
  }
}

const states: Record<ThreadState, ThreadStatus> = {
  completed: ThreadStatus.COMPLETED,
  pending: ThreadStatus.PENDING,
  interrupted: ThreadStatus.INTERRUPTED,
  failed: ThreadStatus.FAILED,
};

const orders = { newest: ThreadOrder.NEWEST_FIRST, id: ThreadOrder.BY_ID };

const callOptions: Record<keyof CallOptions, true> = { signal: true };

const filterOptions: Record<keyof ThreadFilter, true> = {
  status: true,
  prefix: true,
  metadata: true,
  graph: true,
  updatedAfter: true,
  updatedBefore: true,
};

const listOptions: Record<keyof ListThreadsOptions, true> = {
  ...filterOptions,
  ...callOptions,
  order: true,
  limit: true,
  counts: true,
};

const claimOptions: Record<keyof ClaimOptions, true> = {
  ...filterOptions,
  ...callOptions,
  owner: true,
  leaseMs: true,
  graceMs: true,
  limit: true,
  threadId: true,
  except: true,
};

const pruneOptions: Record<keyof PruneOptions, true> = {
  ...filterOptions,
  ...callOptions,
  threadIds: true,
  keepLast: true,
  delete: true,
  olderThanMs: true,
  dryRun: true,
};

function checkNames(name: string, values: readonly string[]): string[] {
  return checkArray(name, values).map((value, i) => checkName(`${name}[${i}]`, value));
}

function toFilter(filter: ThreadFilter): MessageInitShape<typeof ThreadFilterSchema> {
  const { status, prefix, metadata, graph } = filter;
  const updatedAfter = checkDate("updatedAfter", filter.updatedAfter);
  const updatedBefore = checkDate("updatedBefore", filter.updatedBefore);
  const wanted =
    status === undefined
      ? []
      : typeof status === "string"
        ? [status]
        : checkArray("status", status);
  return {
    ...(wanted.length > 0 ? { statuses: wanted.map(toStatus) } : {}),
    ...(prefix ? { threadIdPrefix: checkName("prefix", prefix) } : {}),
    ...(metadata ? { metadataFilterJson: toJson("metadata", metadata) } : {}),
    ...(graph === undefined ? {} : { graph: graph ?? "" }),
    ...(updatedAfter ? { updatedAfter: timestampFromDate(updatedAfter) } : {}),
    ...(updatedBefore ? { updatedBefore: timestampFromDate(updatedBefore) } : {}),
  };
}

function toStatus(state: ThreadState): ThreadStatus {
  const status = states[state];
  if (status !== undefined) return status;
  throw new TypeError(`status must be one of ${Object.keys(states).join(", ")}, not ${state}`);
}

function fromThread(thread: StoredThread): Thread {
  const { claim, counts } = thread;
  const { [graphKey]: graph, ...metadata } = JSON.parse(thread.metadataJson || "{}");
  const state = Object.entries(states).find(([, status]) => status === thread.status)?.[0];
  return {
    threadId: thread.threadId,
    checkpointId: thread.checkpointId,
    updatedAt: toDate(thread.updateTime),
    step: thread.step,
    source: thread.source,
    status: (state ?? "pending") as ThreadState,
    pendingNodes: thread.pendingNodes,
    graph: typeof graph === "string" ? graph : undefined,
    metadata,
    claim: claim && { owner: claim.owner, expiresAt: toDate(claim.expireTime) },
    counts: counts && fromCounts(counts),
  };
}

function fromCounts(counts: StoredCounts | undefined): ThreadCounts {
  return {
    checkpoints: Number(counts?.checkpoints ?? 0),
    blobs: Number(counts?.blobs ?? 0),
    writes: Number(counts?.writes ?? 0),
    storedBytes: Number(counts?.storedBytes ?? 0),
  };
}

function toDate(time: Timestamp | undefined): Date {
  return time ? timestampDate(time) : new Date(0);
}
