/**
 * A call under way, whatever carries it: a unary RPC, a stream or an operation of a session. Every
 * one begins and ends here, so that this is where calls are measured.
 */
import { type ConnectError, createContextKey } from "@connectrpc/connect";
import type { Principal } from "../auth/principal.js";
import { sweepMs } from "../protocol/wire.js";
import type { Signal } from "../store/db.js";
import type { CallTrace, CallTraces, GivenTrace } from "./call_trace.js";
import { limitPassed, toConnectError } from "./connect_error.js";
import { type Arrival, Intake } from "./intake.js";

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
  /** As they are on the wire. */
  readonly requestBytes: number;
  readonly answerBytes: number;
  /** What the client gets to see, and why; undefined when the call succeeded. */
  readonly answer: ConnectError | undefined;
  readonly error: unknown;
  /** Where calls are traced. */
  readonly trace?: Pick<CallTrace, "ids"> | undefined;
}

/** Under which the handlers of RPCs find their call. */
export const callKey = createContextKey<Call | undefined>(undefined, {
  description: "the call under way",
});

/** A call, which is also the signal of the statements that it runs, and in the end what is known. */
export class Call implements Signal, FinishedCall {
  readonly started: number = performance.now();
  aborted = false;
  reason: unknown;
  /** By performance.now(); set by who bounds the call. */
  deadline = Number.POSITIVE_INFINITY;
  /** The connection or session that it came on. */
  source: object | undefined;
  /** Who makes it; undefined where the server asks nobody. */
  principal: Principal | undefined;
  /** The address that it came from. */
  peer: string | undefined;
  /** Why it is not carried out, whatever it asks for. */
  refusal: unknown;
  /** What its statements took, where that is counted. */
  databaseMs: number | undefined;
  queueMs = 0;
  batchSize = 0;
  requestBytes = 0;
  /** What its compressed messages are when they are inflated. */
  inflatedBytes = 0;
  /** Of a session that connect-es carries: the sizes of the messages that it was handed. */
  messageBytes: number[] | undefined;
  answerBytes = 0;
  totalMs = 0;
  waitMs = 0;
  answer: ConnectError | undefined;
  error: unknown;
  trace: CallTrace | undefined;
  /** Set where the call's span is told of its statements. */
  ran: Signal["ran"];
  /** Whether it is known what came of it. */
  isConcluded = false;
  isOver = false;
  /** The calls that are bounded beside it. */
  before: Call | undefined;
  after: Call | undefined;
  /** What its request takes of the process. */
  #heldBytes = 0;
  readonly #listeners: (() => void)[] = [];
  readonly #calls: OpenCalls;

  constructor(
    readonly requestId: string,
    readonly rpc: string,
    readonly carrier: CallCarrier,
    /** What the client gave, 0 for nothing. */
    readonly timeoutMs: number,
    calls: OpenCalls,
  ) {
    this.#calls = calls;
  }

  /** To be called once it is known what came of it. Returns what the client is told of the error. */
  conclude(waitMs: number, error?: unknown): ConnectError | undefined {
    this.isConcluded = true;
    this.waitMs = waitMs;
    this.error = error;
    if (error !== undefined) this.answer = toConnectError(error, this);
    return this.answer;
  }

  /** Holds bytes of its request until it ends, or fewer again. Throws OVERLOADED. */
  take(bytes: number, arrival?: Arrival): void {
    if (this.isOver) return;
    this.#calls.intake.take(bytes, arrival);
    this.#heldBytes += bytes;
  }

  /** To be called once the answer was handed on, or nobody is there to hand it to. Idempotent. */
  end(): void {
    if (this.isOver) return;
    this.isOver = true;
    this.totalMs = performance.now() - this.started;
    this.#calls.intake.give(this.#heldBytes);
    this.#calls.end(this);
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
  /** What their requests take, and what else is being received. */
  readonly intake: Intake;
  /**
   * A call that begins now. `timeoutMs` is the client's, 0 for none; `given` has the span that it
   * says the call is part of.
   */
  begin(
    requestId: string,
    rpc: string,
    carrier: CallCarrier,
    timeoutMs?: number,
    given?: GivenTrace,
  ): Call;
  /** Those that have begun and are not over. */
  inFlight(): number;
  /** Bounds the call by `limitMs` from its beginning, in the words of a client's own deadline. */
  bound(call: Call, limitMs: number): void;
}

/** Begins calls; `observers` are told of each when it is over, and then `traces`. */
export function createCalls(
  observers: readonly ((call: Call) => void)[],
  intake = new Intake(),
  traces?: CallTraces,
): Calls {
  return new OpenCalls(observers, intake, traces);
}

class OpenCalls implements Calls {
  // Those that are bounded, chained by themselves: a Set makes garbage with each, which was a tenth
  // of what a getTuple costs the service. And one timer for all of them: one of its own costs more.
  #last: Call | undefined;
  #timer: NodeJS.Timeout | undefined;
  #inFlight = 0;

  constructor(
    readonly observers: readonly ((call: Call) => void)[],
    readonly intake: Intake,
    readonly traces: CallTraces | undefined,
  ) {}

  begin(
    requestId: string,
    rpc: string,
    carrier: CallCarrier,
    timeoutMs = 0,
    given: GivenTrace = {},
  ): Call {
    this.#inFlight++;
    const call = new Call(requestId, rpc, carrier, timeoutMs, this);
    this.traces?.begin(call, given);
    return call;
  }

  inFlight(): number {
    return this.#inFlight;
  }

  bound(call: Call, limitMs: number): void {
    call.deadline = call.started + limitMs;
    call.before = this.#last;
    if (this.#last) this.#last.after = call;
    this.#last = call;
    this.#timer ??= setInterval(() => this.#sweep(), sweepMs);
  }

  end(call: Call): void {
    const { before, after } = call;
    if (before) before.after = after;
    if (after) after.before = before;
    else if (this.#last === call) this.#last = before;
    call.before = undefined;
    call.after = undefined;
    this.#inFlight--;
    for (const observe of this.observers) observe(call);
    call.trace?.end(call);
  }

  #sweep(): void {
    const now = performance.now();
    for (let call = this.#last; call; ) {
      // Aborting it may end it, which takes it out.
      const { before } = call;
      if (now > call.deadline) call.abort(limitPassed(call.timeoutMs));
      call = before;
    }
    if (this.#last) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
  }
}
