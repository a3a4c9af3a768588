/**
 * A call under way, whatever carries it: a unary RPC, a stream or an operation of a session. Every
 * one begins and ends here, so that this is where calls are measured.
 */
import { type ConnectError, createContextKey } from "@connectrpc/connect";
import { sweepMs } from "../protocol/wire.js";
import type { Signal } from "../store/db.js";
import { limitPassed, toConnectError } from "./connect_error.js";

/** What carries a call. */
export type CallCarrier = "connect" | "grpc" | "grpc-web" | "session";

/** What is known of a call that is over. Times in milliseconds. */
export interface FinishedCall {
  readonly requestId: string;
  /** The service and the method, or the operation of SessionService: `checkpointd.v1.…/put`. */
  readonly rpc: string;
  readonly carrier: CallCarrier;
  /** From the request to the end of the answer. */
  readonly totalMs: number;
  /** The longest that the client waited for the server, of a stream for one message. */
  readonly waitMs: number;
  /** How long its statements waited for a connection. */
  readonly queueMs: number;
  /** The most calls that travelled in one of its statements, itself included; 0: it sent none. */
  readonly batchSize: number;
  /** As they are on the wire, where that is told: 0 for a body of unknown length. */
  readonly requestBytes: number;
  readonly answerBytes: number;
  /** What the client gets to see, and why; undefined when the call succeeded. */
  readonly answer: ConnectError | undefined;
  readonly error: unknown;
}

/** Under which the handlers of RPCs find their call. */
export const callKey = createContextKey<Call | undefined>(undefined, {
  description: "the call under way",
});

type Outcome = Pick<FinishedCall, "waitMs" | "answer" | "error">;

/** A call, which is also the signal of the statements that it runs. */
export class Call implements Signal {
  readonly started: number = performance.now();
  aborted = false;
  reason: unknown;
  queueMs = 0;
  batchSize = 0;
  requestBytes = 0;
  answerBytes = 0;
  /** By performance.now(); set by who bounds the call. */
  deadline = Number.POSITIVE_INFINITY;
  readonly #listeners: (() => void)[] = [];
  readonly #onEnd: (call: Call, outcome: Outcome) => void;
  #outcome: Outcome | undefined;
  #isOver = false;

  constructor(
    readonly requestId: string,
    readonly rpc: string,
    readonly carrier: CallCarrier,
    /** What the client gave, 0 for nothing. */
    readonly timeoutMs: number,
    onEnd: (call: Call, outcome: Outcome) => void,
  ) {
    this.#onEnd = onEnd;
  }

  /** Whether it is known what came of it. */
  get isConcluded(): boolean {
    return this.#outcome !== undefined;
  }

  /** To be called once it is known what came of it. Returns what the client is told of the error. */
  conclude(waitMs: number, error?: unknown): ConnectError | undefined {
    const answer = error === undefined ? undefined : toConnectError(error, this);
    this.#outcome = { waitMs, answer, error };
    return answer;
  }

  /** To be called once the answer was handed on, or nobody is there to hand it to. Idempotent. */
  end(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#onEnd(this, this.#outcome ?? { waitMs: 0, answer: undefined, error: undefined });
  }

  abort(reason: unknown): void {
    if (this.aborted) return;
    this.aborted = true;
    this.reason = reason;
    for (const listener of [...this.#listeners]) listener();
  }

  throwIfAborted(): void {
    if (this.aborted) throw this.reason;
  }

  addEventListener(_: "abort", listener: () => void): void {
    this.#listeners.push(listener);
  }

  removeEventListener(_: "abort", listener: () => void): void {
    const i = this.#listeners.indexOf(listener);
    if (i >= 0) this.#listeners.splice(i, 1);
  }
}

/** The calls of a server. */
export interface Calls {
  /** A call that begins now. `timeoutMs` is the client's, 0 for none. */
  begin(requestId: string, rpc: string, carrier: CallCarrier, timeoutMs?: number): Call;
  /** Bounds the call by `limitMs` from its beginning, in the words of a client's own deadline. */
  bound(call: Call, limitMs: number): void;
}

/** Begins calls; `observers` are told of each when it is over. */
export function createCalls(observers: readonly ((call: FinishedCall) => void)[]): Calls {
  const bounded = new Set<Call>();
  let timer: NodeJS.Timeout | undefined;

  // One timer for all: one of its own costs a call more than the rest of this file.
  const sweep = () => {
    const now = performance.now();
    for (const call of bounded) if (now > call.deadline) call.abort(limitPassed(call.timeoutMs));
    if (bounded.size > 0) return;
    clearInterval(timer);
    timer = undefined;
  };

  const onEnd = (call: Call, outcome: Outcome) => {
    bounded.delete(call);
    const { requestId, rpc, carrier, queueMs, batchSize, requestBytes, answerBytes } = call;
    const finished: FinishedCall = {
      requestId,
      rpc,
      carrier,
      totalMs: performance.now() - call.started,
      queueMs,
      batchSize,
      requestBytes,
      answerBytes,
      ...outcome,
    };
    for (const observe of observers) observe(finished);
  };

  return {
    begin: (requestId, rpc, carrier, timeoutMs = 0) =>
      new Call(requestId, rpc, carrier, timeoutMs, onEnd),
    bound(call, limitMs) {
      call.deadline = call.started + limitMs;
      bounded.add(call);
      timer ??= setInterval(sweep, sweepMs);
    },
  };
}
