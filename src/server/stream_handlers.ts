import type { AnswerInit, Request, StreamName } from "../protocol/operations.js";
import { channelHistory } from "../store/channel_history.js";
import type { Db } from "../store/db.js";
import { list } from "../store/list_checkpoints.js";
import { pruneThreads } from "../store/prune.js";
import { listThreads } from "../store/read_threads.js";
import { valueBytes } from "../store/tuples.js";
import { overloaded } from "./intake.js";
import type { Caller } from "./operation_handlers.js";
import { checkList } from "./request_checks.js";
import {
  checkGetChannelHistory,
  checkListThreads,
  checkPruneThreads,
  toMs,
} from "./thread_checks.js";

/** Every RPC that streams its answers. Errors rise to who carries it. */
export type Streams = {
  readonly [Name in StreamName]: (
    request: Request<Name>,
    signal: Caller,
  ) => AsyncIterable<AnswerInit<Name>>;
};

/**
 * Each is: check the request, then read as fast as the answers are taken. Of the tuples of all lists
 * that are handed on `mostHeldBytes` may wait for their readers, whoever they are: connect-es holds
 * each three times. What is above that is OVERLOADED, and its client goes on where it was. `held`
 * counts them; tenants, which have streams of their own, share it.
 */
export function createStreams(db: Db, mostHeldBytes: number, held = { bytes: 0 }): Streams {
  return {
    async *list(request, signal) {
      checkList(request);
      for await (const tuple of list(db, request, signal)) {
        const bytes = valueBytes(tuple);
        // One alone always may.
        if (held.bytes > 0 && held.bytes + bytes > mostHeldBytes) {
          throw overloaded(
            `lists hold as many bytes of answers as they may, ${mostHeldBytes}; try again`,
            mostHeldBytes,
          );
        }
        held.bytes += bytes;
        try {
          yield { tuple };
        } finally {
          held.bytes -= bytes;
        }
      }
    },
    async *listThreads(request, signal) {
      checkListThreads(request);
      for await (const thread of listThreads(db, request, signal)) yield { thread };
    },
    async *getChannelHistory(request, signal) {
      checkGetChannelHistory(request);
      yield* channelHistory(db, request, signal);
    },
    async *pruneThreads(request, signal) {
      checkPruneThreads(request);
      const { filter, threadIds, strategy, olderThan, dryRun, afterThreadId } = request;
      const keepLast = strategy.case === "keepLast" ? strategy.value : 0;
      const olderThanMs = olderThan && toMs(olderThan, 0);
      const prune = { filter, threadIds, keepLast, olderThanMs, dryRun, afterThreadId };
      yield* pruneThreads(db, prune, signal);
    },
  };
}
