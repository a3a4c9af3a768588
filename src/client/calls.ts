/** The service's calls with deadlines, retries, resumed streams and an end. */
import { setMaxListeners } from "node:events";
import { setTimeout as delay } from "node:timers/promises";
import type { MessageInitShape } from "@bufbuild/protobuf";
import {
  type CallOptions,
  type Client,
  Code,
  ConnectError,
  createClient,
  type Transport,
} from "@connectrpc/connect";
import type { ChannelBlob, CheckpointTuple } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import {
  CheckpointService,
  type DeleteThreadRequestSchema,
  type DeleteThreadResponse,
  type GetTupleRequestSchema,
  type GetTupleResponse,
  type ListRequestSchema,
  type PutResponse,
  type PutWritesRequestSchema,
  type PutWritesResponse,
} from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import type {
  ListPageRequestSchema,
  ListPageResponse,
} from "../../gen/checkpointd/v1/session_service_pb.js";
import { ThreadService } from "../../gen/checkpointd/v1/thread_service_pb.js";
import { errorDetail, gaveUp, isRetryable, pauseBefore, type RetryOptions } from "./retry.js";
import { type Answer, NotOnSession, type Operation, type Session } from "./session.js";
import { NoSessions } from "./session_stream.js";
import { type Put, ValueCache } from "./value_cache.js";

/** What a List asks for. `after` is not the caller's: it says where the list goes on. */
export type ListInit = Omit<
  MessageInitShape<typeof ListRequestSchema>,
  "after" | "omitUnchanged" | "$typeName"
>;

/** What holds for every call of a saver. */
export interface CallsOptions {
  /**
   * How long a call may take, retries included, in milliseconds. For a list: how long it may
   * take until the next tuple is there. Default 30000, at most 2^31 - 1.
   */
  timeoutMs?: number;
  /** How calls that found no server are repeated. */
  retry?: RetryOptions;
  /**
   * Up to how many bytes of the values put last are kept in memory, so that a large value that
   * begins as the one before it in its channel (the messages of a conversation) is not sent again
   * as a whole: the service makes it of the stored one and of what was added. Values below 16 KiB
   * or above an eighth of this, puts under a lease and calls that are not on a session are always
   * sent whole. Default 32 MiB; 0 sends every value whole.
   */
  valueCacheBytes?: number;
  /** Sent with every call, for example `{ authorization: "Bearer …" }`. */
  headers?: Record<string, string> | Headers;
}

/** The unary operations, by their names in the client. */
interface UnaryOperations {
  getTuple: [MessageInitShape<typeof GetTupleRequestSchema>, GetTupleResponse];
  put: [Put, PutResponse];
  putWrites: [MessageInitShape<typeof PutWritesRequestSchema>, PutWritesResponse];
  deleteThread: [MessageInitShape<typeof DeleteThreadRequestSchema>, DeleteThreadResponse];
}

/**
 * For how long no session is tried after `refusals` in a row. It may have been a balancer without a
 * server behind it for a moment, or a server too busy to greet; or there are none on this way. The
 * same for sessions that extend no values: it may have been a server of an earlier version.
 */
const noSessionsMs = (refusals: number) => Math.min(10 * 60_000, 1_000 * 2 ** (refusals - 1));

/**
 * Larger requests, and the pages of lists, have a session of their own, so that small operations
 * need not wait behind them.
 */
const smallBytes = 256 * 1024;

type ListPosition = ListInit &
  Pick<MessageInitShape<typeof ListRequestSchema>, "after" | "omitUnchanged">;

interface Stream<Message> {
  messages: AsyncIterator<Message>;
  controller: AbortController;
}

