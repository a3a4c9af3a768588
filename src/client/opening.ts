/** Stored data, decrypted: nothing is handed on of which it is not certain what it is. */
import { Buffer } from "node:buffer";
import { create } from "@bufbuild/protobuf";
import {
  type ChannelBlob,
  ChannelBlobSchema,
  type CheckpointTuple,
  type PendingWrite,
  PendingWriteSchema,
  type Value,
  ValueSchema,
} from "../../gen/checkpointd/v1/checkpoint_pb.js";
import {
  type GetChannelHistoryResponse,
  GetChannelHistoryResponseSchema,
} from "../../gen/checkpointd/v1/thread_service_pb.js";
import { isSealed, readSealedHeader, sealKey } from "../protocol/sealed.js";
import { EncryptionError, type EncryptionReason } from "./encryption_error.js";
import { type EncryptionKey, type Keys, originOf, type ThreadOrigin } from "./encryption_keys.js";
import { fromContent, open } from "./sealed_bytes.js";
import {
  type ClosedSeal,
  openSeal,
  type Said,
  seriesOf,
  toClosedSeal,
  valuePlace,
  writePlace,
} from "./sealed_checkpoint.js";
import type { Place, ThreadOrigins } from "./thread_origins.js";
import { versionText } from "./versions.js";

/** What is known of a checkpoint; of one without a seal what the service says. */
interface Known {
  place: Place;
  origin: ThreadOrigin;
  said?: Said;
  versions: Record<string, unknown>;
  inlined: Record<string, unknown>;
}

/** Which checkpoint was asked for, as far as it was said; the latest where the id is empty. */
export type Asked = { readonly [Name in keyof Place]?: string | undefined };

type Ids = ReadonlyMap<string, EncryptionKey>;

/** Decrypts for one saver. */
export class Opening {
  readonly #keys: Keys;
  readonly #origins: ThreadOrigins;
  readonly #acceptsPlaintext: boolean;
  /** Tuples of a list share the blobs that they have in common. */
  readonly #blobs = new WeakMap<ChannelBlob, { of: string; blob: ChannelBlob }>();

  constructor(keys: Keys, origins: ThreadOrigins, acceptsPlaintext: boolean) {
    this.#keys = keys;
    this.#origins = origins;
    this.#acceptsPlaintext = acceptsPlaintext;
  }

