import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import type { CheckpointService } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import type { Db } from "../store/db.js";
import { list } from "../store/list.js";
import { checkList } from "./checks.js";
import type { Operations } from "./operations.js";

/** The call's signal, which also aborts after `callTimeoutMs` if the client set no deadline. */
export function boundedSignal(context: HandlerContext, callTimeoutMs: number): AbortSignal {
  return context.timeoutMs() === undefined
    ? AbortSignal.any([context.signal, AbortSignal.timeout(callTimeoutMs)])
    : context.signal;
}

/**
 * The five RPCs. Errors rise to the interceptor.
 *
 * `callTimeoutMs` bounds the work for a unary call whose client set no deadline. A List has
 * no such bound: it lasts as long as its reader takes, and holds nothing meanwhile.
 */
export function createCheckpointService(
  db: Db,
  operations: Operations,
  callTimeoutMs: number,
): ServiceImpl<typeof CheckpointService> {
  const bounded = (context: HandlerContext) => boundedSignal(context, callTimeoutMs);
  return {
    getTuple: (request, context) => operations.getTuple(request, bounded(context)),
    put: (request, context) => operations.put(request, bounded(context)),
    putWrites: (request, context) => operations.putWrites(request, bounded(context)),
    deleteThread: (request, context) => operations.deleteThread(request, bounded(context)),
    async *list(request, context) {
      checkList(request);
      // The loop of a handler is not stopped by a client that goes away
      // (connectrpc/connect-es#1217); the signal stops it at the next page.
      for await (const tuple of list(db, request, context.signal)) {
        context.signal.throwIfAborted();
        yield { tuple };
      }
    },
  };
}
