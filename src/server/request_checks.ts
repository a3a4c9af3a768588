/**
 * What a request may hold. Each check throws INVALID_ARGUMENT with the field and the limit
 * before anything is stored, and changes nothing. How long the names of a key may be together
 * depends on what they are, so Postgres says that (store/keys.ts).
 */
import { Buffer } from "node:buffer";
import type { Value } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import type {
  DeleteThreadRequest,
  GetTupleRequest,
  ListRequest,
  PutRequest,
  PutWritesRequest,
} from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import type {
  ListPageRequest,
  PutExtendingRequest,
} from "../../gen/checkpointd/v1/session_service_pb.js";
import { CheckpointdError, invalidArgument } from "../errors.js";
import { mostJsonBytes } from "../store/undeliverable.js";
import { checkFilterJson, checkStoredJson, checkVersions } from "./json_checks.js";
import {
  checkCharacters,
  checkCount,
  checkName,
  checkRequired,
  checkText,
  limits,
} from "./text_checks.js";

export function checkGetTuple(request: GetTupleRequest): void {
  checkName("thread_id", request.threadId);
  checkText("checkpoint_ns", request.checkpointNs);
  checkText("checkpoint_id", request.checkpointId);
}

/**
 * What is stored can be sent, and sent back: to whoever reads it, and by an import. So its JSON as it
 * is printed fits a message too.
 */
export function checkPut(request: PutRequest, maxMessageSize: number): void {
  checkName("thread_id", request.threadId);
  checkText("checkpoint_ns", request.checkpointNs);
  checkName("checkpoint_id", request.checkpointId);
  checkCharacters("parent_checkpoint_id", request.parentCheckpointId);
  if (request.checkpointJson === "") {
    throw invalidArgument("checkpoint_json", "REQUIRED", "must not be empty");
  }
  const { printed, members } = checkStoredJson("checkpoint_json", request.checkpointJson);
  checkVersions("checkpoint_json", request.checkpointJson, members);
  const metadata = checkStoredJson("metadata_json", request.metadataJson || "{}");
  checkPrinted(request, printed + metadata.printed, Math.min(maxMessageSize, mostJsonBytes));
  checkText("lease_token", request.leaseToken, limits.leaseToken);
  checkCount("blobs", request.blobs.length);
  const channels = new Set<string>();
  for (const [i, blob] of request.blobs.entries()) {
    checkName(`blobs[${i}].channel`, blob.channel);
    checkName(`blobs[${i}].version`, blob.version);
    if (blob.value) checkValue(`blobs[${i}].value`, blob.value);
    if (channels.size === channels.add(blob.channel).size) {
      throw invalidArgument(`blobs[${i}].channel`, "DUPLICATE", "names a channel a second time");
    }
  }
}

function checkPrinted(put: PutRequest, printed: number, most: number): void {
  if (printed < most / 2) return;
  const { threadId, checkpointNs, checkpointId, parentCheckpointId } = put;
  const bytes =
    printed + Buffer.byteLength(threadId + checkpointNs + checkpointId + parentCheckpointId);
  if (bytes <= most) return;
  const isMetadata = put.metadataJson.length > put.checkpointJson.length;
  const message = `the checkpoint's JSON, with its metadata and names, is ${bytes} bytes when Postgres prints it, of at most ${most}`;
  throw invalidArgument(
    isMetadata ? "metadata_json" : "checkpoint_json",
    "TOO_LONG",
    message,
    most,
  );
}

/** Returns what is put, whose values may lack what is stored. */
export function checkPutExtending(
  { put, prefixes }: PutExtendingRequest,
  maxMessageSize: number,
): PutRequest {
  if (!put) throw invalidArgument("put", "REQUIRED", "must be set");
  checkPut(put, maxMessageSize);
  if (put.leaseToken !== "") {
    throw invalidArgument("lease_token", "OUT_OF_RANGE", "must be empty: use put");
  }
  checkCount("prefixes", prefixes.length);
  const prefixed = new Set<number>();
  let size = Buffer.byteLength(put.checkpointJson) + Buffer.byteLength(put.metadataJson);
  for (const { value } of put.blobs) size += value?.data.length ?? 0;
  for (const [i, prefix] of prefixes.entries()) {
    const { blobIndex, version, transactionId, length, offset, headLength } = prefix;
    const field = `prefixes[${i}]`;
    const value = put.blobs[blobIndex]?.value;
    if (value === undefined) {
      throw invalidArgument(
        `${field}.blob_index`,
        "OUT_OF_RANGE",
        "must be that of a blob with a value",
      );
    }
    if (prefixed.size === prefixed.add(blobIndex).size) {
      throw invalidArgument(`${field}.blob_index`, "DUPLICATE", "names a blob a second time");
    }
    checkName(`${field}.version`, version);
    checkName(`${field}.transaction_id`, transactionId, limits.transactionId);
    // Postgres takes one with a leading zero for an octal number.
    if (!/^(0|[1-9]\d*)$/.test(transactionId) || Number(transactionId) >= 2 ** 32) {
      const message = "must be one that a PutExtendingResponse gave";
      throw invalidArgument(`${field}.transaction_id`, "OUT_OF_RANGE", message);
    }
    if (length === 0) {
      throw invalidArgument(`${field}.length`, "OUT_OF_RANGE", "must be at least 1", 1);
    }
    if (offset > limits.offset) {
      const message = `must be at most ${limits.offset}: no stored value goes further`;
      throw invalidArgument(`${field}.offset`, "OUT_OF_RANGE", message, limits.offset);
    }
    if (headLength > value.data.length) {
      const message = `must be at most the ${value.data.length} bytes that came of the value`;
      throw invalidArgument(`${field}.head_length`, "OUT_OF_RANGE", message, value.data.length);
    }
    size += length;
  }
  if (size > maxMessageSize) {
    throw new CheckpointdError(
      "resource_exhausted",
      `put: ${size} bytes of values and JSON are more than the limit of ${maxMessageSize} bytes`,
      { reason: "TOO_LONG", field: "put", limit: maxMessageSize },
    );
  }
  return put;
}

