/** What clients are told of an error: every one of them passes here. */
import { toBinary } from "@bufbuild/protobuf";
import { type Duration, DurationSchema, durationFromMs } from "@bufbuild/protobuf/wkt";
import { Code, ConnectError } from "@connectrpc/connect";
import { ErrorDetailSchema } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import { CheckpointdError, type ErrorCode } from "../errors.js";
import { retryAfterHeader } from "../protocol/wire.js";
import type { Signal } from "../store/db.js";
import { retryDelayMs, toTold } from "./error_table.js";

/** The answer to every operation before the database could be used for the first time. */
export function notReady(): CheckpointdError {
  return new CheckpointdError(
    "unavailable",
    "the database is not ready yet; the server keeps trying, so try again",
    { reason: "NOT_READY" },
  );
}

/** The answer to a call that took too long; `timeoutMs` is what its client gave, 0 for nothing. */
export function limitPassed(timeoutMs: number): ConnectError {
  const limit =
    timeoutMs === 0 ? "the server's limit for one call passed" : "the operation timed out";
  return new ConnectError(limit, Code.DeadlineExceeded);
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
  unauthenticated: Code.Unauthenticated,
  permission_denied: Code.PermissionDenied,
  resource_exhausted: Code.ResourceExhausted,
  failed_precondition: Code.FailedPrecondition,
  aborted: Code.Aborted,
  unavailable: Code.Unavailable,
  deadline_exceeded: Code.DeadlineExceeded,
  canceled: Code.Canceled,
  internal: Code.Internal,
  data_loss: Code.DataLoss,
};
