/**
 * SessionService on the wire: as connect-es carries a bidirectional stream, for every protocol it
 * speaks, and for the protocol of our own client straight on what has the bytes, an HTTP/2 stream
 * or an upgraded HTTP/1.1 connection.
 *
 * The latter two speak the very same Connect protocol (enveloped messages: a byte of flags, four
 * of length, the message), but answer whatever is ready with one write. Through connect-es's
 * async iterables a message costs the server about 135 us, here about 20.
 */
import type { IncomingMessage } from "node:http";
import type { Socket } from "node:net";
import type { Duplex } from "node:stream";
import { fromBinary, type MessageInitShape } from "@bufbuild/protobuf";
import { Code, ConnectError, type ServiceImpl } from "@connectrpc/connect";
import {
  OpenSessionRequestSchema,
  type OpenSessionResponseSchema,
  type SessionService,
} from "../../gen/checkpointd/v1/session_service_pb.js";
import type { Principal } from "../auth/principal.js";
import { CheckpointdError } from "../errors.js";
import { encodeAnswer } from "../protocol/encode_answer.js";
import {
  createEnvelopeReader,
  endOfStream,
  envelope,
  envelopeBytes,
  joinSmall,
} from "../protocol/envelope.js";
import {
  partingMs,
  requestIdHeader,
  sessionContentType,
  sessionPath,
  sessionUpgrade,
} from "../protocol/wire.js";
import { callKey } from "./call.js";
import { toConnectError } from "./connect_error.js";
import { enter, type Gate } from "./gate.js";
import type { NodeHandler } from "./handler.js";
import { Arrival } from "./intake.js";
import { toRequestId } from "./interceptors.js";
import { checkBinarySize } from "./message_size.js";
import type { Session, SessionClient, Sessions } from "./session.js";

/**
 * How many messages of one session are taken before the others are looked at. Node reads up to 2 MiB
 * of a connection at once, and that can be 200,000 pings.
 */
const messagesPerTurn = 256;

const nothing = Buffer.alloc(0);

type Response = MessageInitShape<typeof OpenSessionResponseSchema>;

/** SessionService for a Connect router. */
export function createSessionService(sessions: Sessions): ServiceImpl<typeof SessionService> {
  return {
    async *openSession(requests, context) {
      const outbox: Response[] = [];
      // Each resolves one wait: of the writer for something to send, of the reader for room.
      let wakeWriter = () => {};
      let wakeReader = () => {};
      // The interceptor set it, and answers with it.
      const requestId = context.requestHeader.get(requestIdHeader) as string;
      let over = false;
      let broken: unknown;
      const { principal, peer } = context.values.get(callKey) ?? {};
      const session = sessions.begin(
        requestId,
        (response) => {
          outbox.push(response);
          wakeWriter();
          // Encoded by connect-es later, and here to be counted: who has a limit of bytes is not to
          // get around it by another carrier.
          return sizeOf(encodeAnswer(response));
        },
        (error) => {
          broken = error;
          over = true;
          wakeWriter();
        },
        principal && { principal, peer },
      );
      const read = async () => {
        for await (const request of requests) {
          session.receive(request, context.values.get(callKey)?.messageBytes?.shift() ?? 0);
          while (session.inFlight() > sessions.options.maxInFlight && !context.signal.aborted) {
            await new Promise<void>((resolve) => {
              wakeReader = resolve;
            });
          }
        }
      };
      read()
        .catch((error) => {
          broken = error;
        })
        .finally(() => {
          over = true;
          wakeWriter();
        });
      context.signal.addEventListener("abort", () => {
        wakeWriter();
        wakeReader();
      });
      try {
        while (!context.signal.aborted) {
          const response = outbox.shift();
          if (response) {
            wakeReader();
            yield response;
          } else if (broken !== undefined) {
            throw broken;
          } else if (over && session.inFlight() === 0) {
            return;
          } else {
            await new Promise<void>((resolve) => {
              wakeWriter = resolve;
            });
          }
        }
        context.signal.throwIfAborted();
      } finally {
        session.close();
      }
    },
  };
}

