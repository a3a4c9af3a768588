/** Which failures are worth another try, and how long to wait before it. */
import { Code, ConnectError } from "@connectrpc/connect";
import { type ErrorDetail, ErrorDetailSchema } from "../../gen/checkpointd/v1/checkpoint_pb.js";

/**
 * How calls that found no server are repeated. Every call of the service is idempotent. The
 * pause before try n+1 is random between 0 and `initialDelayMs * 2^(n-1)`, at most `maxDelayMs`.
 */
export interface RetryOptions {
  /** Tries in all, the first included: 1 never repeats. Default 8, which waits 3.5 s on average. */
  attempts?: number;
  /** The longest pause before the second try, in milliseconds. Default 100. */
  initialDelayMs?: number;
  /** The longest pause before any try, in milliseconds. Default 2000. */
  maxDelayMs?: number;
}

/** The random pause before the try after `attempt` failed ones, in milliseconds. */
export function pauseBefore(attempt: number, retry: Required<RetryOptions>): number {
  // Full jitter: agents that lost the same server do not come back in step.
  const longest = Math.min(retry.maxDelayMs, retry.initialDelayMs * 2 ** (attempt - 1));
  return Math.random() * longest;
}

/**
 * What the service says about `error` for programs: the reason, the request's field and the
 * limit. undefined for errors that carry none, and for anything but an error of a call.
 */
export function errorDetail(error: unknown): ErrorDetail | undefined {
  return error instanceof ConnectError ? error.findDetails(ErrorDetailSchema)[0] : undefined;
}

/**
 * True if the call may succeed when it is repeated: the server could not be reached, is
 * draining, lost a conflict or has too many calls waiting, or the connection broke. Errors
 * caused by our own deadline or cancellation must not be asked about.
 */
export function isRetryable(error: unknown): boolean {
  if (!(error instanceof ConnectError)) return false;
  switch (error.code) {
    case Code.Unavailable:
    case Code.Aborted:
    // We did not cancel, so the stream was reset under us, as a server that goes away does.
    case Code.Canceled:
      return true;
    case Code.ResourceExhausted:
      return errorDetail(error)?.reason === "QUEUE_FULL";
    default:
      return isBrokenConnection(error);
  }
}

// connect-node gives a broken connection many codes: INTERNAL or UNKNOWN with Node's error as
// the cause (ERR_HTTP2_STREAM_ERROR, ERR_HTTP2_SESSION_ERROR, ERR_STREAM_PREMATURE_CLOSE,
// EPIPE), INTERNAL for some HTTP/2 reset codes, and where the bytes just end, a "protocol
// error" of INVALID_ARGUMENT (Connect: missing EndStreamResponse, incomplete envelope,
// promised n bytes) or INTERNAL (gRPC: missing status).
function isBrokenConnection(error: ConnectError): boolean {
  for (let cause: unknown = error.cause; cause instanceof Error; cause = cause.cause) {
    const code = "code" in cause ? cause.code : undefined;
    if (typeof code === "string" && /^(ERR_HTTP2_|ERR_STREAM_|E[A-Z]+$)/.test(code)) return true;
  }
  return /^(protocol error: |http\/2 )/.test(error.rawMessage);
}
