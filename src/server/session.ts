import type { MessageInitShape } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { type ErrorDetail, ErrorDetailSchema } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import type {
  OpenSessionRequest,
  OpenSessionResponseSchema,
} from "../../gen/checkpointd/v1/session_service_pb.js";
import type { Signal } from "../store/db.js";
import type { CallLog } from "./call_log.js";
import { limitPassed, notReady, toConnectError } from "./interceptors.js";
import type { Operations } from "./operations.js";

type Response = MessageInitShape<typeof OpenSessionResponseSchema>;

/** What holds for all sessions of a server. Durations in milliseconds. */
export interface SessionOptions {
  operations: Operations;
  isReady: () => boolean;
  logCall: CallLog;
  /** The limit of an operation whose client sets none. */
  callTimeoutMs: number;
  /** Operations of one session that may run at a time. */
  maxInFlight: number;
  /** After which a client is asked to open another session. */
  maxAgeMs: number;
}

/** The server's side of one session, whatever stream carries it. */
export interface Session {
  /**
   * Carries out one operation; the answer goes to `send`. Throws INVALID_ARGUMENT when the
   * client broke the session's rules, which ends the session.
   */
  receive(request: OpenSessionRequest): void;
  /** Operations without an answer. */
  inFlight(): number;
  /** Asks the client to move to another session. Idempotent. */
  sayGoodbye(): void;
  /** Gives up what is running: the client has gone, and hears of nothing. Idempotent. */
  close(): void;
}

/** All sessions of a server. */
export interface Sessions {
  readonly options: SessionOptions;
  /**
   * Begins a session and greets the client. The log has each operation as `requestId/id`. `end` is
   * to end the stream: the client was asked to go, has nothing under way, and yet stays.
   */
  begin(requestId: string, send: (response: Response) => void, end: () => void): Session;
  /** Asks every client to move, and those that come later at once. */
  sayGoodbye(): void;
  /** Gives up everything that runs, which is answered with the error. */
  abort(error: ConnectError): void;
  /** How many are open. */
  count(): number;
}

/** How often the deadlines of running operations are looked at. */
const sweepMs = 50;
/**
 * Within which a client that was asked to go goes, when nothing of it is under way. One that stays
 * is frozen or gone, and a drain would wait for it in vain.
 */
const leaveMs = 3_000;

/** Keeps the sessions of a server; one timer watches the deadlines of all their operations. */
export function createSessions(options: SessionOptions): Sessions {
  const open = new Set<OpenSession>();
  let leaving = false;
  let timer: NodeJS.Timeout | undefined;

  const sweep = () => {
    const now = performance.now();
    let busy = false;
    for (const session of open) busy = session.sweep(now) || busy;
    if (!busy) {
      clearInterval(timer);
      timer = undefined;
    }
  };

  return {
    options,
    begin(requestId, send, end) {
      const session = new OpenSession(options, requestId, send, end, () => {
        timer ??= setInterval(sweep, sweepMs);
      });
      open.add(session);
      session.onClose = () => open.delete(session);
      send({ result: { case: "welcome", value: { maxInFlight: options.maxInFlight } } });
      if (leaving) session.sayGoodbye();
      return session;
    },
    sayGoodbye() {
      leaving = true;
      for (const session of open) session.sayGoodbye();
    },
    abort(error) {
      for (const session of open) session.abort(error);
    },
    count: () => open.size,
  };
}

class OpenSession implements Session {
  onClose = () => {};
  readonly #running = new Map<number, Running>();
  // Spread, so that the clients of a server that was started do not all move at once.
  readonly #movesAt: number;
  /** Of the time that the client has for leaving; set with the goodbye. */
  #leaving: NodeJS.Timeout | undefined;
  #closed = false;

  constructor(
    readonly options: SessionOptions,
    readonly requestId: string,
    readonly send: (response: Response) => void,
    readonly end: () => void,
    readonly watchDeadlines: () => void,
  ) {
    this.#movesAt = performance.now() + options.maxAgeMs * (0.9 + 0.2 * Math.random());
  }

