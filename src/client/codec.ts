/**
 * Between LangGraph's objects and the service's messages. The only caller of the serializer:
 * values travel as it wrote them, checkpoint and metadata as JSON text that jsonb accepts.
 */
import type { MessageInitShape } from "@bufbuild/protobuf";
import {
  type ChannelVersions,
  type Checkpoint,
  type CheckpointMetadata,
  type CheckpointPendingWrite,
  type CheckpointTuple,
  MemorySaver,
  maxChannelVersion,
  type PendingWrite,
  type SerializerProtocol,
  TASKS,
  WRITES_IDX_MAP,
} from "@langchain/langgraph-checkpoint";
import type {
  ChannelBlobSchema,
  CheckpointTuple as StoredTuple,
  Value,
  ValueSchema,
} from "../../gen/checkpointd/v1/checkpoint_pb.js";
import type { WriteSchema } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { graphKey } from "../protocol/metadata.js";
import { sealKey } from "../protocol/sealed.js";
import { EncryptionError } from "./encryption_error.js";
import { checkName } from "./names.js";
import { toJson, unwritable } from "./options.js";
import { findClasses, whyUnreadable } from "./readable.js";
import { nextVersion, versionText } from "./versions.js";

type ValueInit = MessageInitShape<typeof ValueSchema>;
type BlobInit = MessageInitShape<typeof ChannelBlobSchema>;
type WriteInit = MessageInitShape<typeof WriteSchema>;

// Metadata is searched as jsonb in Postgres, so it stays JSON whatever serde the values use.
// LangGraph does not export its JsonPlusSerializer; this is how it hands one out.
const metadataSerde = new MemorySaver().serde;

/**
 * One blob for each channel of `newVersions`, without a value where `values` has none.
 * Rejects, naming the channel, where a name or version cannot be stored unaltered, or a value
 * cannot be serialized.
 */
export async function toBlobs(
  serde: SerializerProtocol,
  values: Record<string, unknown>,
  newVersions: ChannelVersions,
): Promise<BlobInit[]> {
  const stored: unknown[] = [];
  const names: string[] = [];
  const blobs = Object.entries(newVersions).map(([name, rawVersion]): BlobInit => {
    const channel = checkName("a channel's name", name);
    const field = `the version of channel "${name}"`;
    const version = checkName(field, versionText(field, rawVersion));
    if (!Object.hasOwn(values, name)) return { channel, version };
    stored.push(values[name]);
    names.push(name);
    // Replaced below.
    return { channel, version, value: {} };
  });
  const dumped = await toValues(serde, stored, (i) => `the value of channel "${names[i]}"`);
  let next = 0;
  for (const blob of blobs) if (blob.value) blob.value = dumped[next++]!;
  return blobs;
}

/**
 * The writes of one task, in order, each with its position or its special channel's index. Rejects
 * as {@link toBlobs} does.
 */
export async function toWrites(
  serde: SerializerProtocol,
  writes: PendingWrite[],
): Promise<WriteInit[]> {
  const inits = writes.map(
    ([name], position): WriteInit => ({
      // Own keys only: a channel may be called "constructor".
      idx: Object.hasOwn(WRITES_IDX_MAP, name) ? WRITES_IDX_MAP[name]! : position,
      channel: checkName("a channel's name", name),
    }),
  );
  const values = await toValues(
    serde,
    writes.map(([, value]) => value),
    (i) => `the write to channel "${writes[i]?.[0]}"`,
  );
  for (const [i, init] of inits.entries()) init.value = values[i]!;
  return inits;
}

/**
 * The default serde hands a Uint8Array on as it is, another one may hand out memory of the graph or
 * of its own, and either may go on changing it while the call is sent, or sent again, or while later
 * values are compared with it. Of its own class still, which a serde may look at.
 */
const copyOf = (value: Uint8Array): Uint8Array => Uint8Array.prototype.slice.call(value);

/**
 * All at once rather than one after the other: every dumpsTyped starts before the caller runs
 * again, so what is stored is what the graph held when it called put. A promise for each and no
 * more: under LangGraph's async_hooks every one of them costs.
 */
