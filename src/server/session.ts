import type { MessageInitShape } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { type ErrorDetail, ErrorDetailSchema } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import type {
  OpenSessionRequest,
  OpenSessionResponseSchema,
} from "../../gen/checkpointd/v1/session_service_pb.js";
import type { Principal } from "../auth/principal.js";
import {
  type AnswerInit,
  type OperationName,
  offsetField,
  operationFields,
  operations,
  type Request,
} from "../protocol/operations.js";
import type { Call, Calls } from "./call.js";
import { notReady, toConnectError } from "./connect_error.js";
import { longestMs, mostUnaryMs } from "./limits.js";
import type { Operations } from "./operation_handlers.js";
import type { Usage } from "./usage.js";

type Response = MessageInitShape<typeof OpenSessionResponseSchema>;

/** What holds for all sessions of a server. Durations in milliseconds. */
export interface SessionOptions {
  operations: Operations;
  calls: Calls;
  isReady: () => boolean;
  /** The limit of an operation whose client sets none. */
  callTimeoutMs: number;
  /** Operations of one session that may run at a time. */
  maxInFlight: number;
  /** After which a client is asked to open another session; at twice that its session is ended. */
  maxAgeMs: number;
  /** Set where the server asks who calls. */
  usage?: Usage | undefined;
}

/** The server's side of one session, whatever stream carries it. */
export interface Session {
  /**
   * Carries out one operation, which came in so many bytes; the answer goes to `send`. Throws
   * INVALID_ARGUMENT when the client broke the session's rules, which ends the session.
   */
  receive(request: OpenSessionRequest, bytes: number): void;
  /** Operations without an answer. */
  inFlight(): number;
  /** Asks the client to move to another session. Idempotent. */
  sayGoodbye(): void;
  /** Gives up what is running: the client has gone, and hears of nothing. Idempotent. */
  close(): void;
}

/** Who opened a session, where the server asks. */
export interface SessionClient {
  principal: Principal;
  peer: string | undefined;
}

/** All sessions of a server. */
export interface Sessions {
  readonly options: SessionOptions;
  /**
   * Begins a session and greets the client. The log has each operation as `requestId/id`. `send`
   * returns how many bytes it sends. `end` is to end the stream: the client was
   * asked to go, has nothing under way, and yet stays; or with an error, its credential has ended.
   */
  begin(
    requestId: string,
    send: (response: Response) => number,
    end: (error?: ConnectError) => void,
    client?: SessionClient,
  ): Session;
  /** Those that are open, by age (overdue: asked to move, and still there), and all that were begun. */
  measures(): Record<"new" | "settled" | "overdue" | "begun", number>;
  /** Asks every client that there is to move. */
  retire(): void;
  /** Asks every client to move, and those that come later at once. */
  sayGoodbye(): void;
  /** Gives up everything that runs, which is answered with the error. */
  abort(error: ConnectError): void;
}

/**
 * Within which a client that was asked to go goes, when nothing of it is under way. One that stays
 * is frozen or gone, and a drain would wait for it in vain.
 */
const leaveMs = 3_000;

/** Until when a session counts as new. */
const newMs = 60_000;

/** How long before its credential ends a client is asked to move. */
const renewMs = 10_000;

/** What a server knows. */
const known = [
  ...Object.keys(operations).map((name) => operationFields[name as OperationName]),
  offsetField,
];

/** Keeps the sessions of a server. */
export function createSessions(options: SessionOptions): Sessions {
  const open = new Set<OpenSession>();
  let leaving = false;
  let begun = 0;
  return {
    options,
    begin(requestId, send, end, client) {
      const session = new OpenSession(options, requestId, send, end, client);
      open.add(session);
      begun++;
      session.onClose = () => open.delete(session);
      const { maxInFlight } = options;
      send({ result: { case: "welcome", value: { maxInFlight, operations: known } } });
      if (leaving) session.sayGoodbye();
      return session;
    },
    measures() {
      const measures = { new: 0, settled: 0, overdue: 0, begun };
      for (const session of open) measures[session.age()]++;
      return measures;
    },
    retire() {
      for (const session of open) session.sayGoodbye();
    },
    sayGoodbye() {
      leaving = true;
      for (const session of open) session.sayGoodbye();
    },
    abort(error) {
      for (const session of open) session.abort(error);
    },
  };
}

