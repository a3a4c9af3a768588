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

/** Limits of texts in bytes of UTF-8, and of lists in elements. */
export const limits = {
  /** A name that is in a key, or may be. The longest that Postgres can compress to fit are shorter. */
  name: 65_536,
  /** The largest is 4294967295. */
  transactionId: 10,
  /** Where a bytea of Postgres ends. */
  offset: 1024 ** 3,
  type: 256,
  /** Channels or writes. A graph has a channel for each field of its state, and one for each node. */
  elements: 100_000,
  leaseToken: 64,
  owner: 256,
  /** Threads or runs that one request may name, and threads it may claim. */
  threads: 1_000,
  keepLast: 1_000_000,
} as const;

export function checkGetTuple(request: GetTupleRequest): void {
  checkName("thread_id", request.threadId);
  checkText("checkpoint_ns", request.checkpointNs);
  checkText("checkpoint_id", request.checkpointId);
}

export function checkPut(request: PutRequest): void {
  checkName("thread_id", request.threadId);
  checkText("checkpoint_ns", request.checkpointNs);
  checkName("checkpoint_id", request.checkpointId);
  checkCharacters("parent_checkpoint_id", request.parentCheckpointId);
  if (request.checkpointJson === "") {
    throw invalidArgument("checkpoint_json", "REQUIRED", "must not be empty");
  }
  checkJsonObject("checkpoint_json", request.checkpointJson);
  if (request.metadataJson !== "") checkJsonObject("metadata_json", request.metadataJson);
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

/** Returns what is put, whose values may lack what is stored. */
export function checkPutExtending(
  { put, prefixes }: PutExtendingRequest,
  maxMessageSize: number,
): PutRequest {
  if (!put) throw invalidArgument("put", "REQUIRED", "must be set");
  checkPut(put);
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
    checkJsonObject("metadata_filter_json", request.metadataFilterJson);
  }
  if (request.limit !== undefined && request.limit < 0) {
    throw invalidArgument("limit", "OUT_OF_RANGE", "must be zero or more", 0);
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

export function checkName(field: string, text: string, limit: number = limits.name): void {
  checkRequired(field, text);
  checkText(field, text, limit);
}

function checkRequired(field: string, text: string): void {
  if (text === "") throw invalidArgument(field, "REQUIRED", "must not be empty");
}

export function checkText(field: string, text: string, limit: number = limits.name): void {
  // A UTF-16 unit is at most 3 bytes of UTF-8, so most names need no counting.
  if (text.length * 3 > limit && Buffer.byteLength(text) > limit) {
    throw invalidArgument(field, "TOO_LONG", `must be at most ${limit} bytes`, limit);
  }
  checkCharacters(field, text);
}

export function checkCharacters(field: string, text: string): void {
  if (text.includes("\0")) {
    throw invalidArgument(field, "NUL_CHARACTER", "must not hold a NUL character");
  }
  if (!text.isWellFormed()) {
    throw invalidArgument(field, "LONE_SURROGATE", "must not hold a lone surrogate");
  }
}

/** Only what costs nothing to see; Postgres parses the rest (see store/json.ts). */
export function checkJsonObject(field: string, text: string): void {
  checkCharacters(field, text);
  if (!/^\s*\{/.test(text)) {
    throw invalidArgument(field, "NOT_A_JSON_OBJECT", "must be a JSON object");
  }
  if (exponent.test(text)) checkExponents(field, text);
}

/** How much longer a text of JSON may be when it is read than it came, at the most as long again. */
const mostDigits = 1024 * 1024;
/** A number told by an exponent of two digits or more, or what looks like one in a string. */
const exponent = /[:[,\s]-?\d+(?:\.\d+)?[eE][+-]?\d\d/;

/**
 * jsonb keeps 1e131071 in a few bytes and writes all its digits: 10,000 of them, in 169 KB, were 1.3 GB
 * for whoever listed them.
 */
function checkExponents(field: string, text: string): void {
  let digits = 0;
  for (const [, power] of text.matchAll(/"(?:[^"\\]|\\.)*"|\d[eE][+-]?(\d+)/g)) {
    digits += Number(power ?? 0);
    if (digits <= mostDigits + text.length) continue;
    const message = `numbers with exponents must not have more than ${mostDigits} digits in all when written out`;
    throw invalidArgument(field, "OUT_OF_RANGE", message, mostDigits);
  }
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

export function checkCount(field: string, count: number, limit: number = limits.elements): void {
  if (count > limit) {
    const message = `must have at most ${limit} elements, has ${count}`;
    throw invalidArgument(field, "TOO_MANY", message, limit);
  }
}