async function toValues(
  serde: SerializerProtocol,
  values: readonly unknown[],
  nameOf: (index: number) => string,
): Promise<ValueInit[]> {
  const dumping = values.map((value) =>
    serde.dumpsTyped(value instanceof Uint8Array ? copyOf(value) : value),
  );
  const dumped = await Promise.all(dumping).catch(async (error: unknown) => {
    const settled = await Promise.allSettled(dumping);
    const failed = settled.findIndex(({ status }) => status === "rejected");
    throw unserializable(nameOf(failed), (error as Error)?.message ?? String(error), error);
  });
  if (serde.constructor !== metadataSerde.constructor) {
    return dumped.map(([type, data]) => ({ type, data: copyOf(data) }));
  }
  const doubtful: { index: number; classes: string[] }[] = [];
  const checked = dumped.map(([type, data], i) => {
    if (type === "json") {
      // A function, a symbol, or what toJSON makes one of: no JSON at all, which the direct savers
      // store, and cannot read any more. undefined is what they are in an object, and in a channel.
      if (data.length === 0) return { type, data: undefinedJson };
      if (isGivenUp(data) && values[i] !== givenUp) {
        throw unserializable(nameOf(i), "a BigInt, a toJSON that throws, or too deep for JSON");
      }
      const classes = findClasses(data);
      if (classes.length > 0) doubtful.push({ index: i, classes });
    }
    return { type, data };
  });
  for (const { index, classes } of doubtful) {
    const why = await whyUnreadable(serde, checked[index]!.data, classes);
    if (why) throw unserializable(nameOf(index), why);
  }
  return checked;
}

/** How LangGraph's serializer writes undefined. */
const undefinedJson = new TextEncoder().encode('{"lc":2,"type":"undefined"}');

/**
 * What LangGraph's serializer makes of a value that JSON.stringify throws at, whatever the reason:
 * the whole value is lost, silently, and comes back as this text.
 */
const givenUp = "[unable to serialize, circular reference is too complex to analyze]";
const givenUpJson = new TextEncoder().encode(JSON.stringify(givenUp));

const isGivenUp = (data: Uint8Array) =>
  data.length === givenUpJson.length && givenUpJson.every((byte, i) => data[i] === byte);

function unserializable(what: string, why: string, cause?: unknown): Error {
  return new Error(
    `${what} cannot be stored: LangGraph's serializer has no way for it (${why}); ` +
      "convert it before it goes into the state",
    { cause },
  );
}

/**
 * The checkpoint without its channel values, as JSON that jsonb accepts.
 * Throws, naming the key, if a channel's or node's name or version in `channel_versions` or
 * `versions_seen` has a NUL or a lone surrogate: stored under another name, the graph would
 * not find them again.
 */
export function toCheckpointJson(checkpoint: Checkpoint): string {
  const { channel_values: _, ...rest } = checkpoint;
  const text = toJson("checkpoint", rest);
  const storable = storableJson(text);
  // Names are looked at only when something was replaced, which is next to never.
  if (storable !== text) {
    checkNames("channel_versions", rest.channel_versions);
    checkNames("versions_seen", rest.versions_seen);
  }
  return storable;
}

function checkNames(field: string, versions: unknown): void {
  if (typeof versions === "string") checkName(`a version in ${field}`, versions);
  if (typeof versions !== "object" || versions === null) return;
  for (const [name, version] of Object.entries(versions)) {
    checkName(`a name in ${field}`, name);
    checkNames(field, version);
  }
}

/**
 * The metadata as JSON that jsonb accepts, with the graph's name if it has one. Rejects with a
 * TypeError, naming the key of a BigInt, for what is no object as JSON.
 */
export async function toMetadataJson(
  metadata: CheckpointMetadata,
  graph?: string,
): Promise<string> {
  if (typeof metadata !== "object" || metadata === null) {
    throw new TypeError("metadata must be an object that can be written as JSON");
  }
  const named = graph === undefined ? metadata : { ...metadata, [graphKey]: graph };
  try {
    const [value] = await toValues(metadataSerde, [named], () => "metadata");
    const text = new TextDecoder().decode(value?.data);
    // LangGraph's serializer writes a text in place of what it cannot write.
    if (text.startsWith("{")) return storableJson(text);
  } catch (error) {
    throw unwritable("metadata", metadata, error, "stored as JSON");
  }
  throw unwritable("metadata", metadata, undefined, "stored as JSON");
}

/** The filter of a list as JSON, altered as metadata is, or "" when it asks for nothing. */
export function toFilterJson(filter: Record<string, unknown> | undefined): string {
  if (filter === undefined || filter === null || Object.keys(filter).length === 0) return "";
  return storableJson(toJson("filter", filter));
}

/**
 * JSON text that jsonb accepts: escaped NULs are dropped (as LangGraph does with metadata) and
 * escaped lone surrogates become U+FFFD. `text` must come from JSON.stringify, which escapes
 * both. An escaped backslash that happens to stand before "u0000" is left alone.
 */
export function storableJson(text: string): string {
  // A scan for two characters, against a regular expression over every escape.
  if (!text.includes("\\u")) return text;
  return text.replace(
    /\\u[dD][89abAB][\da-fA-F]{2}\\u[dD][c-fC-F][\da-fA-F]{2}|\\u([\da-fA-F]{4})|\\[^u]/g,
    (escaped: string, hex: string | undefined) => {
      if (hex === undefined) return escaped;
      if (hex === "0000") return "";
      return /^[dD][89a-fA-F]/.test(hex) ? "\\ufffd" : escaped;
    },
  );
}

