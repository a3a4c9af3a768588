/** The ways on which a client's operations reach the service. */
import type { Answer, OperationName, RequestInit, StreamName } from "../protocol/operations.js";
import type { CallSpan } from "./call_span.js";

/** What holds for one try of an operation. */
export interface TryContext {
  /** By when there has to be an answer, by performance.now(). */
  readonly deadline: number;
  /** Gives the operation up when it aborts, with its reason. */
  readonly signal?: AbortSignal | undefined;
  /** Whether it may be carried out twice. Default true. */
  readonly idempotent?: boolean;
  /** Where a span is active: to be begun by what carries it, which sends what it says. */
  readonly span?: Pick<CallSpan, "begin"> | undefined;
}

/**
 * Carries each operation once: resolves with its answer, and rejects with a ConnectError, at the
 * deadline at the latest; with the signal's reason; or with {@link NotCarried}. Knows nothing of
 * other tries.
 */
export type Carrier = {
  readonly [Name in OperationName]: (
    request: RequestInit<Name>,
    context: TryContext,
  ) => Promise<Answer<Name>>;
};

/**
 * Opens each stream once. It ends when its reader leaves it, when the signal aborts, and at the
 * deadline, if there is one.
 */
export type Streams = {
  readonly [Name in StreamName]: (
    request: RequestInit<Name>,
    context: Partial<TryContext>,
  ) => AsyncIterable<Answer<Name>>;
};

/** Everything that can be asked for. */
export type Service = Carrier & Streams;

/**
 * A carrier does not carry this operation, or not now: nothing is known of it to the service, or
 * the carrier cannot tell what came of it. It is to be made on another one.
 */
export class NotCarried extends Error {}

/** Errors of operations that may have been carried out all the same, though they say that they were refused. */
const perhapsDone = new WeakSet<object>();

/** Marks the error of an operation that was begun: what it says may not be why it is not repeated. */
export function ofBegun<Failure extends Error>(error: Failure): Failure {
  perhapsDone.add(error);
  return error;
}

/** Whether an error is that of an operation that may have been carried out. */
export const isOfBegun = (error: unknown): boolean =>
  typeof error === "object" && error !== null && perhapsDone.has(error);

/** Carries what `first` does not carry on `second`, within the same deadline. */
export function withFallback(first: Carrier, second: Carrier): Carrier {
  const on =
    <Name extends OperationName>(name: Name) =>
    async (request: RequestInit<Name>, context: TryContext): Promise<Answer<Name>> => {
      try {
        return await first[name](request, context);
      } catch (error) {
        if (!(error instanceof NotCarried)) throw error;
        return second[name](request, context);
      }
    };
  return {
    getTuple: on("getTuple"),
    put: on("put"),
    putExtending: on("putExtending"),
    putWrites: on("putWrites"),
    deleteThread: on("deleteThread"),
    listPage: on("listPage"),
    getThread: on("getThread"),
    claimThreads: on("claimThreads"),
    renewClaim: on("renewClaim"),
    releaseClaim: on("releaseClaim"),
    copyThread: on("copyThread"),
    deleteRuns: on("deleteRuns"),
  };
}
