/** Stored data, decrypted: nothing is handed on of which it is not certain what it is. */
import { Buffer } from "node:buffer";
import { create } from "@bufbuild/protobuf";
import { TASKS } from "@langchain/langgraph-checkpoint";
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
import type { KnownCheckpoint, Place } from "./known_checkpoints.js";
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
import type { ThreadOrigins } from "./thread_origins.js";
import { versionText } from "./versions.js";

/** A checkpoint as its seal has it; one without a seal as the service says. */
interface Unsealed {
  place: Place;
  origin: ThreadOrigin;
  said?: Said;
  /** Whether its format has what its parent's tasks sent among its own values. */
  hasOwnSends: boolean;
  versions: Record<string, unknown>;
  inlined: Record<string, unknown>;
}

/** Which checkpoint was asked for, as far as it was said; the latest where the id is empty. */
export type Asked = { readonly [Name in keyof Place]?: string | undefined };

/** A tuple that was decrypted. */
export interface Opened {
  opened: CheckpointTuple;
  place: Place;
  known: KnownCheckpoint;
}

type Ids = ReadonlyMap<string, EncryptionKey>;

/** Decrypts for one saver. */
export class Opening {
  readonly #keys: Keys;
  readonly #origins: ThreadOrigins;
  readonly #acceptsPlaintext: boolean;
  readonly #read: (place: Place) => Promise<Opened | undefined>;
  /** Tuples of a list share the blobs that they have in common. */
  readonly #blobs = new WeakMap<ChannelBlob, { of: string; blob: ChannelBlob }>();

  /** `read` reads another checkpoint. */
  constructor(
    keys: Keys,
    origins: ThreadOrigins,
    acceptsPlaintext: boolean,
    read: (place: Place) => Promise<Opened | undefined>,
  ) {
    this.#keys = keys;
    this.#origins = origins;
    this.#acceptsPlaintext = acceptsPlaintext;
    this.#read = read;
  }

  /** The tuple, which has to be one that was asked for. */
  async tuple(tuple: CheckpointTuple, asked: Asked, withSends = true): Promise<Opened> {
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
    const unsealed = this.#unsealed(keys, place, closed, plain);
    const { origin, said, inlined } = unsealed;
    const blobs = tuple.blobs.map((blob) => this.#blob(keys, unsealed, blob));
    const names = new Set(blobs.map(({ channel }) => channel));
    const missing = said?.valued.find((channel) => !names.has(channel));
    if (missing !== undefined) {
      throw refusal("WITHHELD", place, `its value of channel "${missing}" is missing`);
    }
    const opened: CheckpointTuple = {
      ...tuple,
      ...(said ? { checkpointJson: said.checkpointJson, metadataJson: said.metadataJson } : {}),
      blobs,
      pendingWrites: this.#writes(keys, unsealed, tuple.pendingWrites),
    };
    if (said) {
      delete opened.parentCheckpointId;
      if (said.parentCheckpointId !== "") opened.parentCheckpointId = said.parentCheckpointId;
    }
    const parent = { ...place, checkpointId: opened.parentCheckpointId ?? "" };
    opened.pendingSends = withSends ? await this.#sends(unsealed, parent, tuple.pendingSends) : [];
    const valued = new Map(blobs.map(({ channel, version }) => [channel, version]));
    const alone = Object.keys(inlined).filter((channel) => !valued.has(channel));
    return { opened, place, known: { origin, valued, inlined: alone } };
  }

  /**
   * The messages of a history, from the target on, which is there if it is known, and each the parent of
   * the one before.
   */
  async *history(
    target: Place,
    known: KnownCheckpoint | undefined,
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
      const unsealed = this.#unsealed(keys, place, closed, {});
      expected = unsealed.said?.parentCheckpointId;
      if (isTarget) {
        isTarget = false;
        continue;
      }
      yield await this.#ancestor(keys, unsealed, message, wanted);
    }
    if (expected && wanted.size > 0 && !(isTarget && known === undefined)) {
      const place = { ...target, checkpointId: expected };
      throw refusal("WITHHELD", place, "a channel is rebuilt from it, and it is missing");
    }
  }

