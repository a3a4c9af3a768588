/**
 * A request's messages on their way to their decoder: inflated within bounds, and looked at before
 * they are decoded (see message_size.ts). For every protocol that connect-es speaks.
 */
import { createGunzip } from "node:zlib";
import type { DescMessage } from "@bufbuild/protobuf";
import { Code, ConnectError } from "@connectrpc/connect";
import type { Compression, UniversalServerRequest } from "@connectrpc/connect/protocol";
import { compressionGzip } from "@connectrpc/connect-node";
import { CheckpointdError } from "../errors.js";
import { envelope } from "../protocol/envelope.js";
import { Pieces } from "../protocol/pieces.js";
import type { Call } from "./call.js";
import type { Arrival } from "./intake.js";
import { checkBinarySize, checkJsonSize } from "./message_size.js";

/**
 * The most that a message may be larger than it came, and what it may be in any case. Conversations
 * are 3 to 20 times as large; gzip ends at 1,000.
 */
const mostInflation = 100;
const alwaysInflated = 1024 * 1024;

/** What a flag of an envelope says. */
const compressed = 0b1;

/**
 * Returns the body that the routes are to read in place of the request's, and takes headers from the
 * request that no longer hold. Its reader is thrown what `refuse` makes of what is wrong with it.
 * What is inflated the call holds too; of a session, whose messages are calls of their own, only
 * what is no whole message yet is held.
 */
export function checkedBody(
  request: UniversalServerRequest,
  schema: DescMessage,
  maxBytes: number,
  refuse: (error: unknown) => unknown,
  call: Call,
  arrival: Arrival,
): AsyncIterable<Uint8Array> {
  const body = request.body as AsyncIterable<Uint8Array>;
  const type = request.header.get("content-type") ?? "";
  const isJson = /[/+]json\b/.test(type);
  const take: Take = async (sent, isCompressed) => {
    let inflated = 0;
    const hold = (bytes: number) => {
      call.take(bytes);
      call.inflatedBytes += bytes;
      inflated += bytes;
    };
    try {
      const message = isCompressed ? await inflate(sent, maxBytes, hold) : sent;
      if (isJson) checkJsonSize(message);
      else checkBinarySize(schema, message);
      call.messageBytes?.push(message.length);
      return message;
    } catch (error) {
      throw refuse(error);
    } finally {
      if (call.messageBytes) call.take(-inflated);
    }
  };
  const checkLength = (length: number) => {
    if (length > maxBytes) throw refuse(tooLarge(maxBytes));
  };
  if (type.startsWith("application/grpc") || type.startsWith("application/connect+")) {
    const hold = (held: number, received: number) => {
      if (!call.messageBytes) return;
      try {
        arrival.unfinished(held, received);
      } catch (error) {
        throw refuse(error);
      }
    };
    const encoding = request.header.get(
      type.startsWith("application/grpc") ? "grpc-encoding" : "connect-content-encoding",
    );
    const takeEnveloped: Take = async (sent, isCompressed) => {
      if (isCompressed && encoding !== "gzip") throw refuse(unknownCompression());
      return take(sent, isCompressed);
    };
    return inEnvelopes(body, checkLength, hold, takeEnveloped);
  }
  const isCompressed = request.header.get("content-encoding") === "gzip";
  if (isCompressed) {
    request.header.delete("content-encoding");
    request.header.delete("content-length");
  }
  return whole(body, checkLength, (sent) => take(sent, isCompressed));
}

/** Makes of what was sent the message. */
type Take = (sent: Uint8Array, isCompressed: boolean) => Promise<Uint8Array>;

/** A body that is one message. */
async function* whole(
  body: AsyncIterable<Uint8Array>,
  checkLength: (length: number) => void,
  take: (sent: Uint8Array) => Promise<Uint8Array>,
) {
  const pieces = new Pieces();
  for await (const chunk of body) {
    checkLength(pieces.size + chunk.length);
    pieces.add(chunk);
  }
  yield await take(pieces.take());
}

/** A body of messages in envelopes, of which each is handed on when all of it is there. */
async function* inEnvelopes(
  body: AsyncIterable<Uint8Array>,
  checkLength: (length: number) => void,
  hold: (held: number, received: number) => void,
  take: Take,
) {
  const held = new Pieces();
  let needed = 5;
  for await (const chunk of body) {
    held.add(chunk);
    while (held.size >= needed) {
      const rest = held.take();
      const length = rest.readUInt32BE(1);
      checkLength(length);
      needed = 5 + length;
      if (rest.length < needed) {
        held.add(rest);
        break;
      }
      // Nor while its reader rests: nothing has to come then.
      hold(0, 0);
      const flags = rest[0] as number;
      const message = await take(rest.subarray(5, needed), (flags & compressed) !== 0);
      yield envelope(flags & ~compressed, message.length);
      if (message.length > 0) yield message;
      if (rest.length > needed) held.add(rest.subarray(needed));
      needed = 5;
    }
    hold(held.size, chunk.length);
  }
  // What is cut off its reader finds.
  if (held.size > 0) yield held.take();
}

/** gzip for a router, which inflates within the same bounds what no body brings: a GET's message. */
export const boundedGzip: Compression = {
  ...compressionGzip,
  decompress: (bytes, maxBytes) => inflate(bytes, maxBytes),
};

/** `hold` is told of what there is as it comes: many are inflated at a time. */
async function inflate(
  bytes: Uint8Array,
  maxBytes: number,
  hold: (bytes: number) => void = () => {},
): Promise<Uint8Array<ArrayBuffer>> {
  if (bytes.length === 0) return new Uint8Array(0);
  const most = Math.min(maxBytes, Math.max(alwaysInflated, bytes.length * mostInflation));
  const gunzip = createGunzip();
  gunzip.end(bytes);
  const chunks: Buffer[] = [];
  let size = 0;
  try {
    for await (const chunk of gunzip as AsyncIterable<Buffer>) {
      size += chunk.length;
      if (size > most) throw most === maxBytes ? tooLarge(maxBytes) : inflatesTooMuch();
      hold(chunk.length);
      chunks.push(chunk);
    }
  } catch (error) {
    if (typeof (error as { errno?: unknown }).errno !== "number") throw error;
    throw new ConnectError("the message is not compressed as it says", Code.InvalidArgument);
  }
  return Buffer.concat(chunks, size);
}

function inflatesTooMuch(): ConnectError {
  return new ConnectError(
    `the message is more than ${mostInflation} times as large as it came: send it uncompressed`,
    Code.ResourceExhausted,
  );
}

/** gRPC and Connect have it be INTERNAL, as it is whenever two that speak them misunderstand each other. */
function unknownCompression(): ConnectError {
  const message = "a message is compressed, but the request does not say that it is with gzip";
  const cause = new CheckpointdError("invalid_argument", message);
  return new ConnectError(message, Code.Internal, undefined, undefined, cause);
}

function tooLarge(maxBytes: number): ConnectError {
  return new ConnectError(
    `message size is larger than the limit of ${maxBytes} bytes`,
    Code.ResourceExhausted,
  );
}
