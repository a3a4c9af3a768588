/** Each operation as an RPC of its own, and the streams, over any Connect transport. */
import {
  type CallOptions,
  Code,
  ConnectError,
  createClient,
  type Transport,
} from "@connectrpc/connect";
import { CheckpointService } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { ThreadService } from "../../gen/checkpointd/v1/thread_service_pb.js";
import type { TraceHeaders } from "../protocol/trace.js";
import {
  type Carrier,
  NotCarried,
  type Service,
  type Streams,
  type TryContext,
} from "./carrier.js";
import type { Credential } from "./credential.js";

/** Carries every operation that is an RPC, and the streams. */
export function createUnaryCarrier(
  transport: Transport,
  credential: Pick<Credential, "headers"> | undefined,
): Service {
  const checkpoints = createClient(CheckpointService, transport);
  const threads = createClient(ThreadService, transport);
  const options = async (context: Partial<TryContext>): Promise<CallOptions> => {
    const given = credential?.headers();
    const own = given instanceof Promise ? await within(given, context) : given;
    const { deadline, signal, span } = context;
    const headers = span ? withTrace(own, span.begin()) : own;
    return {
      // Without a deadline 0 also turns off one that the transport may have.
      timeoutMs: deadline === undefined ? 0 : Math.max(1, Math.ceil(deadline - performance.now())),
      ...(signal ? { signal } : {}),
      ...(headers ? { headers } : {}),
    };
  };
  const notCarried = async () => {
    throw new NotCarried("no RPC: only sessions have it");
  };
  const carrier: Carrier = {
    getTuple: async (request, context) => checkpoints.getTuple(request, await options(context)),
    put: async (request, context) => checkpoints.put(request, await options(context)),
    putExtending: notCarried,
    putWrites: async (request, context) => checkpoints.putWrites(request, await options(context)),
    deleteThread: async (request, context) =>
      checkpoints.deleteThread(request, await options(context)),
    listPage: notCarried,
    getThread: async (request, context) => threads.getThread(request, await options(context)),
    claimThreads: async (request, context) => threads.claimThreads(request, await options(context)),
    renewClaim: async (request, context) => threads.renewClaim(request, await options(context)),
    releaseClaim: async (request, context) => threads.releaseClaim(request, await options(context)),
    copyThread: async (request, context) => threads.copyThread(request, await options(context)),
    deleteRuns: async (request, context) => threads.deleteRuns(request, await options(context)),
  };
  const streams: Streams = {
    list: (request, context) =>
      untilLeft(context, async (own) => checkpoints.list(request, await options(own))),
    listThreads: (request, context) =>
      untilLeft(context, async (own) => threads.listThreads(request, await options(own))),
    getChannelHistory: (request, context) =>
      untilLeft(context, async (own) => threads.getChannelHistory(request, await options(own))),
    pruneThreads: (request, context) =>
      untilLeft(context, async (own) => threads.pruneThreads(request, await options(own))),
  };
  return { ...carrier, ...streams };
}

/** Ends the stream when its reader leaves it, of which connect's own iterables hear nothing. */
async function* untilLeft<Message>(
  context: Partial<TryContext>,
  open: (own: Partial<TryContext>) => Promise<AsyncIterable<Message>>,
): AsyncGenerator<Message, void, undefined> {
  const { signal } = context;
  const controller = new AbortController();
  const onAbort = () => controller.abort(signal?.reason);
  if (signal?.aborted) onAbort();
  else signal?.addEventListener("abort", onAbort);
  let messages: AsyncIterator<Message> | undefined;
  try {
    const opened = await open({ ...context, signal: controller.signal });
    const iterator = opened[Symbol.asyncIterator]();
    messages = iterator;
    yield* { [Symbol.asyncIterator]: () => iterator };
  } finally {
    signal?.removeEventListener("abort", onAbort);
    controller.abort();
    // Its timer is cleared, which would keep the process alive until the deadline, when it is asked.
    messages?.next().catch(() => {});
  }
}

/** The headers, with those of the span that the call is. */
function withTrace(own: Headers | undefined, trace: TraceHeaders | undefined): Headers | undefined {
  if (!trace) return own;
  const headers = new Headers(own);
  headers.set("traceparent", trace.traceparent);
  if (trace.tracestate !== "") headers.set("tracestate", trace.tracestate);
  return headers;
}

/** Rejects at the deadline, and when the signal aborts, whatever becomes of the headers. */
async function within(
  headers: Promise<Headers>,
  { deadline, signal }: Partial<TryContext>,
): Promise<Headers> {
  let timer: NodeJS.Timeout | undefined;
  let stop = () => {};
  const stopped = new Promise<never>((_, reject) => {
    stop = () => reject(signal?.reason);
    signal?.addEventListener("abort", stop);
    if (signal?.aborted) stop();
    if (deadline === undefined) return;
    const late = "the token function gave no token in time";
    const onLate = () => reject(new ConnectError(late, Code.DeadlineExceeded));
    timer = setTimeout(onLate, Math.max(1, deadline - performance.now()));
  });
  try {
    return await Promise.race([headers, stopped]);
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", stop);
  }
}
