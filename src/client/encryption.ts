/** Encryption at the agent: requests on their way out, stored data on its way in. */
import { Buffer } from "node:buffer";
import type { ChannelVersions } from "@langchain/langgraph-checkpoint";
import type { CheckpointTuple } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import type { GetChannelHistoryResponse } from "../../gen/checkpointd/v1/thread_service_pb.js";
import type { RequestInit } from "../protocol/operations.js";
import { idleType, sealedType } from "../protocol/sealed.js";
import type { Calls } from "./calls.js";
import { ChunkMemory } from "./chunk_memory.js";
import { type KeySource, Keys } from "./encryption_keys.js";
import { isIdle } from "./idle.js";
import { type KnownCheckpoint, KnownCheckpoints, type Place } from "./known_checkpoints.js";
import { type Asked, Opening } from "./opening.js";
import { checkFlag, checkOptions } from "./options.js";
import { type SealingKey, seal, toContent } from "./sealed_bytes.js";
import { type Said, seriesOf, valuePlace, withSeal, writePlace } from "./sealed_checkpoint.js";
import { type AcceptCopies, ThreadOrigins } from "./thread_origins.js";
import { versionText } from "./versions.js";

/** How a saver encrypts what it stores, and what it reads. */
export interface EncryptionOptions {
  /** Where the keys are: `keyring(…)`, or a {@link KeySource} of your own before a KMS. */
  keys: KeySource;
  /**
   * Reads what is not encrypted as well, which whoever can write to the database may have put there.
   * For the time of a migration. Default false.
   */
  acceptPlaintext?: boolean;
  /**
   * Whether a thread that was stored under the name `from` may be read under the name `to`: a copy of
   * it, or an import under another name. Whoever can write to the database can give a thread any name,
   * and have an agent tell it to whom that name belongs. Default false.
   */
  acceptCopies?: boolean | ((from: string, to: string) => boolean);
}

type Put = RequestInit<"put">;
type PutWrites = RequestInit<"putWrites">;

const noBytes = Buffer.alloc(0);

/** Encrypts and decrypts for one saver. */
export class Encryption {
  readonly #keys: Keys;
  readonly #known = new KnownCheckpoints();
  readonly #origins: ThreadOrigins;
  readonly #opening: Opening;
  readonly #chunks: ChunkMemory;