type Request = Parameters<NodeHandler>[0];
type Answer = Parameters<NodeHandler>[1];

/**
 * Carries a session if the request opens one in the Connect protocol over HTTP/2; returns
 * false, having done nothing, if it does not. Throws LIMIT_REACHED where its principal has too many.
 */
export function carrySession(
  sessions: Sessions,
  maxMessageSize: number,
  request: Request,
  response: Answer,
  principal?: Principal,
): boolean {
  // The stream below Node's request and response, which would hand every chunk on a tick later.
  const stream = "stream" in response ? response.stream : undefined;
  if (
    !stream ||
    request.method !== "POST" ||
    request.headers["content-type"] !== sessionContentType ||
    (request.headers["connect-content-encoding"] ?? "identity") !== "identity"
  ) {
    return false;
  }
  const requestId = toRequestId(request.headers[requestIdHeader]);
  const client = principal && { principal, peer: request.socket.remoteAddress };
  // Its greeting is written a tick later.
  carry(sessions, maxMessageSize, requestId, stream, client);
  response.writeHead(200, { "content-type": sessionContentType, [requestIdHeader]: requestId });
  return true;
}

/**
 * Carries a session on the connection of a request that asks to upgrade it to one; returns false,
 * having done nothing, if it asks for something else. A client that `gate` refuses is told with
 * HTTP's 401.
 */
export function carryUpgraded(
  sessions: Sessions,
  maxMessageSize: number,
  gate: Gate | undefined,
  request: IncomingMessage,
  socket: Socket,
): boolean {
  const path = request.url?.split("?", 1)[0];
  if (request.method !== "GET" || path !== sessionPath) return false;
  if (request.headers.upgrade?.toLowerCase() !== sessionUpgrade) return false;
  const requestId = toRequestId(request.headers[requestIdHeader]);
  if (!gate) {
    upgrade(sessions, maxMessageSize, requestId, socket, undefined);
    return true;
  }
  enter(gate, request, (principal, refusal) => {
    if (socket.destroyed) return;
    try {
      if (!principal) throw refusal;
      const client = { principal, peer: socket.remoteAddress };
      upgrade(sessions, maxMessageSize, requestId, socket, client);
    } catch (error) {
      refuseUpgrade(socket, requestId, toConnectError(error));
    }
  });
  return true;
}

function upgrade(
  sessions: Sessions,
  maxMessageSize: number,
  requestId: string,
  socket: Socket,
  client: SessionClient | undefined,
): void {
  // Its greeting is written a tick later.
  const session = carry(sessions, maxMessageSize, requestId, socket, client);
  // The stream's last message goes to a client that sends no more.
  socket.allowHalfOpen = true;
  socket.write(
    `HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: ${sessionUpgrade}\r\n` +
      `${requestIdHeader}: ${requestId}\r\n\r\n`,
  );
  // A client that went away ends its side too, so one that waits for answers may not.
  socket.on("end", () => {
    if (session.inFlight() > 0) socket.destroy();
  });
}

/** As connect-es answers a call that is refused. */
function refuseUpgrade(socket: Socket, requestId: string, error: ConnectError): void {
  const body = JSON.stringify(toJson(error));
  const status = error.code === Code.Unauthenticated ? "401 Unauthorized" : "429 Too Many Requests";
  socket.end(
    `HTTP/1.1 ${status}\r\ncontent-type: application/json\r\nwww-authenticate: Bearer\r\n` +
      `content-length: ${Buffer.byteLength(body)}\r\nconnection: close\r\n` +
      `${requestIdHeader}: ${requestId}\r\n\r\n${body}`,
  );
  socket.resume();
}

