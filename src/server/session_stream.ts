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
import type { NodeHandler } from "./handler.js";
import { Arrival } from "./intake.js";
import { toRequestId } from "./interceptors.js";
import { checkBinarySize } from "./message_size.js";
import type { Session, Sessions } from "./session.js";

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
      const session = sessions.begin(
        requestId,
        (response) => {
          outbox.push(response);
          wakeWriter();
          return 0;
        },
        () => {
          over = true;
          wakeWriter();
        },
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
 * false, having done nothing, if it does not.
 */
export function carrySession(
  sessions: Sessions,
  maxMessageSize: number,
  request: Request,
  response: Answer,
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
  response.writeHead(200, { "content-type": sessionContentType, [requestIdHeader]: requestId });
  carry(sessions, maxMessageSize, requestId, stream);
  return true;
}

/**
 * Carries a session on the connection of a request that asks to upgrade it to one; returns false,
 * having done nothing, if it asks for something else.
 */
export function carryUpgraded(
  sessions: Sessions,
  maxMessageSize: number,
  request: IncomingMessage,
  socket: Socket,
): boolean {
  const path = request.url?.split("?", 1)[0];
  if (request.method !== "GET" || path !== sessionPath) return false;
  if (request.headers.upgrade?.toLowerCase() !== sessionUpgrade) return false;
  const requestId = toRequestId(request.headers[requestIdHeader]);
  // The stream's last message goes to a client that sends no more.
  socket.allowHalfOpen = true;
  socket.write(
    `HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: ${sessionUpgrade}\r\n` +
      `${requestIdHeader}: ${requestId}\r\n\r\n`,
  );
  const session = carry(sessions, maxMessageSize, requestId, socket);
  // A client that went away ends its side too, so one that waits for answers may not.
  socket.on("end", () => {
    if (session.inFlight() > 0) socket.destroy();
  });
  return true;
}

function carry(
  sessions: Sessions,
  maxMessageSize: number,
  requestId: string,
  stream: Duplex,
): Session {
  let frames: Uint8Array[] = [];
  let ended = false;
  let over = false;
  let parting: NodeJS.Timeout | undefined;
  let paused = false;
  // The client does not read its answers; nothing more is read of it either.
  let blocked = false;
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
    let bytes = -envelopeBytes;
    for (const { length } of chunks) bytes += length;
    return bytes;
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
    if (ended && session?.inFlight() === 0) {
      process.nextTick(finish);
    } else if (paused && !blocked && begun.inFlight() <= sessions.options.maxInFlight) {
      paused = false;
      arrival.goOn();
      stream.resume();
    }
  };
  const pause = () => {
    paused = true;
    arrival.end();
    stream.pause();
  };

  const arrival = new Arrival(sessions.options.calls.intake, (error) => finish(error));
  const begun = sessions.begin(requestId, send, () => finish());
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
    },
  );
  stream.on("data", (chunk: Buffer) => {
    if (over) return;
    try {
      arrival.unfinished(read(chunk), chunk.length);
    } catch (error) {
      finish(
        error instanceof CheckpointdError
          ? toConnectError(error)
          : ConnectError.from(error, Code.InvalidArgument),
      );
      return;
    }
    // A client that keeps to the limit is always read: its pings and cancellations come through.
    if (begun.inFlight() > sessions.options.maxInFlight) pause();
  });
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

function toJson(error: ConnectError) {
  const code = Code[error.code].replace(
    /[A-Z]/g,
    (upper, i) => `${i > 0 ? "_" : ""}${upper.toLowerCase()}`,
  );
  return { code, message: error.rawMessage };
}
