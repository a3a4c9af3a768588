import { randomUUID } from "node:crypto";
import { toBinary } from "@bufbuild/protobuf";
import { type Duration, DurationSchema, durationFromMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError, type Interceptor } from "@connectrpc/connect";
import { ErrorDetailSchema } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import { CheckpointService } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { ThreadService } from "../../gen/checkpointd/v1/thread_service_pb.js";
import { CheckpointdError, type ErrorCode } from "../errors.js";
import type { Signal } from "../store/db.js";
import type { CallLog } from "./call_log.js";
import { retryDelayMs, toTold } from "./error_table.js";

/** The header that carries a call's id, taken from the client or made here. */
export const requestIdHeader = "x-request-id";
/** The header that says when a retry is worth it, in whole seconds. */
export const retryAfterHeader = "retry-after";

const needsDatabase = new Set([CheckpointService.typeName, ThreadService.typeName]);

/**
 * Wraps every call: gives it an id, refuses it while the database is not ready, turns errors
 * into answers and writes one line to the log. No payload and no name of a thread is logged.
 */
export function createInterceptor(logCall: CallLog, isReady: () => boolean): Interceptor {
  return (next) => async (request) => {
    const started = performance.now();
    const requestId = toRequestId(request.header.get(requestIdHeader));
    // The session that this call may open is known by it too.
    request.header.set(requestIdHeader, requestId);
    const rpc = `${request.service.typeName}/${request.method.name}`;
    const usesDatabase = needsDatabase.has(request.service.typeName);
    const finish = (waitMs: number, error?: unknown) => {
      const answer = error === undefined ? undefined : toConnectError(error, request.signal);
      answer?.metadata.set(requestIdHeader, requestId);
      // What others stream waits for changes, or for the client.
      logCall({ requestId, rpc, started, waitMs: usesDatabase ? waitMs : 0, answer, error });
      return answer;
    };
    try {
      if (usesDatabase && !isReady()) throw notReady();
      const response = await next(request);
      response.header.set(requestIdHeader, requestId);
      if (!response.stream) {
        finish(performance.now() - started);
        return response;
      }
      return { ...response, message: watch(response.message, started, finish) };
    } catch (error) {
      throw finish(performance.now() - started, error);
    }
  };
}

/** The id of a call: the one its client gave, unless that is nothing for a log. */
export function toRequestId(given: string | null | undefined): string {
  return given && /^[\w.:/+=@-]{1,128}$/.test(given) ? given : randomUUID();
}

/** The longest wait is the server's; how long the reader takes for a message is not in it. */
async function* watch<T>(
  messages: AsyncIterable<T>,
  started: number,
  finish: (waitMs: number, error?: unknown) => unknown,
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
    finish(wait());
  } catch (error) {
    ended = true;
    throw finish(wait(), error);
  } finally {
    // The reader went away while a message was waiting to be taken.
    if (!ended) finish(longest, new ConnectError("the client went away", Code.Canceled));
  }
}

/** The answer to every operation before the database could be used for the first time. */
export function notReady(): CheckpointdError {
  return new CheckpointdError(
    "unavailable",
    "the database is not ready yet; the server keeps trying, so try again",
    { reason: "NOT_READY" },
  );
}

/** The answer to an operation without a deadline of its own that took too long. */
export function limitPassed(): ConnectError {
  return new ConnectError("the server's limit for one call passed", Code.DeadlineExceeded);
}

/** The answer to what a drain could not wait for. */
export function shuttingDown(): ConnectError {
  return toConnectError(
    new CheckpointdError("unavailable", "the server is shutting down", { reason: "DRAINING" }),
  );
}

/** The one mapping of errors. Clients see fixed text; what Postgres said goes to the log. */
export function toConnectError(error: unknown, signal?: Signal): ConnectError {
  if (error instanceof ConnectError) {
    if (error !== signal?.reason) return error;
    // A client may reset its call with any code (connect-node's: INTERNAL_ERROR at its own
    // deadline), which the library takes for that error. The client is gone, nothing failed.
    const isOurs = error.code === Code.DeadlineExceeded || error.code === Code.Unavailable;
    if (!isOurs) return new ConnectError("the client went away", Code.Canceled);
    // A drain gives all calls the same; each call's metadata names that call.
    const own = new ConnectError(error.rawMessage, error.code, error.metadata);
    own.details = error.details;
    return own;
  }
  if (error instanceof CheckpointdError) return fromCheckpointdError(error);
  const { name } = error as { name?: string };
  if (name === "TimeoutError") {
    return limitPassed();
  }
  if (name === "AbortError" || signal?.aborted) {
    return new ConnectError("the call was cancelled", Code.Canceled);
  }
  const told = toTold(error);
  if (told) return fromCheckpointdError(told);
  return new ConnectError(
    "internal error; the server's log has it by the request id",
    Code.Internal,
  );
}

/** With our detail and, where a retry may help, how long to wait in the words of others too. */
function fromCheckpointdError({ message, code, detail }: CheckpointdError): ConnectError {
  const answer = new ConnectError(message, codes[code]);
  if (!detail) return answer;
  const { reason, field = "", limit = 0 } = detail;
  const delayMs = retryDelayMs[reason];
  const retryDelay = delayMs === undefined ? undefined : durationFromMs(delayMs);
  answer.details.push({
    desc: ErrorDetailSchema,
    value: { reason, field, limit: BigInt(limit), ...(retryDelay ? { retryDelay } : {}) },
  });
  if (delayMs !== undefined && retryDelay) {
    answer.details.push({ type: "google.rpc.RetryInfo", value: toRetryInfo(retryDelay) });
    answer.metadata.set(retryAfterHeader, String(Math.ceil(delayMs / 1000)));
  }
  return answer;
}

/** google.rpc.RetryInfo has one field, the first, which is the delay. */
function toRetryInfo(delay: Duration): Uint8Array {
  const bytes = toBinary(DurationSchema, delay);
  return Uint8Array.of(0x0a, bytes.length, ...bytes);
}

const codes: Record<ErrorCode, Code> = {
  invalid_argument: Code.InvalidArgument,
  resource_exhausted: Code.ResourceExhausted,
  failed_precondition: Code.FailedPrecondition,
  aborted: Code.Aborted,
  unavailable: Code.Unavailable,
  deadline_exceeded: Code.DeadlineExceeded,
  canceled: Code.Canceled,
  internal: Code.Internal,
  data_loss: Code.DataLoss,
};
