/** Which failures are worth another try, and how long to wait before it. */
import { Code, ConnectError } from "@connectrpc/connect";
import { type ErrorDetail, ErrorDetailSchema } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import { retryAfterHeader } from "../protocol/wire.js";
import { isOfBegun } from "./carrier.js";

/**
 * How calls that found no server are repeated, until their deadline unless `attempts` ends it
 * before. A claim or a copy, of which a second one would be something else, is repeated only where the
 * service certainly did not begin it. The pause before try n+1 is random between 0 and
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

/**
 * What the service says only before it begins a call (ErrorDetail has the promise). What it says of its
 * database or its queue may come of a later statement of a call that has stored something, and DRAINING
 * and OVERLOADED of one that ran.
 */
const saidBefore = new Set(["SCHEMA_NEW", "NOT_READY", "LIMIT_REACHED"]);

/**
 * True if it is certain that the service did not begin the call: it said so, its stream was refused
 * (RFC 9113, section 8.7: REFUSED_STREAM, as Node also closes the streams above the last one that a
 * GOAWAY names), no connection was made, or nothing was sent. A call that must not be carried out twice may
 * be repeated then. A connection that broke, and any other reset, says nothing of the kind.
 */
export function isNotBegun(error: unknown): boolean {
  if (isOfBegun(error)) return false;
  const detail = errorDetail(error);
  // A claim is told that its caller's leases are taken: waiting for one would keep it from releasing one.
  if (detail) return saidBefore.has(detail.reason) && detail.field !== "leases";
  for (let cause = error; cause instanceof Error; cause = cause.cause) {
    if (cause instanceof NotSent || isRefusedStream(cause) || isOfConnecting(cause)) return true;
  }
  return false;
}

/** Among the causes of an error: nothing of the call was sent. */
class NotSent extends Error {}

/**
 * The same error for a call of which nothing was sent. Another object, since calls that were sent on the
 * same connection may be told of it too.
 */
export function notSent(error: Error): Error {
  if (!(error instanceof ConnectError) || error instanceof NotTheService) return error;
  const cause = new NotSent(error.message, { cause: error });
  return new ConnectError(error.rawMessage, error.code, error.metadata, undefined, cause);
}

/** In Node's words and in connect-node's. */
const isRefusedStream = ({ message }: Error) =>
  /\b[Ss]tream closed with error code (NGHTTP2_)?REFUSED_STREAM\b/.test(message);

/** Whether it is of a connection that was not made: one that was open may be told all but the first three. */
function isOfConnecting(error: Error & { code?: unknown; syscall?: unknown }): boolean {
  const { code, syscall } = error;
  if (code === "ECONNREFUSED" || code === "ENOTFOUND" || code === "EAI_AGAIN") return true;
  if (syscall === "connect") return true;
  // Of several addresses of a name.
  return (
    error instanceof AggregateError && error.errors.length > 0 && error.errors.every(isOfConnecting)
  );
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