/** Makes the calls of one saver until it is ended. */
export class Calls {
  /** The other service's calls, for {@link Calls.attempt} and {@link Calls.stream}. */
  readonly threads: Client<typeof ThreadService>;
  readonly #client: Client<typeof CheckpointService>;
  readonly #openSession: ((headers: Headers | undefined) => Session) | undefined;
  readonly #sessions: { small?: Session; large?: Session } = {};
  /** How often in a row there was no session. */
  readonly #refusals = { small: 0, large: 0 };
  readonly #timeoutMs: number;
  readonly #retry: Required<RetryOptions>;
  readonly #headers: Headers | undefined;
  readonly #valueCache: ValueCache;
  /** From when on values may be extended, by performance.now(), and how often they could not. */
  #extendsFrom = 0;
  #extendsRefusals = 0;
  /** Of streams and lists. */
  readonly #reading = new Set<AbortController>();
  readonly #ending = new AbortController();
  #running = 0;
  #onIdle: (() => void) | undefined;
  #ended: Promise<void> | undefined;

  /**
   * Makes unary operations and lists on sessions that `openSession` opens, if it is given and
   * while the server has them, and all others over the transport. Throws a TypeError naming the
   * option if its value is not allowed.
   */
  constructor(
    transport: Transport,
    options: CallsOptions,
    openSession?: (headers: Headers | undefined) => Session,
  ) {
    this.#openSession = openSession;
    this.#client = createClient(CheckpointService, transport);
    this.threads = createClient(ThreadService, transport);
    // Every call that waits for another try listens to it.
    setMaxListeners(0, this.#ending.signal);
    const { timeoutMs = 30_000, retry = {}, valueCacheBytes = 32 * 1024 * 1024, headers } = options;
    const { attempts, initialDelayMs = 100, maxDelayMs = 2_000 } = retry;
    this.#timeoutMs = checkInteger("timeoutMs", timeoutMs, 1);
    this.#retry = {
      attempts:
        attempts === undefined
          ? Number.POSITIVE_INFINITY
          : checkInteger("retry.attempts", attempts, 1),
      initialDelayMs: checkInteger("retry.initialDelayMs", initialDelayMs, 0),
      maxDelayMs: checkInteger("retry.maxDelayMs", maxDelayMs, 0),
    };
    this.#valueCache = new ValueCache(checkInteger("valueCacheBytes", valueCacheBytes, 0));
    this.#headers = headers === undefined ? undefined : new Headers(headers);
  }

  /**
   * Makes one call, repeated while the server cannot be reached. Rejects with the error of the
   * last try. Settles by the deadline whatever the connection does.
   */
  unary<Name extends keyof UnaryOperations>(
    name: Name,
    request: UnaryOperations[Name][0],
  ): Promise<UnaryOperations[Name][1]> {
    return this.#repeat((timeoutMs) => this.#once(name, request, timeoutMs));
  }

