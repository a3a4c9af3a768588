/** Operations on long-lived sessions: which session an operation goes to, and when there is none. */
import type { ConnectError } from "@connectrpc/connect";
import type { Answer, OperationName, RequestInit } from "../protocol/operations.js";
import { type Carrier, NotCarried, type TryContext } from "./carrier.js";
import { type ClientSession, largeBytes } from "./client_session.js";
import { restMs } from "./http_versions.js";

/** For how long at the most, where it was trouble that passes. */
const passingRestMs = 4_000;

/** The carrier, and the end of it. */
export interface SessionCarrier {
  readonly carrier: Carrier;
  /** Has new operations go to other sessions than those that there are. */
  leave(): void;
  /** Closes the sessions at once; what is under way fails with the error. Idempotent. */
  abort(error: ConnectError): void;
}

/**
/**
 * Carries operations on sessions that `open` opens: one, and another for what is large, and the pages
 * of lists, so that small operations need not wait behind them. `open` is told whether the session
 * follows one that the service asked to leave.
 */
export function createSessionCarrier(open: (isNext: boolean) => ClientSession): SessionCarrier {
  const small = createPlace(open);
  const large = createPlace(open);
  const on =
    <Name extends OperationName>(name: Name, isLarge?: (request: RequestInit<Name>) => boolean) =>
    (request: RequestInit<Name>, context: TryContext): Promise<Answer<Name>> => {
      const session = (isLarge?.(request) ? large : small).session();
      return session
        ? session.run(name, request, context)
        : Promise.reject(new NotCarried("there was no session a moment ago"));
    };
  const carrier: Carrier = {
    getTuple: on("getTuple"),
    put: on("put", isLargePut),
    putExtending: on("putExtending", ({ put = {} }) => isLargePut(put)),
    putWrites: on("putWrites", ({ writes = [] }) => bytesOf(writes) > largeBytes),
    deleteThread: on("deleteThread"),
    listPage: on("listPage", () => true),
    getThread: on("getThread"),
    claimThreads: on("claimThreads"),
    renewClaim: on("renewClaim"),
    releaseClaim: on("releaseClaim"),
    copyThread: on("copyThread"),
    deleteRuns: on("deleteRuns"),
  };
  return {
    carrier,
    leave() {
      small.leave();
      large.leave();
    },
    abort(error) {
      small.abort(error);
      large.abort(error);
    },
  };
}

/** Holds one session at a time, and none for a while after there was none. */
function createPlace(open: (isNext: boolean) => ClientSession) {
  let current: ClientSession | undefined;
  /** How often in a row there was no session. */
  let refusals = 0;
  return {
    /** The session for a new operation; undefined where there are none. */
    session(): ClientSession | undefined {
      if (current && !current.isLeaving) return current;
      const found = current?.foundNone;
      if (found === undefined) {
        refusals = 0;
      } else {
        refusals = Math.max(1, refusals);
        const longest = found.isPassing ? passingRestMs : Number.POSITIVE_INFINITY;
        const until = found.at + Math.min(restMs(refusals), longest);
        if (performance.now() < until) return undefined;
        refusals++;
      }
      current = open(current?.wasAskedToLeave ?? false);
      return current;
    },
    leave(): void {
      current?.leave();
      current = undefined;
    },
    abort: (error: ConnectError) => current?.abort(error),
  };
}

function isLargePut(put: RequestInit<"put">): boolean {
  const json = (put.checkpointJson?.length ?? 0) + (put.metadataJson?.length ?? 0);
  return json + bytesOf(put.blobs) > largeBytes;
}

function bytesOf(parts: readonly { value?: { data?: Uint8Array } | undefined }[] = []): number {
  let bytes = 0;
  for (const { value } of parts) bytes += value?.data?.length ?? 0;
  return bytes;
}