function carry(
  sessions: Sessions,
  maxMessageSize: number,
  requestId: string,
  stream: Duplex,
  client: SessionClient | undefined,
): Session {
  let frames: Uint8Array[] = [];
  let ended = false;
  let over = false;
  let parting: NodeJS.Timeout | undefined;
  let paused = false;
  // Others are to have their turn before more of it is read.
  let resting = false;
  // The client does not read its answers; nothing more is read of it either.
  let blocked = false;
  // Of the chunk that is read.
  let messages = 0;
  // Unset while the greeting is sent.
  let session: Session | undefined;

  const flush = () => {
    if (frames.length === 0 || over) return;
    const together = joinSmall(frames);
    frames = [];
    stream.cork();
    for (const chunk of together) blocked = !stream.write(chunk);
    stream.uncork();
    if (blocked) pause();
  };
  const send = (message: Response) => {
    const chunks = encodeAnswer(message);
    if (frames.length === 0) process.nextTick(flush);
    frames.push(...chunks);
    goOn();
    return sizeOf(chunks);
  };
  const finish = (error?: ConnectError) => {
    if (over) return;
    flush();
    over = true;
    session?.close();
    arrival.close();
    read = () => 0;
    const body = Buffer.from(JSON.stringify(error ? { error: toJson(error) } : {}));
    stream.end(Buffer.concat([envelope(endOfStream, body.length), body]), () => {
      parting = setTimeout(() => stream.destroy(), partingMs).unref();
    });
    // What the client still sends is read and forgotten until it has heard.
    stream.resume();
  };
  /** Reads on when there is room again, and ends when all is answered. */
  const goOn = () => {
    // Paused, it may have ended with messages that are not taken yet.
    if (ended && !paused && session?.inFlight() === 0) {
      process.nextTick(finish);
    } else if (paused && !blocked && !resting && hasRoom()) {
      paused = false;
      arrival.goOn();
      if (!receive(nothing) || paused) return;
      stream.resume();
      if (ended) goOn();
    }
  };
  const pause = () => {
    paused = true;
    arrival.end();
    stream.pause();
  };

  const hasRoom = () => begun.inFlight() <= sessions.options.maxInFlight;
  /** Returns false once the session is over. */
  const receive = (chunk: Buffer): boolean => {
    if (over) return false;
    messages = 0;
    try {
      arrival.unfinished(read(chunk), chunk.length);
    } catch (error) {
      finish(
        error instanceof CheckpointdError
          ? toConnectError(error)
          : ConnectError.from(error, Code.InvalidArgument),
      );
      return false;
    }
    if (messages >= messagesPerTurn) {
      resting = true;
      setImmediate(() => {
        resting = false;
        goOn();
      });
    }
    // A client that keeps to the limit is always read: its pings and cancellations come through.
    if (resting || !hasRoom()) pause();
    return true;
  };

  const arrival = new Arrival(sessions.options.calls.intake, (error) => finish(error));
  const begun = sessions.begin(requestId, send, finish, client);
  session = begun;
  let read = createEnvelopeReader(
    maxMessageSize,
    (length) =>
      new ConnectError(
        `message size ${length} is larger than the limit of ${maxMessageSize} bytes`,
        Code.ResourceExhausted,
      ),
    (flags, message) => {
      arrival.finished();
      if (flags !== 0) throw new ConnectError("unexpected envelope flags", Code.InvalidArgument);
      checkBinarySize(OpenSessionRequestSchema, message);
      const request = fromBinary(OpenSessionRequestSchema, message, { readUnknownFields: false });
      begun.receive(request, message.length);
      messages++;
      return messages < messagesPerTurn && hasRoom();
    },
  );
  stream.on("data", receive);
  stream.on("end", () => {
    ended = true;
    goOn();
  });
  stream.on("drain", () => {
    blocked = false;
    goOn();
  });
  stream.on("close", () => {
    clearTimeout(parting);
    over = true;
    arrival.close();
    session?.close();
  });
  return begun;
}

/** The bytes of a message, without its envelope. */
function sizeOf(chunks: readonly Uint8Array[]): number {
  let bytes = -envelopeBytes;
  for (const { length } of chunks) bytes += length;
  return bytes;
}

function toJson(error: ConnectError) {
  const code = Code[error.code].replace(
    /[A-Z]/g,
    (upper, i) => `${i > 0 ? "_" : ""}${upper.toLowerCase()}`,
  );
  return { code, message: error.rawMessage };
}
