/** Deadlines, tries, streams that go on where they broke off, and an end: whatever carries a call. */
import { setMaxListeners } from "node:events";
import { Code, ConnectError } from "@connectrpc/connect";
import { isOfBegun, type Service, type TryContext } from "./carrier.js";
import { checkInteger, checkOptions, throwIfAborted } from "./options.js";
import {
  errorDetail,
  gaveUp,
  isNotBegun,
  isRetryable,
  pauseBefore,
  type RetryOptions,
} from "./retry.js";
import type { OpenService, ServiceOptions } from "./service.js";

/** What holds for every call of a saver. */
export interface CallsOptions extends ServiceOptions {
  /**
   * How long a call may take, retries included, in milliseconds. For a list: how long it may
   * take until the next tuple is there. Default 30000, at most 2^31 - 1.
   */
  timeoutMs?: number;
  /** How calls that found no server are repeated. */
  retry?: RetryOptions;
}

/** How a call may be made again, and given up. */
export interface CallContext {
  /** Whether a call of which nobody knows what came of it may be made again. Default true. */
  idempotent?: boolean;
  /** Gives the call up, with its reason. */
  signal?: AbortSignal | undefined;
}

interface OpenStream<Message> {
  messages: AsyncIterator<Message>;
  controller: AbortController;
}

/** Makes the calls of one saver until it is ended. */
export class Calls {
  readonly #service: Service;
  readonly #abort: OpenService["abort"];
  readonly #explain: OpenService["explain"];
  readonly #credential: OpenService["credential"];
  readonly #timeoutMs: number;
  readonly #retry: Required<RetryOptions>;
  /** Those of the streams and lists under way; aborting one ends its stream or list. */
  readonly #reading = new Set<AbortController>();
  readonly #ending = new AbortController();
  #running = 0;
  #onIdle: (() => void) | undefined;
  #ended: Promise<void> | undefined;