  receive({ id, timeoutMs, operation }: OpenSessionRequest): void {
    if (operation.case === "cancel") {
      this.#running.get(id)?.abort(new ConnectError("the call was cancelled", Code.Canceled));
      return;
    }
    if (id === 0 || this.#running.has(id)) {
      throw new ConnectError("id: must be unique and not zero", Code.InvalidArgument);
    }
    if (operation.case === "ping") {
      this.send({ id, result: { case: "pong", value: {} } });
      return;
    }
    const now = performance.now();
    if (now > this.#movesAt) this.sayGoodbye();
    const running = new Running(now, timeoutMs, this.options.callTimeoutMs);
    this.#running.set(id, running);
    this.watchDeadlines();
    void this.#carryOut(id, operation, running);
  }

  inFlight(): number {
    return this.#running.size;
  }

  sayGoodbye(): void {
    if (this.#leaving || this.#closed) return;
    this.#leaving = setInterval(() => {
      if (this.#running.size === 0) this.end();
    }, leaveMs).unref();
    this.send({ result: { case: "goodbye", value: {} } });
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    clearInterval(this.#leaving);
    this.abort(new ConnectError("the client went away", Code.Canceled));
    this.onClose();
  }

  abort(error: ConnectError): void {
    for (const running of this.#running.values()) running.abort(error);
  }

  /** Ends what is past its deadline; returns whether anything is running. */
  sweep(now: number): boolean {
    for (const running of this.#running.values()) {
      if (now > running.deadline) running.abort(running.timedOut());
    }
    return this.#running.size > 0;
  }

  async #carryOut(
    id: number,
    operation: OpenSessionRequest["operation"],
    running: Running,
  ): Promise<void> {
    let result: NonNullable<Response["result"]>;
    let answer: ConnectError | undefined;
    let cause: unknown;
    try {
      result = await this.#run(operation, running);
    } catch (error) {
      cause = error;
      answer = toConnectError(error, running);
      result = { case: "error", value: toOperationError(answer) };
    }
    this.#running.delete(id);
    const rpc = `checkpointd.v1.SessionService/${operation.case}`;
    const requestId = `${this.requestId}/${id}`;
    const { started } = running;
    const waitMs = performance.now() - started;
    this.options.logCall({ requestId, rpc, started, waitMs, answer, error: cause });
    if (!this.#closed) this.send({ id, result });
  }

  async #run(
    operation: OpenSessionRequest["operation"],
    signal: Signal,
  ): Promise<NonNullable<Response["result"]>> {
    const { operations, isReady } = this.options;
    if (!isReady()) throw notReady();
    switch (operation.case) {
      case "getTuple":
        return { case: "getTuple", value: await operations.getTuple(operation.value, signal) };
      case "put":
        return { case: "put", value: await operations.put(operation.value, signal) };
      case "putWrites":
        return { case: "putWrites", value: await operations.putWrites(operation.value, signal) };
      case "deleteThread":
        return {
          case: "deleteThread",
          value: await operations.deleteThread(operation.value, signal),
        };
      case "listPage":
        return { case: "listPage", value: await operations.listPage(operation.value, signal) };
      case "putExtending":
        return {
          case: "putExtending",
          value: await operations.putExtending(operation.value, signal),
        };
      default:
        throw new ConnectError(
          "operation: must be set to one this server knows",
          Code.Unimplemented,
        );
    }
  }
}

/** The signal of one operation that runs. */
class Running implements Signal {
  aborted = false;
  reason: unknown;
  readonly deadline: number;
  readonly #listeners: (() => void)[] = [];

  /** `timeoutMs` is the client's, 0 for none; then `callTimeoutMs` holds. */
  constructor(
    readonly started: number,
    readonly timeoutMs: number,
    callTimeoutMs: number,
  ) {
    this.deadline = started + (timeoutMs || callTimeoutMs);
  }

  /** In the words of a unary call. */
  timedOut(): ConnectError {
    return this.timeoutMs === 0
      ? limitPassed()
      : new ConnectError("the operation timed out", Code.DeadlineExceeded);
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

function toOperationError({ code, rawMessage, details }: ConnectError) {
  const value = { code, message: rawMessage };
  for (const detail of details) {
    if ("desc" in detail && detail.desc === ErrorDetailSchema) {
      return { ...value, detail: detail.value as ErrorDetail };
    }
  }
  return value;
}
