import { Code, type ConnectError } from "@connectrpc/connect";
import { ErrorDetailSchema } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import { CheckpointdError } from "../errors.js";
import type { Log } from "../log.js";
import type { Db } from "../store/db.js";
import type { FinishedCall } from "./call.js";

/**
 * One line a call: "call failed" at error level when the fault is ours; else "slow call" at warn
 * level when the client waited for `slowMs` or longer, whatever the outcome (0: never); else "call
 * refused" at info level when it was the client's fault, and "call" at debug level. A call that
 * failed and was slow says so in its line. No payload and no name of a thread is logged. Where calls are
 * traced it says in which trace.
 */
export function createCallLog(log: Log, slowMs: number): (call: FinishedCall) => void {
  return ({ requestId, rpc, totalMs, waitMs, queueMs, answer, error, trace }) => {
    const isSlow = slowMs > 0 && waitMs >= slowMs;
    if (!answer && !isSlow && !log.isLevelEnabled("debug")) return;
    const reason = answer?.findDetails(ErrorDetailSchema)[0]?.reason;
    const line = {
      requestId,
      ...trace?.ids,
      rpc,
      code: answer ? Code[answer.code] : "Ok",
      ...(reason === undefined ? {} : { reason }),
      ms: toTenths(totalMs),
      ...(isSlow ? { waitMs: toTenths(waitMs), queueMs: toTenths(queueMs) } : {}),
    };
    if (answer && isOurFault(answer)) {
      const slow = isSlow ? { slow: true } : {};
      log.error({ ...line, ...slow, error: describeCause(error) }, "call failed");
    } else if (isSlow) {
      log.warn(line, "slow call");
    } else if (answer) {
      log.info(line, "call refused");
    } else {
      log.debug(line, "call");
    }
  };
}

function toTenths(ms: number): number {
  return Math.round(ms * 10) / 10;
}

function isOurFault({ code, cause }: ConnectError): boolean {
  // The protocols call it INTERNAL; it is what a client sent.
  if (cause instanceof CheckpointdError) return false;
  return (
    code === Code.Internal ||
    code === Code.Unknown ||
    code === Code.Unavailable ||
    code === Code.DataLoss
  );
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

/**
 * One line for each checkpoint that an answer goes without, too large to be told, with its name: an
 * operator has to look at that thread and delete it.
 */
export function logLeftOut(log: Log): Db["leaveOut"] {
  return (checkpoint) =>
    log.warn({ ...checkpoint, reason: "UNDELIVERABLE" }, "left out of an answer");
}