  /** The tuple, its origin, and the channels whose values are in its JSON. */
  async tuple(tuple: CheckpointTuple, asked: Asked) {
    const { threadId = "", checkpointNs = "", checkpointId = "" } = tuple.key ?? {};
    const place = { threadId, checkpointNs, checkpointId };
    if (
      threadId !== (asked.threadId ?? threadId) ||
      checkpointNs !== (asked.checkpointNs ?? checkpointNs) ||
      checkpointId !== (asked.checkpointId || checkpointId)
    ) {
      throw refusal("NOT_AUTHENTIC", place, "it is another one than was asked for");
    }
    const { [sealKey]: sealText, ...plain } = toRecord(JSON.parse(tuple.checkpointJson));
    const closed = this.#closedSeal(place, sealText);
    const keys = await this.#keysOf(closed, [...tuple.blobs, ...tuple.pendingWrites]);
    const known = this.#known(keys, place, closed, plain);
    const { origin, said, inlined } = known;
    const blobs = tuple.blobs.map((blob) => this.#blob(keys, known, blob));
    const names = new Set(blobs.map(({ channel }) => channel));
    const missing = said?.valued.find((channel) => !names.has(channel));
    if (missing !== undefined) {
      throw refusal("WITHHELD", place, `its value of channel "${missing}" is missing`);
    }
    this.#checkPlain(place, "what was sent to it", tuple.pendingSends);
    const opened: CheckpointTuple = {
      ...tuple,
      ...(said ? { checkpointJson: said.checkpointJson, metadataJson: said.metadataJson } : {}),
      blobs,
      pendingWrites: this.#writes(keys, known, tuple.pendingWrites),
    };
    if (said) {
      delete opened.parentCheckpointId;
      if (said.parentCheckpointId !== "") opened.parentCheckpointId = said.parentCheckpointId;
    }
    return {
      opened,
      place,
      origin,
      inlined: Object.keys(inlined).filter((channel) => !names.has(channel)),
    };
  }

  /**
   * The messages of a history, from the target on and each the parent of the one before. Those that hold
   * nothing are left out.
   */
  async *history(
    target: Place,
    channels: readonly string[],
    messages: AsyncIterable<GetChannelHistoryResponse>,
  ): AsyncGenerator<GetChannelHistoryResponse, void> {
    const wanted = new Set(channels);
    /** The id that the next message has to have, if that is known. */
    let expected: string | undefined = target.checkpointId || undefined;
    let isTarget = true;
    for await (const message of messages) {
      const place = { ...target, checkpointId: message.checkpointId };
      if (expected !== undefined && expected !== message.checkpointId) {
        throw refusal("NOT_AUTHENTIC", place, `it was told where "${expected}" belongs`);
      }
      const closed = this.#closedSeal(place, message.seal || undefined);
      const keys = await this.#keysOf(closed, [...message.seeds, ...message.writes]);
      const known = this.#known(keys, place, closed, {});
      expected = known.said?.parentCheckpointId;
      if (isTarget) {
        isTarget = false;
        continue;
      }
      yield this.#ancestor(keys, known, message, wanted);
    }
    if (expected && wanted.size > 0 && !isTarget) {
      const place = { ...target, checkpointId: expected };
      throw refusal("WITHHELD", place, "a channel is rebuilt from it, and it is missing");
    }
  }

  #ancestor(
    keys: Ids,
    known: Known,
    message: GetChannelHistoryResponse,
    wanted: Set<string>,
  ): GetChannelHistoryResponse {
    const { place, said, inlined } = known;
    const seeds = message.seeds.map((blob) => this.#blob(keys, known, blob));
    const seeded = new Set(seeds.map(({ channel }) => channel));
    const missing = said?.valued.find((channel) => wanted.has(channel) && !seeded.has(channel));
    if (missing !== undefined) {
      throw refusal("WITHHELD", place, `its value of channel "${missing}" is missing`);
    }
    this.#checkPlain(place, "what was sent to it", message.pendingSends);
    const inlineSeeds = said ? {} : message.inlineSeeds;
    if (said) {
      for (const [channel, value] of Object.entries(inlined)) {
        if (wanted.has(channel)) inlineSeeds[channel] = JSON.stringify(value);
      }
    }
    const writes = this.#writes(keys, known, message.writes);
    for (const channel of [...seeded, ...Object.keys(inlineSeeds)]) wanted.delete(channel);
    return create(GetChannelHistoryResponseSchema, {
      checkpointId: message.checkpointId,
      writes,
      seeds,
      inlineSeeds,
      pendingSends: message.pendingSends,
    });
  }

  #closedSeal(place: Place, text: unknown): ClosedSeal | undefined {
    if (text === undefined) {
      if (this.#acceptsPlaintext) return undefined;
      throw refusal("PLAINTEXT", place, "it is not encrypted");
    }
    const closed = typeof text === "string" ? toClosedSeal(text) : undefined;
    if (!closed) throw refusal("NOT_AUTHENTIC", place, "its seal is damaged");
    return closed;
  }

  /** The keys that the seal and the values name. */
  async #keysOf(
    closed: ClosedSeal | undefined,
    parts: readonly { value?: Value | undefined }[],
  ): Promise<Ids> {
    const ids = new Set<string>();
    if (closed) ids.add(closed.header.keyId);
    for (const { value } of parts) {
      if (!value || !isSealed(value.type)) continue;
      const header = readSealedHeader(value.data);
      if (header) ids.add(header.keyId);
    }
    return this.#keys.byIds(ids);
  }