export function checkPutWrites(request: PutWritesRequest): void {
  checkName("thread_id", request.threadId);
  checkText("checkpoint_ns", request.checkpointNs);
  checkName("checkpoint_id", request.checkpointId);
  checkName("task_id", request.taskId);
  checkCharacters("task_path", request.taskPath);
  checkText("lease_token", request.leaseToken, limits.leaseToken);
  checkCount("writes", request.writes.length);
  for (const [i, write] of request.writes.entries()) {
    // In no key, so it may be of any length; but it is never without.
    checkRequired(`writes[${i}].channel`, write.channel);
    checkCharacters(`writes[${i}].channel`, write.channel);
    if (!write.value) throw invalidArgument(`writes[${i}].value`, "REQUIRED", "must be set");
    checkValue(`writes[${i}].value`, write.value);
  }
}

/** Returns what is listed. */
export function checkListPage({ list }: ListPageRequest): ListRequest {
  if (!list) throw invalidArgument("list", "REQUIRED", "must be set");
  checkList(list);
  return list;
}

export function checkList(request: ListRequest): void {
  if (request.threadId !== undefined) checkName("thread_id", request.threadId);
  if (request.checkpointNs !== undefined) {
    checkText("checkpoint_ns", request.checkpointNs);
  }
  if (request.checkpointId !== undefined) {
    checkName("checkpoint_id", request.checkpointId);
  }
  if (request.beforeCheckpointId !== undefined) {
    checkName("before_checkpoint_id", request.beforeCheckpointId);
  }
  if (request.metadataFilterJson !== "") {
    checkFilterJson("metadata_filter_json", request.metadataFilterJson);
  }
  if (request.limit !== undefined && request.limit < 0) {
    throw invalidArgument("limit", "OUT_OF_RANGE", "must be zero or more", 0);
  }
  if (request.maxValueBytes !== undefined && request.maxValueBytes < 0) {
    throw invalidArgument("max_value_bytes", "OUT_OF_RANGE", "must be zero or more", 0);
  }
  checkCount("only_values", request.onlyValues.length);
  for (const [i, { channel, taskId }] of request.onlyValues.entries()) {
    checkRequired(`only_values[${i}].channel`, channel);
    checkCharacters(`only_values[${i}].channel`, channel);
    checkText(`only_values[${i}].task_id`, taskId);
  }
  if (!(request.view in [0, 1, 2])) {
    throw invalidArgument("view", "OUT_OF_RANGE", "must be a ListView this server knows");
  }
  const { after } = request;
  if (!after) return;
  checkName("after.thread_id", after.threadId);
  checkText("after.checkpoint_ns", after.checkpointNs);
  checkName("after.checkpoint_id", after.checkpointId);
  if (request.threadId !== undefined && request.threadId !== after.threadId) {
    throw invalidArgument("after.thread_id", "OUT_OF_RANGE", "must be the thread that is listed");
  }
  if (request.checkpointNs !== undefined && request.checkpointNs !== after.checkpointNs) {
    throw invalidArgument(
      "after.checkpoint_ns",
      "OUT_OF_RANGE",
      "must be the namespace that is listed",
    );
  }
}

export function checkDeleteThread(request: DeleteThreadRequest): void {
  checkName("thread_id", request.threadId);
}

function checkValue(field: string, value: Value): void {
  checkName(`${field}.type`, value.type, limits.type);
  if (value.type === "empty") {
    throw invalidArgument(
      `${field}.type`,
      "RESERVED",
      'must not be "empty", which marks a channel without a value: leave the value out',
    );
  }
}