/**
 * A stored tuple as LangGraph's direct Postgres saver returns it, without the graph's name: the
 * metadata that a graph gets is the one it put, so that a name neither shows in `getState` nor
 * travels on by itself, as metadata does with `updateState`. `threadId` is the thread as
 * the caller spelled it (a number stays a number), or absent to take the stored one. Rejects with an
 * EncryptionError if it is encrypted.
 */
export async function fromTuple(
  serde: SerializerProtocol,
  tuple: StoredTuple,
  threadId?: unknown,
): Promise<CheckpointTuple> {
  const key = tuple.key!;
  const [checkpoint, metadata, pendingWrites] = await Promise.all([
    fromCheckpoint(serde, tuple),
    fromMetadataJson(tuple.metadataJson),
    Promise.all(
      tuple.pendingWrites.map(
        async (write): Promise<CheckpointPendingWrite> => [
          write.taskId,
          write.channel,
          await fromValue(serde, write.value),
        ],
      ),
    ),
  ]);
  const configurable = (checkpoint_id: string) => ({
    configurable: {
      thread_id: threadId ?? key.threadId,
      checkpoint_ns: key.checkpointNs,
      checkpoint_id,
    },
  });
  // parentConfig is there but undefined for a first checkpoint, as with the direct saver; the
  // cast is for exactOptionalPropertyTypes.
  return {
    config: configurable(key.checkpointId),
    checkpoint,
    metadata,
    parentConfig: tuple.parentCheckpointId ? configurable(tuple.parentCheckpointId) : undefined,
    pendingWrites,
  } as CheckpointTuple;
}

async function fromMetadataJson(json: string): Promise<CheckpointMetadata> {
  const metadata = await metadataSerde.loadsTyped("json", json);
  delete metadata[graphKey];
  return metadata;
}

async function fromCheckpoint(serde: SerializerProtocol, tuple: StoredTuple): Promise<Checkpoint> {
  const checkpoint = JSON.parse(tuple.checkpointJson) as Checkpoint;
  // Its values would be refused one by one, but for those that Python keeps in the JSON.
  if (Object.hasOwn(checkpoint, sealKey)) {
    const thread = JSON.stringify(tuple.key?.threadId);
    throw new EncryptionError(
      "ENCRYPTED",
      `checkpoint ${checkpoint.id} of thread ${thread} is encrypted: give the saver its encryption`,
    );
  }
  const values = checkpoint.channel_values ?? {};
  const versions = checkpoint.channel_versions ?? {};
  checkpoint.channel_values = values;
  checkpoint.channel_versions = versions;
  checkpoint.versions_seen ??= {};
  const decoded = await Promise.all(tuple.blobs.map((blob) => fromValue(serde, blob.value)));
  for (let i = 0; i < decoded.length; i++) {
    const blob = tuple.blobs[i]!;
    if (blob.value?.type !== "empty") setOwn(values, blob.channel, decoded[i]);
  }
  if (tuple.pendingSends.length > 0) {
    values[TASKS] = await fromPendingSends(serde, tuple);
    const all = Object.values(versions);
    versions[TASKS] = all.length > 0 ? maxChannelVersion(...all) : nextVersion(undefined);
  }
  return checkpoint;
}

/** The values the parent's tasks sent, in order; only checkpoints of a format before 4 have any. */
export function fromPendingSends(
  serde: SerializerProtocol,
  tuple: StoredTuple,
): Promise<unknown[]> {
  return Promise.all(tuple.pendingSends.map((value) => fromValue(serde, value)));
}

/**
 * The decoded value. A channel stored as emptied, or no value at all, is undefined, and so is JSON of
 * no bytes, which the direct savers store of a function or a symbol.
 */
export async function fromValue(
  serde: SerializerProtocol,
  value: Value | undefined,
): Promise<unknown> {
  if (value === undefined || value.type === "empty") return undefined;
  // What the message holds is a view of the whole answer. A serde may keep the bytes it is
  // given (the default one does for type "bytes"), which must neither pin 64 MiB for ten bytes
  // nor be a Buffer where a Uint8Array was stored. JSON is read and dropped: no copy.
  const data = value.type === "json" ? value.data : new Uint8Array(value.data);
  if (data.length > 0 || value.type !== "json") return serde.loadsTyped(value.type, data);
  // Asked first, because another serde may know what to make of it.
  try {
    return await serde.loadsTyped(value.type, data);
  } catch {
    return undefined;
  }
}

/** Sets an own property, also for the key `__proto__`, where an assignment would not. */
function setOwn(target: Record<string, unknown>, key: string, value: unknown): void {
  if (key === "__proto__") {
    Object.defineProperty(target, key, {
      value,
      writable: true,
      enumerable: true,
      configurable: true,
    });
  } else {
    target[key] = value;
  }
}
