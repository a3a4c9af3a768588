/** What both ends tell of a call in its spans. */
import { Code } from "@connectrpc/connect";
import { SessionService } from "../../gen/checkpointd/v1/session_service_pb.js";
import { type CallName, operations, streams } from "./operations.js";

/** The span that a call is part of, as the headers of W3C Trace Context tell it. */
export interface TraceHeaders {
  readonly traceparent: string;
  /** Empty: there is none. */
  readonly tracestate: string;
}

/** Longer ones are not heeded, nor sent. */
export const mostTracestateCharacters = 512;

/** The names of spans, which are those of RPCs: `checkpointd.v1.CheckpointService/Put`, whatever carries it. */
export const spanNames = Object.fromEntries(
  Object.entries({ ...operations, ...streams }).map(([name, method]) => [
    name,
    "parent" in method
      ? `${method.parent.typeName}/${method.name}`
      : `${SessionService.typeName}/${name.charAt(0).toUpperCase()}${name.slice(1)}`,
  ]),
) as Record<CallName, string>;

/** The thread that a request is about, where it is one. */
export function threadOf(request: object): string | undefined {
  const { threadId, sourceThreadId, put, list } = request as Record<string, unknown> & {
    put?: { threadId?: unknown };
    list?: { threadId?: unknown };
  };
  const id = threadId || put?.threadId || list?.threadId || sourceThreadId;
  // A name may have 64 KiB.
  return typeof id === "string" && id !== "" ? id.slice(0, mostThreadCharacters) : undefined;
}

const mostThreadCharacters = 256;

/** The code as gRPC spells it, or as Connect does. */
export function codeName(code: Code, isGrpc: boolean): string {
  const snake = Code[code].replace(/(?!^)[A-Z]/g, (upper) => `_${upper}`);
  if (!isGrpc) return snake.toLowerCase();
  return code === Code.Canceled ? "CANCELLED" : snake.toUpperCase();
}