  /** Makes the call that stores a checkpoint, as `unary` does, with as few bytes as it takes. */
  put(request: Put): Promise<unknown> {
    return this.#repeat(async (timeoutMs) => {
      const isExtended =
        this.#valueCache.concerns(request) && (await this.#extend(request, timeoutMs));
      return isExtended || this.#once("put", request, timeoutMs);
    });
  }

  async #once<Name extends keyof UnaryOperations>(
    name: Name,
    request: UnaryOperations[Name][0],
    timeoutMs: () => number,
  ): Promise<UnaryOperations[Name][1]> {
    const operation = { case: name, value: request } as Operation;
    const answer = await this.#onSession(operation, sizeOf(request), timeoutMs());
    if (answer) return answer.value as UnaryOperations[Name][1];
    const call = this.#client[name] as (
      request: UnaryOperations[Name][0],
      options: CallOptions,
    ) => Promise<UnaryOperations[Name][1]>;
    return call(request, this.#callOptions(timeoutMs()));
  }

  /** Stores a checkpoint by what its values add; false where there is no session that does so. */
  async #extend(request: Put, timeoutMs: () => number): Promise<boolean> {
    while (performance.now() >= this.#extendsFrom) {
      const extending = this.#valueCache.extend(request);
      const operation: Operation = { case: "putExtending", value: extending };
      try {
        const answer = await this.#onSession(operation, sizeOf(extending.put), timeoutMs());
        if (answer?.case !== "putExtending") return false;
        this.#valueCache.remember(request, answer.value.transactionId);
        this.#extendsRefusals = 0;
        return true;
      } catch (error) {
        if (isUnimplemented(error)) {
          this.#extendsFrom = performance.now() + noSessionsMs(++this.#extendsRefusals);
        } else if (errorDetail(error)?.reason === "NOT_STORED" && extending.prefixes.length > 0) {
          this.#valueCache.forget(request);
        } else {
          throw error;
        }
      }
    }
    return false;
  }

  /** The answer to an operation; undefined where it cannot be carried out on a session. */
  async #onSession(
    operation: Operation,
    size: "small" | "large",
    timeoutMs: number,
    signal?: AbortSignal,
  ): Promise<Answer | undefined> {
    try {
      return await this.#sessionFor(size)?.run(operation, timeoutMs, signal);
    } catch (error) {
      if (error instanceof NoSessions || error instanceof NotOnSession) return undefined;
      throw error;
    }
  }

  /** The session for operations of that size; undefined where there are none. */
  #sessionFor(size: "small" | "large"): Session | undefined {
    if (!this.#openSession) return undefined;
    const session = this.#sessions[size];
    if (session && !session.isLeaving) return session;
    const foundNoneAt = session?.foundNoneAt;
    const refusals = foundNoneAt === undefined ? 0 : Math.max(1, this.#refusals[size]);
    if (foundNoneAt !== undefined && performance.now() < foundNoneAt + noSessionsMs(refusals)) {
      return undefined;
    }
    this.#refusals[size] = refusals && refusals + 1;
    const opened = this.#openSession(this.#headers);
    this.#sessions[size] = opened;
    return opened;
  }

  /**
   * Makes one call of another kind with the options it is given, within the deadline; repeated
   * from the start while the server cannot be reached, unless it is not `idempotent`.
   */
  attempt<Answer>(
    call: (options: CallOptions) => Promise<Answer>,
    idempotent = true,
  ): Promise<Answer> {
    return this.#repeat((timeoutMs) => call(this.#callOptions(timeoutMs())), { idempotent });
  }

  /**
   * Tries until there is an answer, for which `end` waits, or until the signal aborts;
   * `timeoutMs` tells what is left of the call's time.
   */
  async #repeat<Answer>(
    once: (timeoutMs: () => number) => Promise<Answer>,
    { idempotent = true, signal }: { idempotent?: boolean; signal?: AbortSignal } = {},
  ): Promise<Answer> {
    this.#checkOpen();
    const deadline = this.#deadline();
    let failure: unknown;
    this.#running++;
    try {
      for (let attempt = 1; ; attempt++) {
        try {
          return await once(() => timeUntil(deadline));
        } catch (error) {
          if (!idempotent) throw error;
          failure = this.#causeOf(error, failure, deadline);
          await this.#pause(attempt, deadline, failure, signal);
        }
      }
    } finally {
      this.#running--;
      if (this.#running === 0) this.#onIdle?.();
    }
  }

  /**
   * The tuples that match, in the service's order, each once and complete, read as they are
   * asked for: on a session page by page, else as a stream. Either goes on after the last tuple
   * that arrived when the connection breaks. Leaving the loop early cancels what is under way.
   * Tuples share the blobs that they have in common.
   */
  async *list(request: ListInit): AsyncGenerator<CheckpointTuple, void, undefined> {
    const list: ListPosition = { ...request, omitUnchanged: true };
    if (list.limit === 0) return;
    // Those of the tuple before, by channel.
    let blobs = new Map<string, ChannelBlob>();
    for await (const tuples of this.#pages(list)) {
      for (const [i, tuple] of tuples.entries()) {
        this.#checkOpen();
        for (const channel of tuple.unchangedChannels) {
          const blob = blobs.get(channel);
          if (blob) tuple.blobs.push(blob);
        }
        tuple.unchangedChannels = [];
        blobs = new Map(tuple.blobs.map((blob) => [blob.channel, blob]));
        // The page must not hold a long history for its consumer.
        tuples[i] = undefined as never;
        yield tuple;
      }
    }
  }

  /** The tuples as they come. `list` is kept where it goes on. */
  async *#pages(list: ListPosition): AsyncGenerator<CheckpointTuple[], void, undefined> {
    const controller = new AbortController();
    this.#reading.add(controller);
    const { signal } = controller;
    try {
      let page = await this.#page({ list: { ...list } }, signal);
      for (let pages = 1; page; pages++) {
        const { tuples, nextMaxTuples } = page;
        if (nextMaxTuples === 0) {
          yield tuples;
          return;
        }
        const { checkpointJson } = advance(list, tuples);
        const request = {
          list: { ...list },
          maxTuples: nextMaxTuples,
          afterCheckpointJson: checkpointJson,
        };
        // From the second page on the next is read while one is consumed. What fails before its
        // turn comes is read anew then: the tries of who waits for it have not begun.
        let ahead = pages > 1 ? this.#page(request, signal) : undefined;
        ahead?.catch(() => {
          ahead = undefined;
        });
        yield tuples;
        page = await (ahead ?? this.#page(request, signal));
      }
    } finally {
      this.#reading.delete(controller);
      controller.abort();
    }
    for await (const { tuple } of this.stream((options) => this.#client.list(list, options))) {
      yield [advance(list, [tuple])];
      if (list.limit === 0) return;
    }
  }

  /** One page of a list; undefined where there are no sessions that have pages. */
  async #page(
    request: MessageInitShape<typeof ListPageRequestSchema>,
    signal: AbortSignal,
  ): Promise<ListPageResponse | undefined> {
    if (!this.#openSession) return undefined;
    const operation = { case: "listPage", value: request } as Operation;
    try {
      const answer = await this.#repeat(
        (timeoutMs) => this.#onSession(operation, "large", timeoutMs(), signal),
        { signal },
      );
      return answer?.value as ListPageResponse | undefined;
    } catch (error) {
      if (isUnimplemented(error)) return undefined;
      throw error;
    }
  }

  /**
   * The messages of a stream that `open` opens, and opens again where it broke off: after the
   * last message that was taken, which is for `open` to know. The number of tries and the time
   * for the next message start anew with every message. Leaving the loop early cancels the call.
   */
  async *stream<Message>(
    open: (options: CallOptions) => AsyncIterable<Message>,
  ): AsyncGenerator<Message, void, undefined> {
    let stream: Stream<Message> | undefined;
    try {
      let failure: unknown;
      for (let attempt = 1, deadline = this.#deadline(); ; ) {
        this.#checkOpen();
        let message: IteratorResult<Message>;
        // Only around our own reading: what a reader throws into the generator is not a
        // reason to open another stream.
        try {
          stream ??= this.#open(open);
          message = await nextMessage(stream, deadline);
        } catch (error) {
          this.#close(stream);
          stream = undefined;
          failure = this.#causeOf(error, failure, deadline);
          await this.#pause(attempt++, deadline, failure);
          continue;
        }
        if (message.done) return;
        yield message.value;
        attempt = 1;
        failure = undefined;
        deadline = this.#deadline();
      }
    } finally {
      this.#close(stream);
    }
  }

  /**
   * Fails every call from now on, and every list under way. Resolves when no other call runs,
   * at the latest after the deadline of one call: a put under way is not thrown away.
   * Idempotent.
   */
  end(): Promise<void> {
    this.#ended ??= new Promise((resolve) => {
      this.#onIdle = resolve;
      this.#ending.abort();
      for (const controller of this.#reading) controller.abort(endedError());
      if (this.#running === 0) resolve();
    });
    return this.#ended.then(() => {
      for (const session of Object.values(this.#sessions)) session.abort(endedError());
    });
  }

  #open<Message>(open: (options: CallOptions) => AsyncIterable<Message>): Stream<Message> {
    const controller = new AbortController();
    // No deadline for the stream as a whole (0 also turns off one the transport may have): a
    // history is read as slowly as its reader likes.
    const options = { ...this.#callOptions(0), signal: controller.signal };
    const messages = open(options)[Symbol.asyncIterator]();
    this.#reading.add(controller);
    return { messages, controller };
  }

  #close(stream: Stream<unknown> | undefined): void {
    if (stream === undefined) return;
    this.#reading.delete(stream.controller);
    // Resets the HTTP/2 stream if it is still open, which stops the server's reading.
    stream.controller.abort();
  }

  /**
   * Why a call fails whose last try failed with `error`: a try that the deadline cut says less than
   * the one before it.
   */
  #causeOf(error: unknown, earlier: unknown, deadline: number): unknown {
    const isCut =
      error instanceof ConnectError &&
      error.code === Code.DeadlineExceeded &&
      performance.now() >= deadline - 1;
    return isCut && earlier !== undefined ? earlier : error;
  }

  /** Waits before another try, or throws `error` and what was tried if there is to be none. */
  async #pause(
    attempt: number,
    deadline: number,
    error: unknown,
    abandoned?: AbortSignal,
  ): Promise<void> {
    const ending = this.#ending.signal;
    const signal = abandoned ? AbortSignal.any([ending, abandoned]) : ending;
    const elapsedMs = performance.now() - deadline + this.#timeoutMs;
    if (signal.aborted || attempt >= this.#retry.attempts || !isRetryable(error)) {
      throw gaveUp(error, attempt, elapsedMs);
    }
    const pauseMs = pauseBefore(attempt, this.#retry, error);
    // What went wrong says more than that the deadline would have passed.
    if (performance.now() + pauseMs >= deadline) throw gaveUp(error, attempt, elapsedMs);
    await delay(pauseMs, undefined, { signal }).catch(() => {
      throw error;
    });
  }

  #callOptions(timeoutMs: number): CallOptions {
    return this.#headers === undefined ? { timeoutMs } : { timeoutMs, headers: this.#headers };
  }

  #deadline(): number {
    return performance.now() + this.#timeoutMs;
  }

  #checkOpen(): void {
    if (this.#ending.signal.aborted) throw endedError();
  }
}

