/** LangGraph's checkpointer over the checkpointd service. */

import type { Transport } from "@connectrpc/connect";
import type { RunnableConfig } from "@langchain/core/runnables";
import {
  BaseCheckpointSaver,
  type ChannelVersions,
  type Checkpoint,
  type CheckpointListOptions,
  type CheckpointMetadata,
  type CheckpointTuple,
  type DeltaChannelHistory,
  type PendingWrite,
  type SerializerProtocol,
} from "@langchain/langgraph-checkpoint";
import { Calls, type CallsOptions } from "./calls.js";
import {
  fromTuple,
  toBlobs,
  toCheckpointJson,
  toFilterJson,
  toMetadataJson,
  toWrites,
} from "./codec.js";
import { readDeltaHistory } from "./history.js";
import { checkName, LEASE_TOKEN, readConfig, requireKey } from "./names.js";
import { type ListInit, readList } from "./read_list.js";
import { openService } from "./service.js";
import { Threads } from "./threads.js";
import { type TransportOptions, UrlTransport } from "./transport.js";
import { nextVersion } from "./versions.js";

/** Options of a saver over any transport. */
export interface ConnectSaverOptions extends CallsOptions {
  /**
   * Encodes channel values and writes. LangGraph's JsonPlusSerializer unless given. Metadata is
   * always JSON, so that the database can search it.
   */
  serde?: SerializerProtocol;
}

/** Options of {@link ConnectSaver.fromUrl}. */
export interface ConnectSaverUrlOptions extends ConnectSaverOptions, TransportOptions {}

/**
 * Keeps a LangGraph agent's checkpoints in a checkpointd service:
 * `compile({ checkpointer: ConnectSaver.fromUrl("http://127.0.0.1:8080") })`.
 *
 * Every method rejects with an Error naming the key if the config lacks one or a name cannot be
 * stored unaltered (NUL, lone surrogate), and otherwise with the call's ConnectError, its code
 * intact; `errorDetail(error)` tells the field and limit. Every call has a deadline and is
 * repeated while the service cannot be reached: all of them are idempotent. What is stored is
 * what the arguments held when the method was called. A config that carries a lease's token
 * ({@link LEASE_TOKEN}) makes put and putWrites fail, and store nothing, once the lease is lost.
 */
export class ConnectSaver extends BaseCheckpointSaver<number | string> {
  /** What there is to know and to do about threads as a whole. */
  readonly threads: Threads;
  readonly #calls: Calls;
  #close: () => void = () => {};

  /**
   * A saver over a Connect transport of your own, which stays yours to close: each call is an RPC.
   * Throws a TypeError naming the option if its value is not allowed.
   */
  constructor(transport: Transport, options: ConnectSaverOptions = {}) {
    super(options.serde);
    if (typeof transport?.unary !== "function") {
      throw new TypeError(
        "a saver takes a Connect transport; of a URL ConnectSaver.fromUrl makes one",
      );
    }
    this.#calls = new Calls(openService(transport, options), options);
    this.threads = new Threads(this.#calls);
  }

  /**
   * A saver for the service at `url`, on a few connections that the first calls open and
   * {@link end} closes. Does not connect, so it does not fail if the service is not there yet;
   * awaiting the result does no harm. Throws a TypeError if the URL (http: or https:, with a
   * path prefix if need be) or an option is not allowed.
   */
  static fromUrl(url: string | URL, options: ConnectSaverUrlOptions = {}): ConnectSaver {
    const transport = new UrlTransport(url, options);
    const saver = new ConnectSaver(transport, options);
    saver.#close = () => transport.close();
    return saver;
  }

  /**
   * The checkpoint that `config` names, or the latest of its thread and namespace (the root
   * one unless given). undefined if there is none, or no thread_id.
   */
  override async getTuple(config: RunnableConfig): Promise<CheckpointTuple | undefined> {
    const { threadId, checkpointNs = "", checkpointId = "" } = readConfig(config);
    if (threadId === undefined) return undefined;
    const { tuple } = await this.#calls.call((service, context) =>
      service.getTuple({ threadId, checkpointNs, checkpointId }, context),
    );
    if (tuple === undefined) return undefined;
    return fromTuple(this.serde, tuple, config.configurable?.thread_id);
  }

  /**
   * The checkpoints that match, newest first, each complete, read as they are asked for: all
   * threads, namespaces and checkpoints where `config` names none, all of them without a
   * limit. A connection that breaks on the way is not noticed: nothing is repeated or left
   * out. Leaving the loop early cancels the call.
   */
  override async *list(
    config: RunnableConfig,
    options: CheckpointListOptions = {},
  ): AsyncGenerator<CheckpointTuple> {
    for await (const tuple of readList(this.#calls, toListRequest(config, options))) {
      yield await fromTuple(this.serde, tuple);
    }
  }

  /**
   * Stores the checkpoint, whose parent is the one `config` names, and of its channel values
   * those that `newVersions` names, all or nothing. Resolves when it is durable, with the
   * config that names the new checkpoint.
   */
  override async put(
    config: RunnableConfig,
    checkpoint: Checkpoint,
    metadata: CheckpointMetadata,
    newVersions: ChannelVersions,
  ): Promise<RunnableConfig> {
    const {
      threadId,
      checkpointNs = "",
      checkpointId: parentCheckpointId = "",
      leaseToken = "",
    } = readConfig(config);
    const request = {
      leaseToken,
      threadId: requireKey("put", "thread_id", config, threadId),
      checkpointNs,
      checkpointId: checkName("checkpoint.id", checkpoint.id),
      parentCheckpointId,
      checkpointJson: toCheckpointJson(checkpoint),
    };
    const [blobs, metadataJson] = await Promise.all([
      toBlobs(this.serde, checkpoint.channel_values ?? {}, newVersions),
      toMetadataJson(metadata),
    ]);
    const put = { ...request, blobs, metadataJson };
    await this.#stored(
      leaseToken,
      this.#calls.call((service, context) => service.put(put, context)),
    );
    return {
      configurable: {
        thread_id: config.configurable?.thread_id,
        checkpoint_ns: checkpointNs,
        checkpoint_id: checkpoint.id,
        ...(leaseToken === "" ? {} : { [LEASE_TOKEN]: leaseToken }),
      },
    };
  }

