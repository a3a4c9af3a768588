/** Which failures are worth another try, and how long to wait before it. */
import { Code, ConnectError } from "@connectrpc/connect";
import { type ErrorDetail, ErrorDetailSchema } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import { retryAfterHeader } from "../protocol/wire.js";

/**
 * How calls that found no server are repeated, until their deadline unless `attempts` ends it
 * before. Every call of the service is idempotent. The pause before try n+1 is random between 0 and
 * `initialDelayMs * 2^(n-1)`, at most `maxDelayMs`, but no shorter than the service asks for with
 * its refusal.
 */
export interface RetryOptions {
  /** Tries in all, the first included: 1 never repeats. As many as the deadline allows by default. */
  attempts?: number;
  /** The longest pause before the second try, in milliseconds. Default 100. */
  initialDelayMs?: number;
  /** The longest pause before any try, in milliseconds. Default 2000. */
  maxDelayMs?: number;
}

/** The random pause before the try after `attempt` ones, of which `error` is the last one's. */
export function pauseBefore(
  attempt: number,
  retry: Required<RetryOptions>,
  error: unknown,
): number {
  // Full jitter: agents that lost the same server do not come back in step. So also for those that
  // the server told when to come.
  const longest = Math.min(retry.maxDelayMs, retry.initialDelayMs * 2 ** (attempt - 1));
  return Math.random() * longest + askedPauseMs(error) * (1 + Math.random() / 4);
}

/** How long the service, or a proxy before it, asks to wait; 0 if it does not say. */
function askedPauseMs(error: unknown): number {
  const { seconds, nanos } = errorDetail(error)?.retryDelay ?? { seconds: 0n, nanos: 0 };
  const asked = Number(seconds) * 1000 + nanos / 1e6;
  if (asked > 0 || !(error instanceof ConnectError)) return asked;
  const header = Number(error.metadata.get(retryAfterHeader));
  return header > 0 ? header * 1000 : 0;
}

/**
 * What a call is told at last that was tried several times: the last failure, its code and details
 * as they were, and how often it was tried for how long.
 */
export function gaveUp(error: unknown, attempts: number, elapsedMs: number): unknown {
  if (attempts === 1 || !(error instanceof ConnectError)) return error;
  const tries = `gave up after ${attempts} tries in ${(elapsedMs / 1000).toFixed(1)} s`;
  const told = new ConnectError(
    `${error.rawMessage}; ${tries}`,
    error.code,
    error.metadata,
    undefined,
    error,
  );
  told.details = error.details;
  return told;
}

/**
 * What the service says about `error` for programs: the reason, the request's field and the
 * limit. undefined for errors that carry none, and for anything but an error of a call.
 */
export function errorDetail(error: unknown): ErrorDetail | undefined {
  return error instanceof ConnectError ? error.findDetails(ErrorDetailSchema)[0] : undefined;
}

/** What answers at the service's address is something else, which another try would meet again. */
export class NotTheService extends ConnectError {
  readonly #brand = true;

  /** ConnectError's own holds every ConnectError for one of any class derived from it. */
  static override [Symbol.hasInstance](value: unknown): boolean {
    return typeof value === "object" && value !== null && #brand in value;
  }
}

/**
 * True if the call may succeed when it is repeated: the server could not be reached, is
 * draining, lost a conflict or has too many calls waiting, or the connection broke. Errors
 * caused by our own deadline or cancellation must not be asked about.
 */
export function isRetryable(error: unknown): boolean {
  if (!(error instanceof ConnectError) || error instanceof NotTheService) return false;
  // The service says so itself, also of a statement that took too long.
  if (errorDetail(error)?.retryDelay !== undefined) return true;
  switch (error.code) {
    case Code.Unavailable:
    case Code.Aborted:
    // We did not cancel, so the stream was reset under us, as a server that goes away does.
    case Code.Canceled:
      return true;
    case Code.ResourceExhausted:
      // Of a server that gives no hint yet.
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
