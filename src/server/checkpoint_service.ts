import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import type { CheckpointService } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import type { Db } from "../store/db.js";
import { deleteThread } from "../store/delete_thread.js";
import { list } from "../store/list.js";
import { createPut } from "../store/put.js";
import { createPutWrites } from "../store/put_writes.js";
import { createGetTuple } from "../store/read.js";
import { checkDeleteThread, checkGetTuple, checkList, checkPut, checkPutWrites } from "./checks.js";

/**
 * The five RPCs. Each is: check the request, run it, answer. Errors rise to the interceptor.
 *
 * `callTimeoutMs` bounds the work for a unary call whose client set no deadline. A List has
 * no such bound: it lasts as long as its reader takes, and holds nothing meanwhile.
 */
export function createCheckpointService(
  db: Db,
  callTimeoutMs: number,
): ServiceImpl<typeof CheckpointService> {
  const getTuple = createGetTuple(db);
  const put = createPut(db);
  const putWrites = createPutWrites(db);
  const bounded = (context: HandlerContext) =>
    context.timeoutMs() === undefined
      ? AbortSignal.any([context.signal, AbortSignal.timeout(callTimeoutMs)])
      : context.signal;
  return {
    async getTuple(request, context) {
      checkGetTuple(request);
      const tuple = await getTuple(request, bounded(context));
      return tuple ? { tuple } : {};
    },
    async put(request, context) {
      checkPut(request);
      await put(request, bounded(context));
      return {};
    },
    async putWrites(request, context) {
      checkPutWrites(request);
      await putWrites(request, bounded(context));
      return {};
    },
    async *list(request, context) {
      checkList(request);
      // The loop of a handler is not stopped by a client that goes away
      // (connectrpc/connect-es#1217); the signal stops it at the next page.
      for await (const tuple of list(db, request, context.signal)) {
        context.signal.throwIfAborted();
        yield { tuple };
      }
    },
    async deleteThread(request, context) {
      checkDeleteThread(request);
      await deleteThread(db, request.threadId, bounded(context));
      return {};
    },
  };
}