  #known(
    keys: Ids,
    place: Place,
    closed: ClosedSeal | undefined,
    plain: Record<string, unknown>,
  ): Known {
    if (!closed) return { place, origin: originOf(place.threadId), ...contentsOf(plain) };
    let said: Said;
    try {
      said = openSeal(this.#keys, keys.get(closed.header.keyId)!, place, closed);
    } catch {
      throw refusal("NOT_AUTHENTIC", place, `its seal is ${whyNot(closed.header.keyId)}`);
    }
    this.#origins.check(said.origin, place.threadId);
    this.#origins.remember(place, said.origin);
    return { place, origin: said.origin, said, ...contentsOf(JSON.parse(said.checkpointJson)) };
  }

  #blob(keys: Ids, known: Known, blob: ChannelBlob): ChannelBlob {
    const { place, origin, said, versions } = known;
    const { channel, version, value } = blob;
    const what = `its value of channel "${channel}"`;
    // The version that the checkpoint names, and no other that the channel had.
    if (said && !(Object.hasOwn(versions, channel) && isVersion(versions[channel], version))) {
      throw refusal("NOT_AUTHENTIC", place, `${what} is of another version`);
    }
    const of = JSON.stringify([origin.name, place.checkpointNs]);
    const shared = this.#blobs.get(blob);
    if (shared?.of === of) return shared.blob;
    const at = valuePlace(value?.type ?? "", place.checkpointNs, channel, version);
    const series = seriesOf(place.checkpointNs, channel);
    const opened = create(ChannelBlobSchema, {
      channel,
      version,
      value: this.#value(keys, known, what, at, value, series),
    });
    this.#blobs.set(blob, { of, blob: opened });
    return opened;
  }

  /** Writes in their order, each once. */
  #writes(keys: Ids, known: Known, writes: readonly PendingWrite[]): PendingWrite[] {
    const { checkpointNs, checkpointId } = known.place;
    return writes.map((write, i) => {
      const before = writes[i - 1];
      const what = `its write to channel "${write.channel}" of task "${write.taskId}"`;
      if (before && !isBefore(before, write)) {
        throw refusal("NOT_AUTHENTIC", known.place, `${what} is out of order`);
      }
      const at = writePlace(write.value?.type ?? "", checkpointNs, checkpointId, write);
      const value = this.#value(keys, known, what, at, write.value);
      return create(PendingWriteSchema, { ...write, value });
    });
  }

  #value(
    keys: Ids,
    { place, origin }: Known,
    what: string,
    at: Buffer,
    value: Value | undefined,
    series?: Buffer,
  ): Value {
    if (!value) throw refusal("WITHHELD", place, `${what} is missing`);
    if (!isSealed(value.type)) {
      this.#checkPlain(place, what, [value]);
      return value;
    }
    const { buffer, byteOffset, length } = value.data;
    const sealed = Buffer.from(buffer, byteOffset, length);
    const header = readSealedHeader(sealed);
    if (!header) throw refusal("NOT_AUTHENTIC", place, `${what} is damaged`);
    try {
      const key = this.#keys.ofThread(keys.get(header.keyId)!, origin.id);
      return create(ValueSchema, fromContent(open(key, at, series, sealed, header)));
    } catch {
      throw refusal("NOT_AUTHENTIC", place, `${what} is ${whyNot(header.keyId)}`);
    }
  }

  #checkPlain(place: Place, what: string, values: readonly Value[]): void {
    for (const { type } of values) {
      if (isSealed(type)) {
        throw refusal("NOT_AUTHENTIC", place, `${what} is encrypted, of a format before 4`);
      }
      if (!this.#acceptsPlaintext) throw refusal("PLAINTEXT", place, `${what} is not encrypted`);
    }
  }
}

const whyNot = (keyId: string) =>
  `not what was stored there: it was altered or belongs elsewhere, or the key "${keyId}" is another one`;

function refusal(reason: EncryptionReason, place: Place, why: string): EncryptionError {
  const { threadId, checkpointNs, checkpointId } = place;
  const ns = checkpointNs === "" ? "" : ` in ${JSON.stringify(checkpointNs)}`;
  return new EncryptionError(
    reason,
    `checkpoint ${checkpointId}${ns} of thread ${JSON.stringify(threadId)} was not read: ${why}`,
  );
}

function contentsOf({ channel_versions, channel_values }: Record<string, unknown>) {
  return { versions: toRecord(channel_versions), inlined: toRecord(channel_values) };
}

const toRecord = (value: unknown) =>
  (typeof value === "object" && value !== null ? value : {}) as Record<string, unknown>;

/** Whether a version in a checkpoint's JSON is the one of that text. */
function isVersion(version: unknown, text: string): boolean {
  return version === text || (typeof version === "number" && versionText("", version) === text);
}

/** By task path, task and idx, as the service orders writes. */
function isBefore(a: PendingWrite, b: PendingWrite): boolean {
  const order =
    Buffer.compare(Buffer.from(a.taskPath), Buffer.from(b.taskPath)) ||
    Buffer.compare(Buffer.from(a.taskId), Buffer.from(b.taskId)) ||
    a.idx - b.idx;
  return order < 0;
}