  /**
   * Up to `memoryBytes` of the values put last are remembered, to encrypt anew only what they grow by.
   * Throws a TypeError naming the option if its value is not allowed.
   */
  constructor(options: EncryptionOptions, calls: Calls, memoryBytes: number) {
    checkOptions("encryption", options, encryptionOptions);
    const { acceptCopies } = options;
    const accept: AcceptCopies =
      typeof acceptCopies === "function"
        ? acceptCopies
        : checkFlag("encryption.acceptCopies", acceptCopies);
    this.#keys = new Keys(options.keys);
    const read = async (place: Place) => {
      const { tuple } = await calls.call((service, context) => service.getTuple(place, context));
      if (!tuple) return undefined;
      const opened = await this.#opening.tuple(tuple, place, false);
      this.#known.set(opened.place, opened.known);
      return opened;
    };
    this.#origins = new ThreadOrigins(
      accept,
      async (place) => this.#known.get(place) ?? (await read(place))?.known,
    );
    const acceptsPlaintext = checkFlag("encryption.acceptPlaintext", options.acceptPlaintext);
    this.#opening = new Opening(this.#keys, this.#origins, acceptsPlaintext, read);
    this.#chunks = new ChunkMemory(memoryBytes);
  }

  /** The put, encrypted. `versions` are the checkpoint's. */
  async sealPut(put: Put, versions: ChannelVersions): Promise<Put> {
    const { threadId = "", checkpointNs = "", checkpointId = "", parentCheckpointId = "" } = put;
    const { checkpointJson = "", metadataJson = "", blobs = [], leaseToken = "" } = put;
    const place = { threadId, checkpointNs, checkpointId };
    const parent = { ...place, checkpointId: parentCheckpointId };
    const [current, origin] = await Promise.all([
      this.#keys.current(),
      this.#origins.after(parent),
    ]);
    const valued = valuedAfter(this.#known.get(parent), blobs, versions);
    this.#known.set(place, { origin, valued, inlined: [] });
    const key: SealingKey = { keyId: current.id, key: this.#keys.ofThread(current, origin.id) };
    const sealedBlobs = blobs.map((init): typeof init => {
      const { channel = "", version = "", value } = init;
      if (!value) return init;
      const { type = "", data = noBytes } = value;
      const storedType = isIdle(channel, type, data) ? idleType : sealedType;
      const sealed = this.#chunks.seal(
        key,
        valuePlace(storedType, checkpointNs, channel, version),
        seriesOf(checkpointNs, channel),
        toContent(type, data),
        // Under a lease values are sent whole.
        leaseToken === "" ? JSON.stringify([threadId, checkpointNs, channel]) : undefined,
      );
      return { channel, version, value: { type: storedType, data: sealed } } as typeof init;
    });
    const said: Said = {
      origin,
      parentCheckpointId,
      valued: [...valued.keys()],
      checkpointJson,
      metadataJson,
    };
    return { ...put, checkpointJson: withSeal(key, place, said), blobs: sealedBlobs } as Put;
  }

  /** The writes, encrypted. */
  async sealPutWrites(put: PutWrites): Promise<PutWrites> {
    const { threadId = "", checkpointNs = "", checkpointId = "", taskId = "", taskPath = "" } = put;
    const [current, origin] = await Promise.all([
      this.#keys.current(),
      this.#origins.at({ threadId, checkpointNs, checkpointId }),
    ]);
    const key: SealingKey = { keyId: current.id, key: this.#keys.ofThread(current, origin.id) };
    const writes = (put.writes ?? []).map((init) => {
      const { channel = "", idx = 0, value } = init;
      const write = { taskId, taskPath, idx, channel };
      const place = writePlace(sealedType, checkpointNs, checkpointId, write);
      const content = toContent(value?.type ?? "", value?.data ?? noBytes);
      return { ...init, value: { type: sealedType, data: seal(key, place, content) } };
    });
    return { ...put, writes } as PutWrites;
  }

  /**
   * The tuple, decrypted, which answers what was asked for. Rejects with an EncryptionError if any
   * of it cannot be trusted.
   */
  async openTuple(tuple: CheckpointTuple, asked: Asked): Promise<CheckpointTuple> {
    const { opened, place, known } = await this.#opening.tuple(tuple, asked);
    this.#known.set(place, known);
    return opened;
  }

  /** The messages of a history of these channels, decrypted; see {@link openTuple}. */
  openHistory(
    target: Place,
    channels: readonly string[],
    messages: AsyncIterable<GetChannelHistoryResponse>,
  ): AsyncIterable<GetChannelHistoryResponse> {
    return this.#opening.history(target, this.#known.get(target), channels, messages);
  }

  /**
   * Of a checkpoint that was read, the channels whose values were in its JSON. One that follows it
   * names their versions, under which no value is stored: it has to store what it has of them.
   */
  inlinedIn(place: Place): readonly string[] {
    return this.#known.get(place)?.inlined ?? [];
  }
}

/**
 * The channels that have a value at a checkpoint: those that are stored with it, and of the one before
 * it those that have the same version. Others may never have been stored: nothing says that a caller
 * stores all that its versions name.
 */
function valuedAfter(
  before: KnownCheckpoint | undefined,
  blobs: NonNullable<Put["blobs"]>,
  versions: ChannelVersions,
): ReadonlyMap<string, string> {
  const valued = new Map<string, string>();
  const has = (channel: string, version: string) =>
    Object.hasOwn(versions, channel) && versionText(channel, versions[channel]) === version;
  for (const [channel, version] of before?.valued ?? []) {
    if (has(channel, version)) valued.set(channel, version);
  }
  for (const { channel = "", version = "", value } of blobs) {
    if (value && has(channel, version)) valued.set(channel, version);
  }
  return valued;
}

const encryptionOptions: Record<keyof EncryptionOptions, true> = {
  keys: true,
  acceptPlaintext: true,
  acceptCopies: true,
};
