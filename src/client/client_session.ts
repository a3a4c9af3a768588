/** The client's side of a session: operations on one long-lived stream. */
import type { Duplex } from "node:stream";
import { fromBinary } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { ErrorDetailSchema } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import { OpenSessionResponseSchema } from "../../gen/checkpointd/v1/session_service_pb.js";
import { encodeOperation, encodeSessionRequest, type SessionRequest } from "../protocol/encode.js";
import { createEnvelopeReader, endOfStream, joinSmall } from "../protocol/envelope.js";
import {
  type Answer,
  fieldNeeded,
  type OperationName,
  type RequestInit,
} from "../protocol/operations.js";
import { partingMs, requestIdHeader, sweepMs } from "../protocol/wire.js";
import { NotCarried, ofBegun, type TryContext } from "./carrier.js";
import { isNotBegun, NotTheService, notSent } from "./retry.js";
import { NoSessions, type SessionSocket, startTimer } from "./session_socket.js";

interface Pending {
  id: number;
  name: OperationName;
  /** What the server has to know for it. */
  needs: string;
  encode: (timeoutMs: number) => Uint8Array[];
  timeoutMs: number;
  deadline: number;
  idempotent: boolean;
  /** How long it is, once it was sent, and what was sent on the session up to its end. */
  bytes: number;
  sentBytes: number;
  resolve: (answer: unknown) => void;
  reject: (error: Error) => void;
}

// A peer that vanished without a word answers neither operations nor pings: known in 5 s while
// operations wait, and before the next one comes while none does. An idle session has a ping every
// 20 s: of thousands of agents a few hundred in a second, 20 us each.
const pingAfterMs = 2_000;
const idlePingMs = 20_000;
const pingTimeoutMs = 3_000;
// A ping waits behind what was sent before it, most of which the system holds without telling how
// far it is. The slowest network on which a server is not taken for dead meanwhile, in bytes a ms.
const leastBytesPerMs = 100;
// Within which a server that took the stream greets; longer, and something on the way holds
// streams back until they end.
const greetingMs = 2_500;
// What is written without waiting for more, so that the service works while the agent goes on: in
// bytes (32 invokes of a graph at a time: 40 % more in a second than without), and in time since
// the first of it (4 ms instead of 0.5 ms: 32 invokes at a time take 6 % less of the agent's CPU and
// 12 % less of the service's, and are 3 to 7 % faster; one at a time is no slower).
const portionBytes = 64 * 1024;
const patienceMs = 4;
// A large value is handed on in such pieces while no more than this is on its way.
const pieceBytes = 256 * 1024;
const unsentBytes = 1024 * 1024;

/** Larger requests have a session of their own. */
export const largeBytes = 256 * 1024;