  async #ancestor(
    keys: Ids,
    unsealed: Unsealed,
    message: GetChannelHistoryResponse,
    wanted: Set<string>,
  ): Promise<GetChannelHistoryResponse> {
    const { place, said, inlined } = unsealed;
    // A channel's walk ends at the first value: one that is told after it is an older one.
    const isWanted = ({ channel }: { channel: string }) => wanted.has(channel);
    const seeds = message.seeds.filter(isWanted).map((blob) => this.#blob(keys, unsealed, blob));
    const seeded = new Set(seeds.map(({ channel }) => channel));
    const missing = said?.valued.find((channel) => wanted.has(channel) && !seeded.has(channel));
    if (missing !== undefined) {
      throw refusal("WITHHELD", place, `its value of channel "${missing}" is missing`);
    }
    const parent = { ...place, checkpointId: said?.parentCheckpointId ?? "" };
    const inline = said
      ? Object.entries(inlined).map(([channel, value]) => [channel, JSON.stringify(value)] as const)
      : Object.entries(message.inlineSeeds);
    const inlineSeeds = Object.fromEntries(inline.filter(([channel]) => wanted.has(channel)));
    const writes = this.#writes(keys, unsealed, message.writes.filter(isWanted));
    const sends = isWanted({ channel: TASKS }) ? message.pendingSends : [];
    if (sends.length > 0) seeded.add(TASKS);
    for (const channel of [...seeded, ...Object.keys(inlineSeeds)]) wanted.delete(channel);
    return create(GetChannelHistoryResponseSchema, {
      checkpointId: message.checkpointId,
      writes,
      seeds,
      inlineSeeds,
      pendingSends: await this.#sends(unsealed, parent, sends),
    });
  }

  /** What a checkpoint of a format before 4 was sent, which is told without saying by which tasks. */
  async #sends(of: Unsealed, parent: Place, sends: readonly Value[]): Promise<Value[]> {
    if (!sends.some(({ type }) => isSealed(type))) {
      this.#checkPlain(parent, "what was sent by it", sends);
      return [...sends];
    }
    // They would be done a second time.
    if (of.hasOwnSends)
      throw refusal("NOT_AUTHENTIC", of.place, "it was told what its parent sent");
    const read = parent.checkpointId === "" ? undefined : await this.#read(parent);
    if (!read) throw refusal("WITHHELD", parent, "it sent what is encrypted, and is missing");
    const sent = read.opened.pendingWrites.filter(({ channel }) => channel === TASKS);
    return sent.map(({ value }) => value ?? create(ValueSchema));
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

  #unsealed(
    keys: Ids,
    place: Place,
    closed: ClosedSeal | undefined,
    plain: Record<string, unknown>,
  ): Unsealed {
    if (!closed) return { place, origin: originOf(place.threadId), ...contentsOf(plain) };
    let said: Said;
    try {
      said = openSeal(this.#keys, keys.get(closed.header.keyId)!, place, closed);
    } catch {
      throw refusal("NOT_AUTHENTIC", place, `its seal is ${whyNot(closed.header.keyId)}`);
    }
    this.#origins.check(said.origin, place.threadId);
    return { place, origin: said.origin, said, ...contentsOf(JSON.parse(said.checkpointJson)) };
  }

  #blob(keys: Ids, unsealed: Unsealed, blob: ChannelBlob): ChannelBlob {
    const { place, origin, said, versions } = unsealed;
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
      value: this.#value(keys, unsealed, what, at, value, series),
    });
    this.#blobs.set(blob, { of, blob: opened });
    return opened;
  }

  /** Writes in their order, each once. */
  #writes(keys: Ids, unsealed: Unsealed, writes: readonly PendingWrite[]): PendingWrite[] {
    const { checkpointNs, checkpointId } = unsealed.place;
    // The path is not part of the place of those to special channels, so it tells no two of them apart.
    const told = new Set<string>();
    return writes.map((write, i) => {
      const before = writes[i - 1];
      const what = `its write to channel "${write.channel}" of task "${write.taskId}"`;
      if (before && !isBefore(before, write)) {
        throw refusal("NOT_AUTHENTIC", unsealed.place, `${what} is out of order`);
      }
      if (told.size === told.add(`${write.idx} ${write.taskId}`).size) {
        throw refusal("NOT_AUTHENTIC", unsealed.place, `${what} is told twice`);
      }
      const at = writePlace(write.value?.type ?? "", checkpointNs, checkpointId, write);
      const value = this.#value(keys, unsealed, what, at, write.value);
      return create(PendingWriteSchema, { ...write, value });
    });
  }

  #value(
    keys: Ids,
    { place, origin }: Unsealed,
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
    if (values.length > 0 && !this.#acceptsPlaintext) {
      throw refusal("PLAINTEXT", place, `${what} is not encrypted`);
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

function contentsOf({ v, channel_versions, channel_values }: Record<string, unknown>) {
  return {
    hasOwnSends: typeof v === "number" && v >= 4,
    versions: toRecord(channel_versions),
    inlined: toRecord(channel_values),
  };
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
