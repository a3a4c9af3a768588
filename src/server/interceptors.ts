import { randomUUID } from "node:crypto";
import { Code, ConnectError, type Interceptor } from "@connectrpc/connect";
import { ErrorDetailSchema } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import { CheckpointService } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { ThreadService } from "../../gen/checkpointd/v1/thread_service_pb.js";
import { CheckpointdError, type ErrorCode } from "../errors.js";
import type { Log } from "../log.js";
import type { Signal } from "../store/db.js";

/** The header that carries a call's id, taken from the client or made here. */
export const requestIdHeader = "x-request-id";

const needsDatabase = new Set([CheckpointService.typeName, ThreadService.typeName]);

/**
 * Wraps every call: gives it an id, refuses it while the database is not ready, turns errors
 * into answers and writes one line to the log. No payload and no name of a thread is logged.
 */
export function createInterceptor(log: Log, isReady: () => boolean): Interceptor {
  return (next) => async (request) => {
    const started = performance.now();
    const requestId = toRequestId(request.header.get(requestIdHeader));
    // The session that this call may open is known by it too.
    request.header.set(requestIdHeader, requestId);
    const rpc = `${request.service.typeName}/${request.method.name}`;
    const finish = (error?: unknown) => {
      const answer = error === undefined ? undefined : toConnectError(error, request.signal);
      answer?.metadata.set(requestIdHeader, requestId);
      logCall(log, { requestId, rpc, started, answer, error });
      return answer;
    };
    try {
      if (needsDatabase.has(request.service.typeName) && !isReady()) throw notReady();
      const response = await next(request);
      response.header.set(requestIdHeader, requestId);
      if (!response.stream) {
        finish();
        return response;
      }
      return { ...response, message: watch(response.message, finish) };
    } catch (error) {
      throw finish(error);
    }
  };
}

/** The id of a call: the one its client gave, unless that is nothing for a log. */
export function toRequestId(given: string | null | undefined): string {
  return given && /^[\w.:/+=@-]{1,128}$/.test(given) ? given : randomUUID();
}

async function* watch<T>(messages: AsyncIterable<T>, finish: (error?: unknown) => unknown) {
  let ended = false;
  try {
    yield* messages;
    ended = true;
    finish();
  } catch (error) {
    ended = true;
    throw finish(error);
  } finally {
    // The reader went away while a message was waiting to be taken.
    if (!ended) finish(new ConnectError("the client went away", Code.Canceled));
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

/** The one mapping of errors. Clients see fixed text; what Postgres said goes to the log. */
export function toConnectError(error: unknown, signal?: Signal): ConnectError {
  if (error instanceof ConnectError) {
    // A client may reset its call with any code (connect-node's: INTERNAL_ERROR at its own
    // deadline), which the library takes for that error. The client is gone, nothing failed.
    const isOurs = error.code === Code.DeadlineExceeded || error.code === Code.Unavailable;
    const isReset = error === signal?.reason && !isOurs;
    return isReset ? new ConnectError("the client went away", Code.Canceled) : error;
  }
  if (error instanceof CheckpointdError) {
    const { detail } = error;
    return new ConnectError(
      error.message,
      codes[error.code],
      undefined,
      detail && [
        {
          desc: ErrorDetailSchema,
          value: {
            reason: detail.reason,
            field: detail.field ?? "",
            limit: BigInt(detail.limit ?? 0),
          },
        },
      ],
    );
  }
  const { name, code } = error as { name?: string; code?: unknown };
  if (name === "TimeoutError") {
    return limitPassed();
  }
  if (name === "AbortError" || signal?.aborted) {
    return new ConnectError("the call was cancelled", Code.Canceled);
  }
  if (typeof code === "string") {
    if (code === "40001" || code === "40P01") {
      return new ConnectError("lost a conflict with another write, try again", Code.Aborted);
    }
    if (code === "57014") {
      return new ConnectError("Postgres cancelled the statement", Code.DeadlineExceeded);
    }
    if (code === "42501") {
      return new ConnectError("the server's database role lacks a privilege", Code.Internal);
    }
    if (isUnreachable(code)) {
      return toConnectError(
        new CheckpointdError("unavailable", "the database cannot be reached, try again", {
          reason: "DATABASE_UNAVAILABLE",
        }),
      );
    }
  }
  return new ConnectError(
    "internal error; the server's log has it by the request id",
    Code.Internal,
  );
}

const codes: Record<ErrorCode, Code> = {
  invalid_argument: Code.InvalidArgument,
  resource_exhausted: Code.ResourceExhausted,
  failed_precondition: Code.FailedPrecondition,
  aborted: Code.Aborted,
  unavailable: Code.Unavailable,
  deadline_exceeded: Code.DeadlineExceeded,
  canceled: Code.Canceled,
};

/**
 * Classes 08 (connection), 53 (resources), 57P (shutdown) and 25006 (a replica that became
 * read-only); 3D000 and 28 while a database is being set up; Node's and postgres.js's words
 * for a connection that could not be made or kept.
 */
export function isUnreachable(code: string): boolean {
  return (
    /^(08|53|57P|28)/.test(code) ||
    code === "25006" ||
    code === "3D000" ||
    /^(CONNECT|CONNECTION_\w+|CONNECT_(FAILED|TIMEOUT)|NOT_ACKNOWLEDGED|E(CONN\w+|PIPE|TIMEDOUT|HOSTUNREACH|NETUNREACH|NOTFOUND|AI_AGAIN)|ENOENT)$/.test(
      code,
    )
  );
}

function isOurFault(code: Code): boolean {
  return code === Code.Internal || code === Code.Unknown || code === Code.Unavailable;
}

/** What the log may know of an error: never parameters, details or rows, which hold payloads. */
export function describeCause(error: unknown): Record<string, unknown> {
  const { name, message, code, routine, table_name, constraint_name, stack } = error as Record<
    string,
    unknown
  >;
  const known = code === undefined ? { stack } : {};
  return { name, message, code, routine, table_name, constraint_name, ...known };
}

/** One line a call: at error level when the fault is ours, at info when the client's. */
export function logCall(
  log: Log,
  call: {
    requestId: string;
    rpc: string;
    /** As performance.now() counts. */
    started: number;
    /** What the client gets to see, and why; undefined when the call succeeded. */
    answer: ConnectError | undefined;
    error: unknown;
  },
): void {
  const { requestId, rpc, started, answer, error } = call;
  if (!answer && !log.isLevelEnabled("debug")) return;
  const line = {
    requestId,
    rpc,
    code: answer ? Code[answer.code] : "Ok",
    ms: Math.round((performance.now() - started) * 10) / 10,
  };
  if (!answer) log.debug(line, "call");
  else if (!isOurFault(answer.code)) log.info(line, "call refused");
  else log.error({ ...line, error: describeCause(error) }, "call failed");
}
