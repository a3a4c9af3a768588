/**
 * The answers of a session as the bytes of an OpenSessionResponse in its envelope. Those that carry
 * tuples are written by hand: the generated code copies each value several times, and of a getTuple
 * of 60 values that was a seventh of what it costs the service. encode.test.ts holds them to the
 * generated code.
 */
import { Buffer } from "node:buffer";
import { create, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import type { CheckpointTuple, Value } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import { OpenSessionResponseSchema } from "../../gen/checkpointd/v1/session_service_pb.js";
import { envelope, largeBytes } from "./envelope.js";
import { perCharacter, perField, Writer } from "./writer.js";

type Response = MessageInitShape<typeof OpenSessionResponseSchema>;

/**
 * An answer in its envelope. The chunks may be the tuple's own values, which must not change until
 * they are sent.
 */
export function encodeAnswer(response: Response): Uint8Array[] {
  const { id = 0, result } = response;
  if (result?.case === "getTuple" && result.value.tuple) {
    return encodeGetTuple(id, result.value.tuple as CheckpointTuple);
  }
  const bytes = toBinary(OpenSessionResponseSchema, create(OpenSessionResponseSchema, response));
  return [envelope(0, bytes.length), bytes];
}

function encodeGetTuple(id: number, tuple: CheckpointTuple): Uint8Array[] {
  const writer = new Writer(bound(tuple));
  writeTuple(writer, tuple);
  writer.length(1, 0);
  return writer.finish(2, id, 0);
}

function writeTuple(writer: Writer, tuple: CheckpointTuple): void {
  const { blobs, pendingWrites, pendingSends, unchangedChannels, omitted, key } = tuple;
  for (let i = omitted.length - 1; i >= 0; i--) {
    const { channel, version, taskId, idx, taskPath, type, bytes } = omitted[i]!;
    const end = writer.size;
    writer.number(7, bytes);
    writer.text(6, type);
    writer.text(5, taskPath);
    writer.number(4, idx);
    writer.text(3, taskId);
    writer.text(2, version);
    writer.text(1, channel);
    writer.length(9, end);
  }
  for (let i = unchangedChannels.length - 1; i >= 0; i--) {
    writer.presentText(8, unchangedChannels[i]!);
  }
  for (let i = pendingSends.length - 1; i >= 0; i--) writer.value(7, pendingSends[i]!);
  for (let i = pendingWrites.length - 1; i >= 0; i--) {
    const { taskId, idx, channel, value, taskPath } = pendingWrites[i]!;
    const end = writer.size;
    writer.text(5, taskPath);
    if (value) writer.value(4, value);
    writer.text(3, channel);
    writer.number(2, idx);
    writer.text(1, taskId);
    writer.length(6, end);
  }
  writer.blobs(5, blobs);
  writer.text(4, tuple.metadataJson);
  writer.text(3, tuple.checkpointJson);
  if (tuple.parentCheckpointId !== undefined) writer.presentText(2, tuple.parentCheckpointId);
  if (!key) return;
  const end = writer.size;
  writer.text(3, key.checkpointId);
  writer.text(2, key.checkpointNs);
  writer.text(1, key.threadId);
  writer.length(1, end);
}

/** More bytes than are written of it into one piece of memory. */
function bound(tuple: CheckpointTuple): number {
  const { key, parentCheckpointId = "", checkpointJson, metadataJson } = tuple;
  let characters = parentCheckpointId.length;
  if (key) {
    characters += key.threadId.length + key.checkpointNs.length + key.checkpointId.length;
  }
  let fields = 16;
  let bytes = Buffer.byteLength(checkpointJson) + Buffer.byteLength(metadataJson);
  const add = (value: Value | undefined) => {
    fields += 8;
    if (!value) return;
    characters += value.type.length;
    if (value.data.length < largeBytes) bytes += value.data.length;
  };
  for (const { channel, version, value } of tuple.blobs) {
    characters += channel.length + version.length;
    add(value);
  }
  for (const { taskId, channel, taskPath, value } of tuple.pendingWrites) {
    characters += taskId.length + channel.length + taskPath.length;
    add(value);
  }
  for (const value of tuple.pendingSends) add(value);
  for (const { channel, version, taskId, taskPath, type } of tuple.omitted) {
    characters += channel.length + version.length + taskId.length + taskPath.length + type.length;
    fields += 10;
  }
  for (const channel of tuple.unchangedChannels) {
    characters += channel.length;
    fields++;
  }
  return perField * (fields + 16) + perCharacter * characters + bytes;
}