class OpenSession implements Session {
  onClose = () => {};
  readonly #running = new Map<number, Call>();
  // Spread, so that the clients of a server that was started do not all move at once.
  readonly #movesAt: number;
  readonly #begun = performance.now();
  /** When goodbye was said. */
  #askedAt = Number.POSITIVE_INFINITY;
  /** Looks, once goodbye was said, from time to time whether nothing is under way: then it ends. */
  #leaving: NodeJS.Timeout | undefined;
  readonly #lastEnd: NodeJS.Timeout;
  readonly #beforeExpiry: NodeJS.Timeout | undefined;
  readonly #leave: () => void;
  #closed = false;
  readonly #onCredentialEnd = () => {
    const error = toConnectError(this.client?.principal.ends.reason);
    this.abort(error);
    // What runs is answered first.
    setImmediate(() => this.end(error));
  };

  constructor(
    readonly options: SessionOptions,
    readonly requestId: string,
    readonly send: (response: Response) => number,
    readonly end: (error?: ConnectError) => void,
    readonly client: SessionClient | undefined,
  ) {
    const { principal } = client ?? {};
    this.#leave = options.usage?.open(principal, "sessions") ?? (() => {});
    const expiresMs = (principal?.expiresAt ?? Number.POSITIVE_INFINITY) - Date.now();
    const ageMs = options.maxAgeMs * (0.9 + 0.2 * Math.random());
    // Before the credential's end, so that its client moves with a new one and loses nothing.
    const movesMs = Math.min(ageMs, Math.max(expiresMs - renewMs, expiresMs / 2));
    this.#movesAt = performance.now() + movesMs;
    if (movesMs < ageMs) {
      this.#beforeExpiry = setTimeout(() => this.sayGoodbye(), Math.max(0, movesMs)).unref();
    }
    const lifeMs = Math.min(2 * options.maxAgeMs, longestMs);
    this.#lastEnd = setTimeout(() => {
      this.abort(new ConnectError("the session is too old", Code.Unavailable));
      this.end();
    }, lifeMs).unref();
    principal?.ends.addEventListener("abort", this.#onCredentialEnd);
    // Not before who begins it has it.
    if (principal?.ends.aborted) process.nextTick(this.#onCredentialEnd);
  }

  receive(request: OpenSessionRequest, bytes: number): void {
    const { id, timeoutMs, operation } = request;
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
    if (performance.now() > this.#movesAt) this.sayGoodbye();
    const { calls, callTimeoutMs } = this.options;
    const rpc = `checkpointd.v1.SessionService/${operation.case}`;
    const call = calls.begin(`${this.requestId}/${id}`, rpc, "session", timeoutMs, request);
    call.source = this;
    call.principal = this.client?.principal;
    call.peer = this.client?.peer;
    call.requestBytes = bytes;
    calls.bound(call, Math.min(timeoutMs || callTimeoutMs, Math.max(callTimeoutMs, mostUnaryMs)));
    this.#running.set(id, call);
    void this.#carryOut(id, operation, call);
  }

  inFlight(): number {
    return this.#running.size;
  }

  age(): "new" | "settled" | "overdue" {
    const now = performance.now();
    if (now > this.#askedAt + leaveMs) return "overdue";
    return now < this.#begun + newMs ? "new" : "settled";
  }

  sayGoodbye(): void {
    if (this.#leaving || this.#closed) return;
    this.#askedAt = performance.now();
    this.#leaving = setInterval(() => {
      if (this.#running.size === 0) this.end();
    }, leaveMs).unref();
    this.send({ result: { case: "goodbye", value: {} } });
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    clearInterval(this.#leaving);
    clearTimeout(this.#lastEnd);
    clearTimeout(this.#beforeExpiry);
    this.client?.principal.ends.removeEventListener("abort", this.#onCredentialEnd);
    this.#leave();
    this.abort(new ConnectError("the client went away", Code.Canceled));
    this.onClose();
  }

  abort(error: ConnectError): void {
    for (const running of this.#running.values()) running.abort(error);
  }

  async #carryOut(
    id: number,
    operation: OpenSessionRequest["operation"],
    call: Call,
  ): Promise<void> {
    let result: NonNullable<Response["result"]>;
    try {
      if (!this.options.isReady()) throw notReady();
      call.take(call.requestBytes);
      this.options.usage?.begin(call);
      if (operation.case === undefined || !(operation.case in operations)) {
        const unknown = "operation: must be set to one this server knows";
        throw new ConnectError(unknown, Code.Unimplemented);
      }
      result = await run(this.options.operations, operation as Operation<OperationName>, call);
      call.conclude(performance.now() - call.started);
    } catch (error) {
      const answer = call.conclude(performance.now() - call.started, error) as ConnectError;
      result = { case: "error", value: toOperationError(answer) };
    }
    this.#running.delete(id);
    if (!this.#closed) call.answerBytes = this.send({ id, result });
    call.end();
  }
}

interface Operation<Name extends OperationName> {
  case: Name;
  value: Request<Name>;
}

async function run<Name extends OperationName>(
  operations: Operations,
  { case: name, value }: Operation<Name>,
  call: Call,
): Promise<NonNullable<Response["result"]>> {
  const answer: AnswerInit<Name> = await operations[name](value, call);
  // The cases of what is asked and of what is answered have the same names.
  return { case: name, value: answer } as NonNullable<Response["result"]>;
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
