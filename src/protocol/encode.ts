/**
 * The operations of a session as the bytes of an OpenSessionRequest in its envelope.
 *
 * Those that carry values are written by hand. The generated code would do, at three times the
 * cost: it makes a message object of every part and copies each value twice, and a run of an agent
 * is mostly these operations. encode.test.ts holds them to the generated code, for every field that
 * the .proto files have now or later.
 */
import { create, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import type { ValueSchema } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import {
  OpenSessionRequestSchema,
  type StoredPrefixSchema,
} from "../../gen/checkpointd/v1/session_service_pb.js";
import { envelope, largeBytes } from "./envelope.js";
import type { OperationName, RequestInit } from "./operations.js";
import type { TraceHeaders } from "./trace.js";
import { perCharacter, perField, Writer } from "./writer.js";

type Put = RequestInit<"put">;
type PutWrites = RequestInit<"putWrites">;
type PutExtending = RequestInit<"putExtending">;
type StoredPrefix = MessageInitShape<typeof StoredPrefixSchema>;
type Value = MessageInitShape<typeof ValueSchema>;

/** What can be sent on a session, as OpenSessionRequest has it. */
export type SessionRequest = MessageInitShape<typeof OpenSessionRequestSchema>;

const noTrace: TraceHeaders = { traceparent: "", tracestate: "" };

/**
 * An operation in its envelope. The chunks may be the request's own values, which must not change
 * until they are sent.
 */
export function encodeOperation<Name extends OperationName>(
  id: number,
  timeoutMs: number,
  name: Name,
  request: RequestInit<Name>,
  trace: TraceHeaders = noTrace,
): Uint8Array[] {
  switch (name) {
    case "put":
      return encodePut(id, timeoutMs, request as Put, trace);
    case "putExtending":
      return encodePutExtending(id, timeoutMs, request as PutExtending, trace);
    case "putWrites":
      return encodePutWrites(id, timeoutMs, request as PutWrites, trace);
    default:
      return encodeSessionRequest({
        id,
        timeoutMs,
        ...trace,
        operation: { case: name, value: request } as NonNullable<SessionRequest["operation"]>,
      });
  }
}

/** Anything else that is sent on a session, in its envelope. */
export function encodeSessionRequest(message: SessionRequest): Uint8Array[] {
  const bytes = toBinary(OpenSessionRequestSchema, create(OpenSessionRequestSchema, message));
  return [envelope(0, bytes.length), bytes];
}

function encodePut(id: number, timeoutMs: number, request: Put, trace: TraceHeaders): Uint8Array[] {
  const writer = new Writer(sizeBound(request) + valuesBound(request.blobs) + sizeBound(trace));
  const end = writeTrace(writer, trace);
  writePut(writer, request);
  return writer.finish(4, id, timeoutMs, end);
}

/** Returns where the operation before it ends. */
function writeTrace(writer: Writer, { traceparent, tracestate }: TraceHeaders): number {
  writer.text(18, tracestate);
  writer.text(17, traceparent);
  return writer.size;
}

function encodePutExtending(
  id: number,
  timeoutMs: number,
  { put, prefixes = [] }: PutExtending,
  trace: TraceHeaders,
): Uint8Array[] {
  let bound = perField + sizeBound(trace) + (put ? sizeBound(put) + valuesBound(put.blobs) : 64);
  for (const prefix of prefixes) bound += sizeBound(prefix);
  const writer = new Writer(bound);
  const operationEnd = writeTrace(writer, trace);
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
  return writer.finish(10, id, timeoutMs, operationEnd);
}

function writePut(writer: Writer, request: Put): void {
  const { blobs = [] } = request;
  writer.text(8, request.leaseToken);
  writer.blobs(7, blobs);
  writer.text(6, request.metadataJson);
  writer.text(5, request.checkpointJson);
  writer.text(4, request.parentCheckpointId);
  writer.text(3, request.checkpointId);
  writer.text(2, request.checkpointNs);
  writer.text(1, request.threadId);
}

function encodePutWrites(
  id: number,
  timeoutMs: number,
  request: PutWrites,
  trace: TraceHeaders,
): Uint8Array[] {
  const { writes = [] } = request;
  const writer = new Writer(sizeBound(request) + valuesBound(writes) + sizeBound(trace));
  const operationEnd = writeTrace(writer, trace);
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
  return writer.finish(5, id, timeoutMs, operationEnd);
}

function sizeBound(message: Put | PutWrites | StoredPrefix | TraceHeaders): number {
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
