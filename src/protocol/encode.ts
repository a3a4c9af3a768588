/**
 * The operations of a session as the bytes of an OpenSessionRequest in its envelope.
 *
 * Those that carry values are written by hand. The generated code would do, at three times the
 * cost: it makes a message object of every part and copies each value twice, and a run of an agent
 * is mostly these operations. encode.test.ts holds them to the generated code, for every field that
 * the .proto files have now or later.
 */
import { Buffer } from "node:buffer";
import { create, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import type { ValueSchema } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import {
  OpenSessionRequestSchema,
  type StoredPrefixSchema,
} from "../../gen/checkpointd/v1/session_service_pb.js";
import { envelope, largeBytes } from "./envelope.js";
import type { OperationName, RequestInit } from "./operations.js";

type Put = RequestInit<"put">;
type PutWrites = RequestInit<"putWrites">;
type PutExtending = RequestInit<"putExtending">;
type StoredPrefix = MessageInitShape<typeof StoredPrefixSchema>;
type Value = MessageInitShape<typeof ValueSchema>;

/** What can be sent on a session, as OpenSessionRequest has it. */
export type SessionRequest = MessageInitShape<typeof OpenSessionRequestSchema>;

/**
 * An operation in its envelope. The chunks may be the request's own values, which must not change
 * until they are sent.
 */
export function encodeOperation<Name extends OperationName>(
  id: number,
  timeoutMs: number,
  name: Name,
  request: RequestInit<Name>,
): Uint8Array[] {
  switch (name) {
    case "put":
      return encodePut(id, timeoutMs, request as Put);
    case "putExtending":
      return encodePutExtending(id, timeoutMs, request as PutExtending);
    case "putWrites":
      return encodePutWrites(id, timeoutMs, request as PutWrites);
    default:
      return encodeSessionRequest({
        id,
        timeoutMs,
        operation: { case: name, value: request } as NonNullable<SessionRequest["operation"]>,
      });
  }
}

/** Anything else that is sent on a session, in its envelope. */
export function encodeSessionRequest(message: SessionRequest): Uint8Array[] {
  const bytes = toBinary(OpenSessionRequestSchema, create(OpenSessionRequestSchema, message));
  return [envelope(0, bytes.length), bytes];
}

function encodePut(id: number, timeoutMs: number, request: Put): Uint8Array[] {
  const writer = new Writer(sizeBound(request) + valuesBound(request.blobs));
  writePut(writer, request);
  return writer.finish(4, id, timeoutMs);
}

function encodePutExtending(
  id: number,
  timeoutMs: number,
  { put, prefixes = [] }: PutExtending,
): Uint8Array[] {
  let bound = perField + (put ? sizeBound(put) + valuesBound(put.blobs) : 64);
  for (const prefix of prefixes) bound += sizeBound(prefix);
  const writer = new Writer(bound);
  for (let i = prefixes.length - 1; i >= 0; i--) {
    const { blobIndex = 0, version, transactionId, length = 0, ...place } = prefixes[i]!;
    const end = writer.size;
    writer.number(6, place.headLength ?? 0);
    writer.number(5, place.offset ?? 0);
    writer.number(4, length);
    writer.text(3, transactionId);
    writer.text(2, version);
    writer.number(1, blobIndex);
    writer.length(2, end);
  }
  if (put) {
    const end = writer.size;
    writePut(writer, put);
    writer.length(1, end);
  }
  return writer.finish(10, id, timeoutMs);
}

function writePut(writer: Writer, request: Put): void {
  const { blobs = [] } = request;
  writer.text(8, request.leaseToken);
  for (let i = blobs.length - 1; i >= 0; i--) {
    const { channel, version, value } = blobs[i]!;
    const end = writer.size;
    if (value) writer.value(3, value);
    writer.text(2, version);
    writer.text(1, channel);
    writer.length(7, end);
  }
  writer.text(6, request.metadataJson);
  writer.text(5, request.checkpointJson);
  writer.text(4, request.parentCheckpointId);
  writer.text(3, request.checkpointId);
  writer.text(2, request.checkpointNs);
  writer.text(1, request.threadId);
}

function encodePutWrites(id: number, timeoutMs: number, request: PutWrites): Uint8Array[] {
  const { writes = [] } = request;
  const writer = new Writer(sizeBound(request) + valuesBound(writes));
  writer.text(7, request.leaseToken);
  for (let i = writes.length - 1; i >= 0; i--) {
    const { idx = 0, channel, value } = writes[i]!;
    const end = writer.size;
    if (value) writer.value(3, value);
    writer.text(2, channel);
    writer.number(1, idx);
    writer.length(6, end);
  }
  writer.text(5, request.taskPath);
  writer.text(4, request.taskId);
  writer.text(3, request.checkpointId);
  writer.text(2, request.checkpointNs);
  writer.text(1, request.threadId);
  return writer.finish(5, id, timeoutMs);
}

/** More than a character of UTF-16 ever takes in UTF-8, and more than a tag and a length take. */
const perCharacter = 3;
const perField = 8;

function sizeBound(message: Put | PutWrites | StoredPrefix): number {
  let bound = 64;
  for (const field of Object.values(message)) {
    if (typeof field === "string") bound += perField + perCharacter * field.length;
  }
  return bound;
}

function valuesBound(
  parts: readonly { channel?: string; version?: string; value?: Value | undefined }[] = [],
): number {
  let bound = 0;
  for (const { channel = "", version = "", value } of parts) {
    const characters = channel.length + version.length + (value?.type?.length ?? 0);
    const bytes = value?.data?.length ?? 0;
    bound += 8 * perField + perCharacter * characters + (bytes < largeBytes ? bytes : 0);
  }
  return bound;
}

/** Writes a message from its end to its beginning: the length of a part is known when it stands. */
class Writer {
  /** Bytes written so far. */
  size = 0;
  readonly #buffer: Buffer;
  /** What is written and not yet in `chunks` lies between the two. */
  #at: number;
  #end: number;
  /** The last first. */
  readonly #chunks: Uint8Array[] = [];

  constructor(bound: number) {
    this.#buffer = Buffer.allocUnsafe(bound);
    this.#at = bound;
    this.#end = bound;
  }

  text(field: number, text = ""): void {
    if (text === "") return;
    const length = Buffer.byteLength(text);
    this.#at -= length;
    this.#buffer.write(text, this.#at, length);
    this.size += length;
    this.#lengthDelimited(field, length);
  }

  number(field: number, value: number): void {
    if (value === 0) return;
    this.#varint(value);
    this.#byte(field << 3);
  }

  value(field: number, { type, data }: Value): void {
    const end = this.size;
    if (data !== undefined && data.length > 0) {
      if (data.length < largeBytes) {
        this.#at -= data.length;
        this.#buffer.set(data, this.#at);
      } else {
        this.#cut();
        this.#chunks.push(data);
      }
      this.size += data.length;
      this.#lengthDelimited(2, data.length);
    }
    this.text(1, type);
    this.length(field, end);
  }

  /** Heads the part that was written since `size` was `end`. */
  length(field: number, end: number): void {
    this.#lengthDelimited(field, this.size - end);
  }

  /** Makes what was written the operation with that number, and returns all in its envelope. */
  finish(operation: number, id: number, timeoutMs: number): Uint8Array[] {
    this.length(operation, 0);
    this.number(2, timeoutMs);
    this.number(1, id);
    const { size } = this;
    this.#at -= 5;
    this.#buffer[this.#at] = 0;
    this.#buffer.writeUInt32BE(size, this.#at + 1);
    this.#cut();
    return this.#chunks.reverse();
  }

  #lengthDelimited(field: number, length: number): void {
    this.#varint(length);
    this.#byte((field << 3) | 2);
  }

  #byte(byte: number): void {
    this.#at--;
    this.#buffer[this.#at] = byte;
    this.size++;
  }

  /** An int32 or uint32; a negative one takes ten bytes, as if it had 64 bits. */
  #varint(value: number): void {
    const isNegative = value < 0;
    let length = 1;
    for (let rest = value >>> 7; rest > 0; rest >>>= 7) length++;
    if (isNegative) length = 10;
    this.#at -= length;
    this.size += length;
    let rest = value >>> 0;
    for (let i = 0; i < length; i++) {
      const isLast = i === length - 1;
      // The sign fills bits 32 to 63.
      const bits =
        i < 4 ? rest & 0x7f : isNegative ? (i === 4 ? rest | 0x70 : isLast ? 1 : 0x7f) : rest;
      this.#buffer[this.#at + i] = isLast ? bits : bits | 0x80;
      rest >>>= 7;
    }
  }

  #cut(): void {
    if (this.#at < this.#end) this.#chunks.push(this.#buffer.subarray(this.#at, this.#end));
    this.#end = this.#at;
  }
}
