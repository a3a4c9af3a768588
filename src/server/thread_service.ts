import { create } from "@bufbuild/protobuf";
import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import {
  ThreadFilterSchema,
  type ThreadService,
} from "../../gen/checkpointd/v1/thread_service_pb.js";
import { channelHistory } from "../store/channel_history.js";
import { copyThread } from "../store/copy_thread.js";
import type { Db } from "../store/db.js";
import { deleteRuns } from "../store/delete_runs.js";
import { claimThreads, releaseLease, renewLease } from "../store/leases.js";
import { pruneThreads } from "../store/prune.js";
import { getThread, listThreads } from "../store/threads.js";
import { boundedSignal } from "./checkpoint_service.js";
import {
  checkClaimThreads,
  checkCopyThread,
  checkDeleteRuns,
  checkGetChannelHistory,
  checkGetThread,
  checkListThreads,
  checkPruneThreads,
  checkReleaseClaim,
  checkRenewClaim,
  toMs,
} from "./thread_checks.js";

const defaultLeaseMs = 60_000;
const defaultGraceMs = 60_000;

/**
 * What people and recovery workers need of threads. Errors rise to the interceptor.
 *
 * `callTimeoutMs` bounds a unary call whose client set no deadline; streams last as long as
 * their reader takes.
 */
export function createThreadService(
  db: Db,
  callTimeoutMs: number,
): ServiceImpl<typeof ThreadService> {
  const bounded = (context: HandlerContext) => boundedSignal(context, callTimeoutMs);
  return {
    async *listThreads(request, { signal }) {
      checkListThreads(request);
      for await (const thread of listThreads(db, request, signal)) {
        // See checkpoint_service.ts, list.
        signal.throwIfAborted();
        yield { thread };
      }
    },
    async getThread(request, context) {
      checkGetThread(request);
      const thread = await getThread(db, request, bounded(context));
      return thread ? { thread } : {};
    },
    async claimThreads(request, context) {
      checkClaimThreads(request);
      const wanted = {
        owner: request.owner,
        leaseMs: toMs(request.leaseDuration, defaultLeaseMs),
        graceMs: toMs(request.grace, defaultGraceMs),
        limit: request.limit || 1,
        filter: request.filter ?? create(ThreadFilterSchema),
        threadId: request.threadId,
      };
      return { threads: await claimThreads(db, wanted, bounded(context)) };
    },
    async renewClaim(request, context) {
      checkRenewClaim(request);
      const { threadId, leaseToken, leaseDuration } = request;
      const leaseMs = toMs(leaseDuration, defaultLeaseMs);
      return { expireTime: await renewLease(db, threadId, leaseToken, leaseMs, bounded(context)) };
    },
    async releaseClaim(request, context) {
      checkReleaseClaim(request);
      await releaseLease(db, request.threadId, request.leaseToken, bounded(context));
      return {};
    },
    async *getChannelHistory(request, { signal }) {
      checkGetChannelHistory(request);
      for await (const message of channelHistory(db, request, signal)) {
        signal.throwIfAborted();
        yield message;
      }
    },
    async copyThread(request, context) {
      checkCopyThread(request);
      const { sourceThreadId, targetThreadId } = request;
      return { copied: await copyThread(db, sourceThreadId, targetThreadId, bounded(context)) };
    },
    async deleteRuns(request, context) {
      checkDeleteRuns(request);
      return { removed: await deleteRuns(db, request.runIds, bounded(context)) };
    },
    async *pruneThreads(request, { signal }) {
      checkPruneThreads(request);
      const { filter, threadIds, strategy, olderThan, dryRun } = request;
      const keepLast = strategy.case === "keepLast" ? strategy.value : 0;
      const olderThanMs = olderThan && toMs(olderThan, 0);
      const prune = { filter, threadIds, keepLast, olderThanMs, dryRun };
      for await (const message of pruneThreads(db, prune, signal)) {
        signal.throwIfAborted();
        yield message;
      }
    },
  };
}
