import type { HandlerContext, ServiceImpl } from "@connectrpc/connect";
import type { CheckpointService } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import type { ThreadService } from "../../gen/checkpointd/v1/thread_service_pb.js";
import type { AnswerInit, OperationName, Request, StreamName } from "../protocol/operations.js";
import { type Call, type Calls, callKey } from "./call.js";
import { overloaded } from "./intake.js";
import { mostUnaryMs } from "./limits.js";
import type { Operations } from "./operation_handlers.js";
import type { Streams } from "./stream_handlers.js";

/** The services, as a Connect router takes them. */
export interface Services {
  checkpoints: ServiceImpl<typeof CheckpointService>;
  threads: ServiceImpl<typeof ThreadService>;
}

/**
 * Serves the operations and streams as RPCs. Errors rise to the interceptor.
 *
 * `callTimeoutMs` bounds the work for a unary call whose client set no deadline, and ten minutes that
 * of every other, if it is not more. A stream lasts as long as its reader takes, but no longer than a
 * day: what it has to say comes sooner, and a client that broke goes on where it was. What it holds
 * meanwhile, a page, is why only `mostStreams` are open at a time.
 */
export function createServices(
  operations: Operations,
  streams: Streams,
  calls: Calls,
  callTimeoutMs: number,
  mostStreams: number,
  open: { answers: number },
): Services {
  const unary =
    <Name extends OperationName>(name: Name) =>
    (request: Request<Name>, context: HandlerContext): Promise<AnswerInit<Name>> => {
      const call = follow(context);
      const most = Math.max(callTimeoutMs, mostUnaryMs);
      const asked = context.timeoutMs();
      if (asked === undefined) calls.bound(call, callTimeoutMs);
      else if (asked > most) calls.bound(call, most);
      return operations[name](request, call);
    };
  const stream = <Name extends StreamName>(name: Name) =>
    async function* (
      request: Request<Name>,
      context: HandlerContext,
    ): AsyncGenerator<AnswerInit<Name>> {
      const call = follow(context);
      if (open.answers >= mostStreams) {
        throw overloaded(
          `${mostStreams} streamed answers are open, as many as may be; try again`,
          mostStreams,
        );
      }
      open.answers++;
      calls.bound(call, mostStreamMs);
      try {
        // The loop of a handler is not stopped by a client that goes away
        // (connectrpc/connect-es#1217); the call's abort stops it at the next message.
        for await (const message of streams[name](request, call)) {
          call.throwIfAborted();
          yield message;
        }
      } finally {
        open.answers--;
      }
    };
  return {
    checkpoints: {
      getTuple: unary("getTuple"),
      put: unary("put"),
      putWrites: unary("putWrites"),
      list: stream("list"),
      deleteThread: unary("deleteThread"),
    },
    threads: {
      listThreads: stream("listThreads"),
      getThread: unary("getThread"),
      claimThreads: unary("claimThreads"),
      renewClaim: unary("renewClaim"),
      releaseClaim: unary("releaseClaim"),
      getChannelHistory: stream("getChannelHistory"),
      copyThread: unary("copyThread"),
      deleteRuns: unary("deleteRuns"),
      pruneThreads: stream("pruneThreads"),
    },
  };
}

/** How long they may last, whatever their client asks for. */
const mostStreamMs = 24 * 60 * 60_000;

/** The handler's call, which from now on aborts with the RPC: at the client's deadline, at a drain. */
function follow({ values, signal }: HandlerContext): Call {
  const call = values.get(callKey) as Call;
  if (signal.aborted) call.abort(signal.reason);
  else signal.addEventListener("abort", () => call.abort(signal.reason), { once: true });
  return call;
}