  /**
   * Stores the writes of one task after the checkpoint `config` names, all or nothing. Writes
   * stored before are kept, but replaced if all of `writes` go to LangGraph's special channels.
   * No writes, no call. `taskPath` is the task's place among those of its step, by which writes are
   * read in the order in which LangGraph applies them; it comes from LangGraph since 1.5.
   */
  override async putWrites(
    config: RunnableConfig,
    writes: PendingWrite[],
    taskId: string,
    taskPath = "",
  ): Promise<void> {
    const { threadId, checkpointNs = "", checkpointId, leaseToken = "" } = readConfig(config);
    const request = {
      leaseToken,
      threadId: requireKey("putWrites", "thread_id", config, threadId),
      checkpointNs,
      checkpointId: requireKey("putWrites", "checkpoint_id", config, checkpointId),
      taskId: checkName("taskId", taskId),
      taskPath: checkName("taskPath", taskPath),
    };
    if (writes.length === 0) return;
    const putWrites = { ...request, writes: await toWrites(this.serde, writes) };
    await this.#stored(
      leaseToken,
      this.#calls.call((service, context) => service.putWrites(putWrites, context)),
    );
  }

  async #stored(leaseToken: string, call: Promise<unknown>): Promise<void> {
    try {
      await call;
    } catch (error) {
      if (leaseToken === "" || !this.threads.isLossTold(leaseToken, error)) throw error;
    }
  }

  /** Deletes everything of the thread, all or nothing. Succeeds if there is nothing. */
  override async deleteThread(threadId: string): Promise<void> {
    const request = { threadId: checkName("threadId", threadId) };
    await this.#calls.call((service, context) => service.deleteThread(request, context));
  }

  /**
   * For each channel the writes of the ancestors of the checkpoint `config` names (the latest
   * unless it has an id), oldest first, and the value they build on, as the base class
   * promises, but walked in the database: one call where the base class makes one for each
   * ancestor. A checkpoint that is not stored has no ancestors.
   */
  override async getDeltaChannelHistory(options: {
    config: RunnableConfig;
    channels: string[];
  }): Promise<Record<string, DeltaChannelHistory>> {
    const { threadId, checkpointNs = "", checkpointId } = readConfig(options.config);
    // No thread, no ancestors: an entry per channel all the same.
    const channels = options.channels;
    if (threadId === undefined) {
      return Object.fromEntries(channels.map((channel) => [channel, { writes: [] }]));
    }
    const target = { threadId, checkpointNs, checkpointId: checkpointId ?? "" };
    return readDeltaHistory(this.#calls, this.serde, target, channels);
  }

  /**
   * A version greater than `current` and different on every call, so that the branches of a
   * fork keep apart: a number (also after undefined) or, after a string, a string as Python's
   * saver makes it. Threads begun with LangGraph's integer versions go on, and back.
   */
  override getNextVersion(current: number | undefined): number;
  override getNextVersion(current: string): string;
  override getNextVersion(current: number | string | undefined): number | string;
  override getNextVersion(current: number | string | undefined): number | string {
    return nextVersion(current);
  }

  /**
   * Ends the saver: new calls and lists under way fail, other calls under way finish (each by
   * its deadline), then the connection is closed. After it the process can exit. Idempotent.
   */
  async end(): Promise<void> {
    await this.#calls.end();
    this.#close();
  }
}

function toListRequest(config: RunnableConfig, options: CheckpointListOptions): ListInit {
  const { threadId, checkpointNs, checkpointId } = readConfig(config);
  const before = options.before?.configurable?.checkpoint_id;
  const { limit } = options;
  const request: ListInit = { metadataFilterJson: toFilterJson(options.filter) };
  if (threadId !== undefined) request.threadId = threadId;
  if (checkpointNs !== undefined) request.checkpointNs = checkpointNs;
  if (checkpointId !== undefined) request.checkpointId = checkpointId;
  if (before !== undefined && before !== null) {
    request.beforeCheckpointId = checkName("before.configurable.checkpoint_id", before);
  }
  if (limit !== undefined && limit !== null) {
    if (!Number.isInteger(limit) || limit < 0) {
      throw new Error(`limit must be a whole number from 0, not ${limit}`);
    }
    // The wire's limit has 31 bits; no thread is longer, so beyond them it means all.
    if (limit < 2 ** 31) request.limit = limit;
  }
  return request;
}