/** One stream to the server, from its first operation to its end. */
export class ClientSession {
  #stream: SessionSocket | undefined;
  readonly #opening = new AbortController();
  readonly #sent = new Map<number, Pending>();
  readonly #waiting: Pending[] = [];
  readonly #read = createEnvelopeReader(
    Number.POSITIVE_INFINITY,
    () => broken(),
    (flags, message) => this.#receive(flags, message),
  );
  /** What waits to be written, together with what else is sent in the same tick. */
  #chunks: Uint8Array[] = [];
  #chunkBytes = 0;
  #heldSince = 0;
  /** What the connection has no room for yet. */
  readonly #outgoing: Uint8Array[] = [];
  #nextId = 1;
  #maxInFlight = 0;
  /** What the server knows, by the names of its fields. */
  #known: ReadonlySet<string> = new Set();
  #moving = false;
  #wasAsked = false;
  #over: Error | undefined;
  #overAt = 0;
  #sweep: NodeJS.Timeout | undefined;
  /** Cancels the timer that runs: of the greeting, or of the end of a session that was left. */
  #cancelLimit = () => {};
  #heardAt = performance.now();
  #pingedAt: number | undefined;
  /** The bytes of operations so far, and how many of them have arrived for sure: they were answered. */
  #sentBytes = 0;
  #arrivedBytes = 0;
  #idlePing: NodeJS.Timeout | undefined;
  readonly #maxRequestBytes: number;

  /**
   * Waits for the stream that is being opened with its signal; operations may be given at once. One
   * of more than `maxRequestBytes` is not carried.
   */
  constructor(
    openSocket: (signal: AbortSignal) => Promise<SessionSocket>,
    maxRequestBytes: number,
  ) {
    this.#maxRequestBytes = maxRequestBytes;
    openSocket(this.#opening.signal).then(
      (stream) => this.#begin(stream),
      (error) =>
        this.#end(
          error instanceof NoSessions || error instanceof NotTheService ? error : broken(error),
        ),
    );
  }

  /** Whether new operations should go to another session. */
  get isLeaving(): boolean {
    return this.#moving || this.#over !== undefined;
  }

  /** Whether the service said that its client is to go on with another session. */
  get wasAskedToLeave(): boolean {
    return this.#wasAsked;
  }

  /** When it turned out that there are no sessions, by performance.now(), and whether that may pass. */
  get foundNone(): { at: number; isPassing: boolean } | undefined {
    if (!(this.#over instanceof NoSessions)) return undefined;
    return { at: this.#overAt, isPassing: this.#over.isPassing };
  }

  /**
   * Carries out one operation. Rejects with the error a unary call would have, with UNAVAILABLE
   * when the session breaks (the operation may or may not have been carried out), with
   * DEADLINE_EXCEEDED, with the signal's reason when it aborts, and with NotCarried: where there
   * are no sessions or the server does not know the operation on one, above the client's own limit
   * of a request, and when the server ended the session with an error, which one of its operations
   * caused: as a unary call each is told its own. So is a large one whose stream something on the way
   * reset, as nginx does above client_max_body_size; of a call it says that in words. An operation that
   * must not be carried out twice has UNAVAILABLE then, and what ends it once it was sent is marked as
   * the error of one that was begun, but for refusals that say that it was not.
   */
  run<Name extends OperationName>(
    name: Name,
    request: RequestInit<Name>,
    { deadline, signal, idempotent = true, span }: TryContext,
  ): Promise<Answer<Name>> {
    return new Promise((resolve, reject) => {
      if (this.#over || signal?.aborted) {
        reject(this.#over ? notSent(this.#over) : signal?.reason);
        return;
      }
      const id = this.#nextId++;
      const timeoutMs = deadline - performance.now();
      const trace = span?.begin();
      const pending: Pending = {
        id,
        name,
        needs: fieldNeeded(name, request),
        encode: (timeoutMs) => encodeOperation(id, timeoutMs, name, request, trace),
        timeoutMs,
        deadline,
        idempotent,
        bytes: 0,
        sentBytes: 0,
        // The answer that comes under an operation's id is that operation's.
        resolve: resolve as (answer: unknown) => void,
        reject,
      };
      if (signal) {
        const onAbort = () => {
          this.#giveUp(pending, signal.reason);
          this.#sendWaiting();
          this.#restIfIdle();
        };
        signal.addEventListener("abort", onAbort);
        const forget = () => signal.removeEventListener("abort", onAbort);
        pending.resolve = (answer) => {
          forget();
          resolve(answer as Answer<Name>);
        };
        pending.reject = (error) => {
          forget();
          reject(error);
        };
      }
      if (this.#sweep === undefined) {
        this.#heardAt = performance.now();
        // It keeps the process alive, which an idle connection does not.
        this.#sweep = setInterval(() => this.#checkDeadlines(), sweepMs);
      }
      if (this.#sent.size < this.#maxInFlight) this.#send(pending, timeoutMs);
      else this.#waiting.push(pending);
    });
  }

  /** Ends when what is under way is answered. Idempotent. */
  leave(): void {
    this.#move();
  }

  /** Closes the connection at once; what is under way fails. Idempotent. */
  abort(error: ConnectError): void {
    this.#end(error);
  }

  #send(pending: Pending, timeoutMs: number): void {
    const { id, needs } = pending;
    if (!this.#known.has(needs)) {
      pending.reject(new NotCarried(`the server knows no ${needs} on a session`));
      this.#restIfIdle();
      return;
    }
    const chunks = pending.encode(Math.max(1, Math.ceil(timeoutMs)));
    let bytes = 0;
    for (const { length } of chunks) bytes += length;
    if (bytes > this.#maxRequestBytes) {
      pending.reject(new NotCarried(`${bytes} bytes are above the limit`));
      this.#restIfIdle();
      return;
    }
    this.#sentBytes += bytes;
    pending.bytes = bytes;
    pending.sentBytes = this.#sentBytes;
    this.#sent.set(id, pending);
    this.#write(chunks, bytes);
  }

  /**
   * What follows in the same tick travels in the same write. But a tick can last: LangGraph takes
   * all steps of a run in one, so neither its first operation waits for the others nor much or
   * for long.
   */
  #write(chunks: Uint8Array[], bytes: number): void {
    const now = performance.now();
    if (this.#chunks.length === 0) {
      this.#heldSince = now;
      process.nextTick(() => this.#flush());
    }
    this.#chunks.push(...chunks);
    this.#chunkBytes += bytes;
    if (
      this.#sent.size === 1 ||
      this.#chunkBytes >= portionBytes ||
      now - this.#heldSince >= patienceMs
    ) {
      this.#flush();
    }
  }

  /** Sends what is no operation. */
  #tell(message: SessionRequest): void {
    this.#write(encodeSessionRequest(message), 0);
  }

  #flush(): void {
    const chunks = this.#chunks;
    this.#chunks = [];
    this.#chunkBytes = 0;
    if (this.#stream === undefined || this.#over !== undefined || chunks.length === 0) return;
    for (const chunk of joinSmall(chunks)) {
      for (let at = 0; at < chunk.length; at += pieceBytes) {
        this.#outgoing.push(chunk.subarray(at, at + pieceBytes));
      }
    }
    this.#pump(this.#stream.duplex);
  }

  /** Piece by piece, so that a large request on a slow network is seen to get on. */
  #pump(duplex: Duplex): void {
    duplex.cork();
    let pieces = 0;
    while (pieces < this.#outgoing.length && duplex.writableLength < unsentBytes) {
      duplex.write(this.#outgoing[pieces++]);
    }
    this.#outgoing.splice(0, pieces);
    duplex.uncork();
  }

  #begin(stream: SessionSocket): void {
    if (this.#over !== undefined) {
      stream.destroy();
      return;
    }
    this.#stream = stream;
    this.#cancelLimit = startTimer(greetingMs, () => this.#end(new NoSessions("no greeting")));
    stream.onLeave(() => {
      this.#wasAsked = true;
      this.#move();
    });
    this.#idlePing = setInterval(() => this.#pingIdle(), idlePingMs).unref();
    const { duplex } = stream;
    duplex.on("data", (chunk: Buffer) => {
      this.#heardAt = performance.now();
      try {
        this.#read(chunk);
      } catch (error) {
        this.#end(broken(error as Error));
      }
    });
    duplex.on("drain", () => {
      if (this.#outgoing.length === 0) return;
      // A ping would wait behind what is left; that it gets less is a sign of life as well.
      this.#heardAt = performance.now();
      this.#pump(duplex);
    });
    duplex.on("error", (error) => this.#end(broken(error)));
    duplex.on("close", () => this.#end(broken()));
  }

  #receive(flags: number, message: Uint8Array): void {
    if (flags === endOfStream) {
      this.#end(endError(message));
      return;
    }
    const { id, result } = fromBinary(OpenSessionResponseSchema, message);
    if (result.case === "welcome") {
      this.#cancelLimit();
      this.#maxInFlight = result.value.maxInFlight;
      this.#known = new Set(result.value.operations);
    } else if (result.case === "goodbye") {
      this.#wasAsked = true;
      this.#move();
    } else {
      const pending = this.#sent.get(id);
      if (pending === undefined) return;
      this.#sent.delete(id);
      this.#arrivedBytes = Math.max(this.#arrivedBytes, pending.sentBytes);
      if (result.case === "error") {
        const { code, message, detail } = result.value;
        const details = detail ? [{ desc: ErrorDetailSchema, value: detail }] : undefined;
        const requestId = this.#stream?.requestId;
        const headers = requestId ? { [requestIdHeader]: `${requestId}/${id}` } : undefined;
        const error = new ConnectError(message, code, headers, details);
        // The service ends what is under way when its credential ends, with UNAUTHENTICATED.
        pending.reject(pending.idempotent || isNotBegun(error) ? error : ofBegun(error));
      } else {
        pending.resolve(result.value);
      }
    }
    this.#sendWaiting();
    this.#restIfIdle();
  }

  #sendWaiting(): void {
    while (this.#waiting.length > 0 && this.#sent.size < this.#maxInFlight) {
      const pending = this.#waiting.shift() as Pending;
      this.#send(pending, pending.deadline - performance.now());
    }
  }

  #restIfIdle(): void {
    if (this.#sent.size + this.#waiting.length > 0) return;
    clearInterval(this.#sweep);
    this.#sweep = undefined;
    if (!this.#moving || this.#stream === undefined) return;
    this.#stream.duplex.end();
    this.#cancelLimit();
    this.#cancelLimit = startTimer(partingMs, () => this.#end(broken()));
  }

  /** No new operations; the stream ends when those under way are answered. */
  #move(): void {
    this.#moving = true;
    this.#restIfIdle();
  }

  #checkDeadlines(): void {
    const now = performance.now();
    for (const pending of [...this.#sent.values(), ...this.#waiting]) {
      const { name, deadline, timeoutMs } = pending;
      // A page is no later than the stream would be whose next tuple arrives in time.
      const isArriving = name === "listPage" && now <= this.#heardAt + timeoutMs;
      if (now > deadline && !isArriving) this.#giveUp(pending, deadlineExceeded());
    }
    this.#sendWaiting();
    this.#restIfIdle();
    this.#listen(now);
  }

  #giveUp(pending: Pending, error: Error): void {
    const { id } = pending;
    const place = this.#waiting.indexOf(pending);
    if (place >= 0) {
      this.#waiting.splice(place, 1);
    } else if (this.#sent.delete(id)) {
      this.#tell({ id, operation: { case: "cancel", value: {} } });
    }
    // Does nothing to what is answered.
    pending.reject(error);
  }

  /** Pings a server that was not heard of for long, and gives it up when it does not answer. */
  #listen(now: number): void {
    if (this.#stream === undefined || now - this.#heardAt <= pingAfterMs) {
      this.#pingedAt = undefined;
    } else if (this.#pingedAt === undefined) {
      this.#ping(now);
    } else if (now - this.#pingedAt > this.#pingTimeout()) {
      this.#endUnlessHeard(this.#pingedAt);
    }
  }

  #pingIdle(): void {
    // While operations wait, their sweep listens.
    if (this.#sweep !== undefined || this.#over !== undefined) return;
    const now = performance.now();
    this.#ping(now);
    setTimeout(() => this.#endUnlessHeard(now), this.#pingTimeout()).unref();
  }

  #pingTimeout(): number {
    return pingTimeoutMs + (this.#sentBytes - this.#arrivedBytes) / leastBytesPerMs;
  }

  #ping(now: number): void {
    this.#pingedAt = now;
    this.#tell({ id: this.#nextId++, operation: { case: "ping", value: {} } });
  }

  /** What arrived is read first: timers come before it in an agent that was busy for long. */
  #endUnlessHeard(since: number): void {
    setImmediate(() => {
      if (this.#heardAt < since) this.#end(broken(new Error("the server answered no ping")));
    });
  }

  #end(error: Error): void {
    if (this.#over !== undefined) return;
    this.#over = error;
    this.#overAt = performance.now();
    clearInterval(this.#sweep);
    clearInterval(this.#idlePing);
    this.#cancelLimit();
    for (const pending of this.#sent.values()) {
      const { idempotent, bytes } = pending;
      if (!idempotent) pending.reject(ofBegun(error instanceof NotCarried ? broken(error) : error));
      else if (bytes > largeBytes && isReset(error)) pending.reject(new NotCarried(error.message));
      else pending.reject(error);
    }
    for (const pending of this.#waiting) pending.reject(notSent(error));
    this.#sent.clear();
    this.#waiting.length = 0;
    this.#outgoing.length = 0;
    this.#opening.abort();
    this.#stream?.destroy();
  }
}

function broken(cause?: Error): ConnectError {
  const message = `the session broke${cause ? `: ${cause.message}` : ""}`;
  return new ConnectError(message, Code.Unavailable, undefined, undefined, cause);
}

/** Whether a stream of HTTP/2 was reset, and not its connection lost. */
function isReset({ cause }: Error): boolean {
  return cause instanceof Error && "code" in cause && cause.code === "ERR_HTTP2_STREAM_ERROR";
}

function deadlineExceeded(): ConnectError {
  return new ConnectError("the operation timed out", Code.DeadlineExceeded);
}

/** What the end-of-stream message says: the session's error, or that it is just over. */
function endError(message: Uint8Array): Error {
  const { error } = JSON.parse(new TextDecoder().decode(message));
  if (!error) return new ConnectError("the session is over", Code.Unavailable);
  return new NotCarried(String(error.message));
}
