import { randomUUID } from "node:crypto";
import { Code, ConnectError, type Interceptor } from "@connectrpc/connect";
import { CheckpointService } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { ThreadService } from "../../gen/checkpointd/v1/thread_service_pb.js";
import { requestIdHeader } from "../protocol/wire.js";
import { type Call, callKey } from "./call.js";
import { notReady } from "./connect_error.js";

const needsDatabase = new Set([CheckpointService.typeName, ThreadService.typeName]);

/**
 * Wraps every RPC: refuses it while the database is not ready, and tells its {@link Call}, which
 * the handler has begun, what came of it.
 */
export function createInterceptor(isReady: () => boolean): Interceptor {
  return (next) => async (request) => {
    const call = request.contextValues.get(callKey) as Call;
    // The session that this call may open is known by it too.
    request.header.set(requestIdHeader, call.requestId);
    const usesDatabase = needsDatabase.has(request.service.typeName);
    const conclude = (waitMs: number, error?: unknown) => {
      // What others stream waits for changes, or for the client.
      const answer = call.conclude(usesDatabase ? waitMs : 0, error);
      answer?.metadata.set(requestIdHeader, call.requestId);
      return answer;
    };
    try {
      // What has no body, as a GET of Connect has none, was not refused with it.
      if (call.refusal !== undefined) throw call.refusal;
      if (usesDatabase && !isReady()) throw notReady();
      const response = await next(request);
      response.header.set(requestIdHeader, call.requestId);
      if (!response.stream) {
        conclude(performance.now() - call.started);
        return response;
      }
      return { ...response, message: watch(response.message, call.started, conclude) };
    } catch (error) {
      throw conclude(performance.now() - call.started, error);
    }
  };
}

/** The id of a call: the one its client gave, unless that is nothing for a log. */
export function toRequestId(given: string | string[] | undefined): string {
  return typeof given === "string" && /^[\w.:/+=@-]{1,128}$/.test(given) ? given : randomUUID();
}

/** The longest wait is the server's; how long the reader takes for a message is not in it. */
async function* watch<T>(
  messages: AsyncIterable<T>,
  started: number,
  conclude: (waitMs: number, error?: unknown) => unknown,
) {
  let asked = started;
  let longest = 0;
  const wait = () => {
    longest = Math.max(longest, performance.now() - asked);
    return longest;
  };
  let ended = false;
  try {
    for await (const message of messages) {
      wait();
      yield message;
      asked = performance.now();
    }
    ended = true;
    conclude(wait());
  } catch (error) {
    ended = true;
    throw conclude(wait(), error);
  } finally {
    // The reader went away while a message was waiting to be taken.
    if (!ended) conclude(longest, new ConnectError("the client went away", Code.Canceled));
  }
}