  /** Throws a TypeError naming the option if its value is not allowed. */
  constructor(opened: OpenService, { timeoutMs = 30_000, retry = {} }: CallsOptions) {
    this.#service = opened.service;
    this.#abort = opened.abort;
    this.#explain = opened.explain;
    this.#credential = opened.credential;
    // Every call that waits for another try listens to it.
    setMaxListeners(0, this.#ending.signal);
    checkOptions("retry", retry, retryOptions);
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
  }

  /**
   * Makes one call, repeated from the start while the service cannot be reached; one that is not
   * idempotent only where the service certainly did not begin it. Rejects with the
   * error of the last try that says more than that the deadline passed, and with the signal's reason
   * when it aborts. Settles by the deadline whatever the connection does. {@link end} waits for it.
   */
  async call<Answer>(
    once: (service: Service, context: TryContext) => Promise<Answer>,
    { idempotent = true, signal }: CallContext = {},
  ): Promise<Answer> {
    this.#checkOpen();
    throwIfAborted(signal);
    const deadline = this.#deadline();
    let failure: unknown;
    let isRenewed = false;
    this.#running++;
    try {
      for (let attempt = 1; ; attempt++) {
        const { turn } = this.#credential;
        try {
          return await once(this.#service, { deadline, signal, idempotent });
        } catch (thrown) {
          // Why it was given up says more than what that did to it.
          throwIfAborted(signal);
          const error = await this.#explain(thrown, deadline);
          if (!isRenewed && !this.#isEnding && this.#credential.renew(turn, error)) {
            isRenewed = true;
            // Refused before it was begun, but for those whose credential ended meanwhile.
            if (idempotent || !isOfBegun(thrown)) continue;
          }
          if (!idempotent && !isNotBegun(thrown)) throw error;
          failure = causeOf(error, failure, deadline);
          await this.#pause(attempt, deadline, failure, signal);
        }
      }
    } finally {
      this.#running--;
      if (this.#running === 0) this.#onIdle?.();
    }
  }

  /**
   * The messages of a stream that `open` opens, and opens again where it broke off. `took` is told
   * of each message, and has to see to it that what is opened then goes on after the last one. The
   * number of tries and the time for the next message start anew with every message. Leaving the
   * loop early cancels the call; when the signal aborts it rejects with its reason.
   */
  async *stream<Message>(
    open: (service: Service, context: Partial<TryContext>) => AsyncIterable<Message>,
    took: (message: Message) => void,
    signal?: AbortSignal,
  ): AsyncGenerator<Message, void, undefined> {
    let stream: OpenStream<Message> | undefined;
    const onAbort = () => stream?.controller.abort(signal?.reason);
    signal?.addEventListener("abort", onAbort);
    try {
      let failure: unknown;
      let isRenewed = false;
      let turn = 0;
      for (let attempt = 1, deadline = this.#deadline(); ; ) {
        this.#checkOpen();
        throwIfAborted(signal);
        if (!stream) turn = this.#credential.turn;
        let message: IteratorResult<Message>;
        // Only around our own reading: what a reader throws into the generator is not a
        // reason to open another stream.
        try {
          stream ??= this.#open(open);
          message = await nextMessage(stream, deadline);
        } catch (thrown) {
          this.#close(stream);
          stream = undefined;
          throwIfAborted(signal);
          const error = await this.#explain(thrown, deadline);
          if (!isRenewed && this.#credential.renew(turn, error)) {
            isRenewed = true;
            continue;
          }
          failure = causeOf(error, failure, deadline);
          await this.#pause(attempt++, deadline, failure, signal);
          continue;
        }
        if (message.done) return;
        took(message.value);
        yield message.value;
        attempt = 1;
        failure = undefined;
        isRenewed = false;
        deadline = this.#deadline();
      }
    } finally {
      signal?.removeEventListener("abort", onAbort);
      this.#close(stream);
    }
  }

  /**
   * Lets `read` make calls with a signal that aborts when the loop over what it yields is left, when
   * the saver ends, and with `given`.
   */
  async *reading<Message>(
    read: (signal: AbortSignal) => AsyncIterable<Message>,
    given?: AbortSignal,
  ): AsyncGenerator<Message, void, undefined> {
    throwIfAborted(given);
    const controller = new AbortController();
    const onAbort = () => controller.abort(given?.reason);
    given?.addEventListener("abort", onAbort);
    this.#reading.add(controller);
    try {
      for await (const message of read(controller.signal)) {
        yield message;
        this.#checkOpen();
        throwIfAborted(given);
      }
    } finally {
      given?.removeEventListener("abort", onAbort);
      this.#reading.delete(controller);
      controller.abort();
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
    return this.#ended.then(() => this.#abort(endedError()));
  }

  #open<Message>(
    open: (service: Service, context: Partial<TryContext>) => AsyncIterable<Message>,
  ): OpenStream<Message> {
    const controller = new AbortController();
    const messages = open(this.#service, { signal: controller.signal })[Symbol.asyncIterator]();
    this.#reading.add(controller);
    return { messages, controller };
  }

  #close(stream: OpenStream<unknown> | undefined): void {
    if (stream === undefined) return;
    this.#reading.delete(stream.controller);
    // Resets the HTTP/2 stream if it is still open, which stops the server's reading.
    stream.controller.abort();
  }

  /** Waits before another try, or throws `error` and what was tried if there is to be none. */
  async #pause(
    attempt: number,
    deadline: number,
    error: unknown,
    abandoned?: AbortSignal,
  ): Promise<void> {
    const elapsedMs = performance.now() - deadline + this.#timeoutMs;
    if (this.#isEnding || attempt >= this.#retry.attempts || !isRetryable(error)) {
      throw gaveUp(error, attempt, elapsedMs);
    }
    const pauseMs = pauseBefore(attempt, this.#retry, error);
    // What went wrong says more than that the deadline would have passed.
    if (performance.now() + pauseMs >= deadline) throw gaveUp(error, attempt, elapsedMs);
    await pause(pauseMs, this.#ending.signal, abandoned);
    throwIfAborted(abandoned);
    if (this.#ending.signal.aborted) throw error;
  }

  get #isEnding(): boolean {
    return this.#ending.signal.aborted;
  }

  #deadline(): number {
    return performance.now() + this.#timeoutMs;
  }

  #checkOpen(): void {
    if (this.#ending.signal.aborted) throw endedError();
  }
}

/**
 * Why a call fails whose last try failed with `error`: a try that the deadline cut says less than
 * the one before it.
 */
function causeOf(error: unknown, earlier: unknown, deadline: number): unknown {
  const isCut =
    error instanceof ConnectError &&
    error.code === Code.DeadlineExceeded &&
    // Node's timers may be a turn of the event loop early: only the service has other deadlines.
    (errorDetail(error) === undefined || performance.now() >= deadline - 1);
  return isCut && earlier !== undefined ? earlier : error;
}

/** The stream's next message. Aborts the stream at the deadline. */
async function nextMessage<Message>(
  stream: OpenStream<Message>,
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

function endedError(): ConnectError {
  return new ConnectError("this ConnectSaver was ended: end() was called", Code.Canceled);
}

/** Resolves after that time, and sooner when a signal aborts. */
async function pause(ms: number, ...signals: (AbortSignal | undefined)[]): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  let wake = () => {};
  await new Promise<void>((resolve) => {
    wake = resolve;
    timer = setTimeout(resolve, ms);
    for (const signal of signals) {
      if (signal?.aborted) resolve();
      else signal?.addEventListener("abort", wake);
    }
  });
  clearTimeout(timer);
  for (const signal of signals) signal?.removeEventListener("abort", wake);
}

const retryOptions: Record<keyof RetryOptions, true> = {
  attempts: true,
  initialDelayMs: true,
  maxDelayMs: true,
};
