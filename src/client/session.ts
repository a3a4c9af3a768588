/** The client's side of a session: operations on one long-lived stream. */
import {
  type ClientHttp2Session,
  type ClientHttp2Stream,
  connect,
  constants,
  type IncomingHttpHeaders,
  type IncomingHttpStatusHeader,
} from "node:http2";
import { create, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import { ErrorDetailSchema } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import {
  OpenSessionRequestSchema,
  type OpenSessionResponse,
  OpenSessionResponseSchema,
  SessionService,
} from "../../gen/checkpointd/v1/session_service_pb.js";
import { createEnvelopeReader, endOfStream, envelope } from "../envelope.js";
import { encodePut, encodePutWrites, largeBytes } from "./encode.js";

type Operation = NonNullable<MessageInitShape<typeof OpenSessionRequestSchema>["operation"]>;
type Answer = OpenSessionResponse["result"];

interface Pending {
  id: number;
  operation: Operation;
  deadline: number;
  resolve: (answer: Answer) => void;
  reject: (error: ConnectError) => void;
}

const path = `/${SessionService.typeName}/${SessionService.method.openSession.name}`;
const contentType = "application/connect+proto";
// A peer that vanished without a word answers neither operations nor pings (see transport.ts).
const pingAfterMs = 20_000;
const pingTimeoutMs = 5_000;
const sweepMs = 50;
// Within which a server that was reached greets. Longer, and something on the way holds
// streams back until they end.
const greetingMs = 5_000;
// What is enough to keep the server busy while the agent goes on.
const portionBytes = 64 * 1024;

/** Thrown by an operation when there are no sessions on the way to this server: use unary calls. */
export class NoSessions extends Error {}

/**
 * Thrown by all operations of a session that the server ended with an error, which one of them
 * caused: a unary call tells each its own.
 */
export class SessionFailed extends Error {}

/** One stream to the server, from its first operation to its end. */
export class Session {
  readonly #http2: ClientHttp2Session;
  readonly #stream: ClientHttp2Stream;
  readonly #sent = new Map<number, Pending>();
  readonly #waiting: Pending[] = [];
  readonly #read = createEnvelopeReader(
    Number.POSITIVE_INFINITY,
    () => broken(),
    (flags, message) => this.#receive(flags, message),
  );
  #chunks: Uint8Array[] = [];
  #chunkBytes = 0;
  /** Each tells somebody who was answered. */
  readonly #answered: (() => void)[] = [];
  #telling = false;
  /** What is sent in the tick in which somebody is told, lately. */
  #bytesPerAnswer = 1024;
  #nextId = 1;
  #maxInFlight = 0;
  #moving = false;
  #over: Error | undefined;
  #sweep: NodeJS.Timeout | undefined;
  #greeting: NodeJS.Timeout | undefined;
  #requestId: string | undefined;
  #heardAt = performance.now();
  #pinging = false;

  /** Opens the stream; operations may be sent at once. */
  constructor(baseUrl: string, headers: Headers | undefined) {
    const url = new URL(baseUrl);
    this.#http2 = connect(url.origin, { settings: { initialWindowSize: 4 * 1024 * 1024 } });
    this.#http2.on("error", (error) => this.#end(broken(error)));
    this.#http2.on("goaway", () => this.#move());
    this.#http2.on("close", () => this.#end(broken()));
    this.#http2.once("connect", () => {
      this.#http2.setLocalWindowSize(16 * 1024 * 1024);
      this.#greeting = setTimeout(() => this.#end(new NoSessions("no greeting")), greetingMs);
      this.#greeting.unref();
    });
    this.#stream = this.#http2.request({
      ...Object.fromEntries(headers ?? []),
      [constants.HTTP2_HEADER_METHOD]: "POST",
      [constants.HTTP2_HEADER_PATH]: url.pathname.replace(/\/$/, "") + path,
      "content-type": contentType,
      "connect-protocol-version": "1",
    });
    this.#stream.on("response", (response) => this.#onResponse(response));
    this.#stream.on("data", (chunk: Buffer) => {
      this.#heardAt = performance.now();
      this.#read(chunk);
      if (!this.#telling) this.#tell();
    });
    this.#stream.on("error", (error) => this.#end(broken(error)));
    this.#stream.on("close", () => this.#end(broken()));
    this.#http2.unref();
  }

  /** Whether new operations should go to another session. */
  get isLeaving(): boolean {
    return this.#moving || this.#over !== undefined;
  }

  /**
   * Carries out one operation. Rejects with the error a unary call would have, with UNAVAILABLE
   * when the session breaks (the operation may or may not have been carried out), with
   * DEADLINE_EXCEEDED, with NoSessions where the server or something before it has none, and
   * with SessionFailed.
   */
  run(operation: Operation, timeoutMs: number): Promise<Answer> {
    return new Promise((resolve, reject) => {
      if (this.#over) {
        reject(this.#over);
        return;
      }
      const id = this.#nextId++;
      const deadline = performance.now() + timeoutMs;
      const pending = { id, operation, deadline, resolve, reject };
      if (this.#sweep === undefined) {
        this.#http2.ref();
        this.#heardAt = performance.now();
        this.#sweep = setInterval(() => this.#checkDeadlines(), sweepMs);
      }
      if (this.#sent.size < this.#maxInFlight) this.#send(pending, timeoutMs);
      else this.#waiting.push(pending);
    });
  }

  /** Closes the connection at once; what is under way fails. Idempotent. */
  abort(error: ConnectError): void {
    this.#end(error);
  }

  #send(pending: Pending, timeoutMs: number): void {
    this.#sent.set(pending.id, pending);
    const { id, operation } = pending;
    const wholeMs = Math.max(1, Math.ceil(timeoutMs));
    if (operation.case === "put") this.#write(encodePut(id, wholeMs, operation.value));
    else if (operation.case === "putWrites") {
      this.#write(encodePutWrites(id, wholeMs, operation.value));
    } else this.#writeMessage({ id, timeoutMs: wholeMs, operation });
  }

  #writeMessage(init: MessageInitShape<typeof OpenSessionRequestSchema>): void {
    const bytes = toBinary(OpenSessionRequestSchema, create(OpenSessionRequestSchema, init));
    this.#write([envelope(0, bytes.length), bytes]);
  }

  #write(chunks: Uint8Array[]): void {
    // Everything that is sent in one tick travels in one write.
    if (this.#chunks.length === 0 && !this.#telling) process.nextTick(() => this.#flush());
    this.#chunks.push(...chunks);
    for (const { length } of chunks) this.#chunkBytes += length;
  }

  /**
   * Tells as many of those who were answered as are likely to go on with a portion of new
   * operations, and the others when that is on its way. Told all at once, agent and server would
   * take turns (32 puts in flight: a tenth fewer); told one by one, each would cost the agent
   * more, because code that just ran runs faster (32 invokes of a graph: a fifth fewer).
   */
  #tell(): void {
    const told = this.#answered.splice(0, Math.ceil(portionBytes / this.#bytesPerAnswer));
    if (told.length === 0) return;
    this.#telling = true;
    for (const tell of told) tell();
    // A tick that a microtask asks for comes when all other microtasks have run.
    queueMicrotask(() => process.nextTick(() => this.#goOn(told.length)));
  }

  #goOn(told: number): void {
    const bytes = Math.max(1, this.#chunkBytes / told);
    this.#bytesPerAnswer += (bytes - this.#bytesPerAnswer) / 8;
    this.#flush();
    this.#telling = this.#answered.length > 0;
    // Node writes to the socket when it is back in its event loop.
    if (this.#telling) setImmediate(() => this.#tell());
  }

  /** Small chunks are joined: each costs Node more than its bytes. Large ones are not copied. */
  #flush(): void {
    const chunks = this.#chunks;
    this.#chunks = [];
    this.#chunkBytes = 0;
    if (this.#over !== undefined || chunks.length === 0) return;
    this.#stream.cork();
    let small: Uint8Array[] = [];
    for (const chunk of chunks) {
      if (chunk.length < largeBytes) small.push(chunk);
      else {
        if (small.length > 0) this.#stream.write(Buffer.concat(small));
        small = [];
        this.#stream.write(chunk);
      }
    }
    if (small.length > 0) this.#stream.write(Buffer.concat(small));
    this.#stream.uncork();
  }

  #receive(flags: number, message: Uint8Array): void {
    if (flags === endOfStream) {
      this.#end(endError(message));
      return;
    }
    const { id, result } = fromBinary(OpenSessionResponseSchema, message);
    if (result.case === "welcome") {
      clearTimeout(this.#greeting);
      this.#maxInFlight = result.value.maxInFlight;
    } else if (result.case === "goodbye") {
      this.#move();
    } else {
      const pending = this.#sent.get(id);
      if (pending === undefined) return;
      this.#sent.delete(id);
      if (result.case === "error") {
        const { code, message, detail } = result.value;
        const details = detail ? [{ desc: ErrorDetailSchema, value: detail }] : undefined;
        const requestId = this.#requestId && { "x-request-id": `${this.#requestId}/${id}` };
        const error = new ConnectError(message, code, requestId || undefined, details);
        this.#answered.push(() => pending.reject(error));
      } else {
        this.#answered.push(() => pending.resolve(result));
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
    // An idle connection does not keep the process alive.
    this.#http2.unref();
    if (this.#moving) this.#stream.end();
  }

  /** No new operations; the stream ends when those under way are answered. */
  #move(): void {
    this.#moving = true;
    this.#restIfIdle();
  }

  #checkDeadlines(): void {
    const now = performance.now();
    for (const pending of this.#sent.values()) {
      if (now <= pending.deadline) continue;
      this.#sent.delete(pending.id);
      pending.reject(deadlineExceeded());
      this.#writeMessage({ id: pending.id, operation: { case: "cancel", value: {} } });
    }
    for (const pending of this.#waiting.filter(({ deadline }) => now > deadline)) {
      this.#waiting.splice(this.#waiting.indexOf(pending), 1);
      pending.reject(deadlineExceeded());
    }
    this.#sendWaiting();
    this.#restIfIdle();
    if (now - this.#heardAt > pingAfterMs) this.#ping();
  }

  #ping(): void {
    if (this.#pinging || this.#sweep === undefined || this.#over) return;
    this.#pinging = true;
    const timer = setTimeout(() => this.#end(broken()), pingTimeoutMs);
    this.#http2.ping(() => {
      clearTimeout(timer);
      this.#pinging = false;
      this.#heardAt = performance.now();
    });
  }

  #onResponse(headers: IncomingHttpHeaders & IncomingHttpStatusHeader): void {
    if (headers[":status"] === 200 && headers["content-type"] === contentType) {
      this.#requestId = headers["x-request-id"] as string | undefined;
      return;
    }
    // A server of an earlier version, or a proxy that knows no streams.
    this.#end(new NoSessions(`no sessions here: status ${headers[":status"]}`));
  }

  #end(error: Error): void {
    if (this.#over !== undefined) return;
    this.#over = error;
    clearInterval(this.#sweep);
    clearTimeout(this.#greeting);
    for (const pending of [...this.#sent.values(), ...this.#waiting]) {
      pending.reject(error as ConnectError);
    }
    this.#sent.clear();
    this.#waiting.length = 0;
    this.#stream.destroy();
    this.#http2.destroy();
  }
}

function broken(cause?: Error): ConnectError {
  const message = `the session broke${cause ? `: ${cause.message}` : ""}`;
  return new ConnectError(message, Code.Unavailable, undefined, undefined, cause);
}

function deadlineExceeded(): ConnectError {
  return new ConnectError("the operation timed out", Code.DeadlineExceeded);
}

/** What the end-of-stream message says: the session's error, or that it is just over. */
function endError(message: Uint8Array): Error {
  const { error } = JSON.parse(new TextDecoder().decode(message));
  if (!error) return new ConnectError("the session is over", Code.Unavailable);
  return new SessionFailed(String(error.message));
}