/** The stream's next message. Aborts the stream at the deadline. */
async function nextMessage<Message>(
  stream: Stream<Message>,
  deadline: number,
): Promise<IteratorResult<Message>> {
  const timer = setTimeout(
    () => {
      stream.controller.abort(
        new ConnectError("the stream's next message did not arrive in time", Code.DeadlineExceeded),
      );
    },
    Math.max(1, deadline - performance.now()),
  );
  try {
    return await stream.messages.next();
  } finally {
    clearTimeout(timer);
  }
}

/** Moves a list behind tuples that came, of which there is one; returns the last. */
function advance(list: ListPosition, tuples: readonly (CheckpointTuple | undefined)[]) {
  const last = tuples.at(-1);
  if (last?.key === undefined) {
    throw new ConnectError("the service sent a list entry without a key", Code.Internal);
  }
  list.after = last.key;
  if (list.limit !== undefined) list.limit -= tuples.length;
  return last;
}

/** Whether the server does not know an operation of a session: it is of an earlier version. */
function isUnimplemented(error: unknown): boolean {
  return error instanceof ConnectError && error.code === Code.Unimplemented;
}

/** In whole milliseconds, at least one. */
function timeUntil(deadline: number): number {
  return Math.max(1, Math.ceil(deadline - performance.now()));
}

function endedError(): ConnectError {
  return new ConnectError("this ConnectSaver was ended: end() was called", Code.Canceled);
}

function checkInteger(name: string, value: number, least: number): number {
  if (Number.isInteger(value) && value >= least && value < 2 ** 31) return value;
  throw new TypeError(`${name} must be a whole number from ${least} to 2147483647, not ${value}`);
}

/** Which session a request is for, by the bytes of its values and its JSON. */
function sizeOf(request: UnaryOperations[keyof UnaryOperations][0]): "small" | "large" {
  let bytes = 0;
  if ("checkpointJson" in request) {
    bytes += (request.checkpointJson?.length ?? 0) + (request.metadataJson?.length ?? 0);
  }
  if ("blobs" in request) {
    for (const blob of request.blobs ?? []) bytes += blob.value?.data?.length ?? 0;
  } else if ("writes" in request) {
    for (const write of request.writes ?? []) bytes += write.value?.data?.length ?? 0;
  }
  return bytes <= smallBytes ? "small" : "large";
}
