/** Each operation as an RPC of its own, and the streams, over any Connect transport. */
import { type CallOptions, createClient, type Transport } from "@connectrpc/connect";
import { CheckpointService } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { ThreadService } from "../../gen/checkpointd/v1/thread_service_pb.js";
import {
  type Carrier,
  NotCarried,
  type Service,
  type Streams,
  type TryContext,
} from "./carrier.js";

/** Carries every operation that is an RPC, and the streams. */
export function createUnaryCarrier(transport: Transport, headers: Headers | undefined): Service {
  const checkpoints = createClient(CheckpointService, transport);
  const threads = createClient(ThreadService, transport);
  // Without a deadline 0 also turns off one that the transport may have.
  const options = ({ deadline, signal }: Partial<TryContext>): CallOptions => ({
    timeoutMs: deadline === undefined ? 0 : Math.max(1, Math.ceil(deadline - performance.now())),
    ...(signal ? { signal } : {}),
    ...(headers ? { headers } : {}),
  });
  const notCarried = async () => {
    throw new NotCarried("no RPC: only sessions have it");
  };
  const carrier: Carrier = {
    getTuple: (request, context) => checkpoints.getTuple(request, options(context)),
    put: (request, context) => checkpoints.put(request, options(context)),
    putExtending: notCarried,
    putWrites: (request, context) => checkpoints.putWrites(request, options(context)),
    deleteThread: (request, context) => checkpoints.deleteThread(request, options(context)),
    listPage: notCarried,
    getThread: (request, context) => threads.getThread(request, options(context)),
    claimThreads: (request, context) => threads.claimThreads(request, options(context)),
    renewClaim: (request, context) => threads.renewClaim(request, options(context)),
    releaseClaim: (request, context) => threads.releaseClaim(request, options(context)),
    copyThread: (request, context) => threads.copyThread(request, options(context)),
    deleteRuns: (request, context) => threads.deleteRuns(request, options(context)),
  };
  const streams: Streams = {
    list: (request, context) =>
      untilLeft(context, (own) => checkpoints.list(request, options(own))),
    listThreads: (request, context) =>
      untilLeft(context, (own) => threads.listThreads(request, options(own))),
    getChannelHistory: (request, context) =>
      untilLeft(context, (own) => threads.getChannelHistory(request, options(own))),
    pruneThreads: (request, context) =>
      untilLeft(context, (own) => threads.pruneThreads(request, options(own))),
  };
  return { ...carrier, ...streams };
}

/** Ends the stream when its reader leaves it, of which connect's own iterables hear nothing. */
async function* untilLeft<Message>(
  context: Partial<TryContext>,
  open: (own: Partial<TryContext>) => AsyncIterable<Message>,
): AsyncGenerator<Message, void, undefined> {
  const { signal } = context;
  const controller = new AbortController();
  const onAbort = () => controller.abort(signal?.reason);
  if (signal?.aborted) onAbort();
  else signal?.addEventListener("abort", onAbort);
  const messages = open({ ...context, signal: controller.signal })[Symbol.asyncIterator]();
  try {
    yield* { [Symbol.asyncIterator]: () => messages };
  } finally {
    signal?.removeEventListener("abort", onAbort);
    controller.abort();
    // Its timer is cleared, which would keep the process alive until the deadline, when it is asked.
    messages.next().catch(() => {});
  }
}
