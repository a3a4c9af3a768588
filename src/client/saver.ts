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
import { Encryption, type EncryptionOptions } from "./encryption.js";
import { readDeltaHistory } from "./history.js";
import { checkName, LEASE_TOKEN, readConfig, requireKey } from "./names.js";
import { checkLimit, checkOptions, checkSignal } from "./options.js";
import { type ListInit, readList } from "./read_list.js";
import { defaultValueCacheBytes, openService } from "./service.js";
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
  /**
   * The name of the graph whose checkpoints these are, kept with each of them (`checkpointd_graph`
   * in the metadata that is stored, not in the metadata that is read): so that
   * {@link recoverThreads} resumes no other application's threads. Not empty. A name of your own,
   * which stays the same from one version of the graph to the next: of the compiled graph a saver
   * learns nothing, and LangGraph calls them all "LangGraph" unless told otherwise. Savers of several
   * graphs may share a transport.
   */
  graph?: string;
  /**
   * Encrypts what the graph stores, with keys that the service and its database never see, and reads
   * nothing else: see docs/security.md for what stays readable. What cannot be trusted is an
   * {@link EncryptionError}. Remembers as many bytes of values as `valueCacheBytes` once more.
   */
  encryption?: EncryptionOptions;
}

/** Options of {@link ConnectSaver.fromUrl}. */
export interface ConnectSaverUrlOptions extends ConnectSaverOptions, TransportOptions {}

/**
 * Keeps a LangGraph agent's checkpoints in a checkpointd service:
 * `compile({ checkpointer: ConnectSaver.fromUrl("http://127.0.0.1:8080") })`.
 *
 * Every method rejects with an Error naming the key if the config lacks one or a name cannot be
 * stored unaltered (NUL, lone surrogate), and otherwise with the call's ConnectError, its code
 * intact, which names the address where the service could not be reached; `errorDetail(error)` tells
 * the field and limit. Every call has a deadline and is repeated while the service cannot be reached:
 * the saver's own are idempotent. What is stored is what the arguments held when the method was called.
 * Reads are given up, with its reason, when the config's `signal` aborts; put and putWrites are
 * carried out all the same. A config that carries a lease's token
 * ({@link LEASE_TOKEN}) makes put and putWrites fail, and store nothing, once the lease is lost.
 */
export class ConnectSaver extends BaseCheckpointSaver<number | string> {
  /** What there is to know and to do about threads as a whole. */
  readonly threads: Threads;
  /** The name that each checkpoint it stores is given, if there is one. */
  readonly graph: string | undefined;
  readonly #calls: Calls;
  readonly #encryption: Encryption | undefined;
  #close: () => void = () => {};

  /**
   * A saver over a Connect transport of your own, which stays yours to close: each call is an RPC.
   * Throws a TypeError naming the option if there is none of the name or its value is not allowed.
   */
  constructor(transport: Transport, options: ConnectSaverOptions = {}) {
    checkOptions("ConnectSaver", options, saverOptions);
    super(options.serde);
    if (typeof transport?.unary !== "function") {
      throw new TypeError(
        "a saver takes a Connect transport; of a URL ConnectSaver.fromUrl makes one",
      );
    }
    this.graph = checkGraph(options.graph);
    this.#calls = new Calls(openService(transport, options), options);
    if (options.encryption !== undefined) {
      const { valueCacheBytes = defaultValueCacheBytes } = options;
      this.#encryption = new Encryption(options.encryption, this.#calls, valueCacheBytes);
    }
    this.threads = new Threads(this.#calls);
  }

  /**
   * A saver for the service at `url`, on a few connections that the first calls open and
   * {@link end} closes. Does not connect, so it does not fail if the service is not there yet;
   * awaiting the result does no harm. Throws a TypeError if the URL (http: or https:, with a
   * path prefix if need be, or unix: and the path of a socket) or an option is not allowed.
   */
  static fromUrl(url: string | URL, options: ConnectSaverUrlOptions = {}): ConnectSaver {
    checkOptions("ConnectSaver.fromUrl", options, urlOptions);
    const transport = new UrlTransport(url, options);
    const own = Object.entries(options).filter(([name]) => name in saverOptions);
    const saver = new ConnectSaver(transport, Object.fromEntries(own));
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
    const { tuple } = await this.#calls.call(
      (service, context) => service.getTuple({ threadId, checkpointNs, checkpointId }, context),
      { signal: signalOf(config) },
    );
    if (tuple === undefined) return undefined;
    const opened = this.#encryption
      ? await this.#encryption.openTuple(tuple, { threadId, checkpointNs, checkpointId })
      : tuple;
    return fromTuple(this.serde, opened, config.configurable?.thread_id);
  }

  /**
   * The checkpoints that match, newest first, each complete, read as they are asked for: all
   * threads, namespaces and checkpoints where `config` names none, all of them without a
   * limit. A connection that breaks on the way is not noticed: nothing is repeated or left
   * out. Leaving the loop early cancels the call, and so does the config's signal.
   */
  override async *list(
    config: RunnableConfig,
    options: CheckpointListOptions = {},
  ): AsyncGenerator<CheckpointTuple> {
    const request = toListRequest(config, options);
    for await (const tuple of readList(this.#calls, request, signalOf(config))) {
      const opened = this.#encryption ? await this.#encryption.openTuple(tuple, request) : tuple;
      yield await fromTuple(this.serde, opened);
    }
  }

  /**
   * Stores the checkpoint, whose parent is the one `config` names, and of its channel values
   * those that `newVersions` names, all or nothing. Resolves when it is durable, with the
   * config that names the new checkpoint. Not given up when the config's signal aborts.
   *
   * For LangGraph stores what a run has done by then, and hands the run's signal to all of it. It
   * aborts for a step's writes while they are sent, when the caller cancels or a reader of a stream
   * leaves, when the time of a step or run is over, and in a subgraph also when a node beside it has
   * failed. With the durability "exit" even everything is stored after that. A put given up there
   * would have the next run do finished work once more, payments included. A rejection would also
   * be one too many: nobody awaits what is stored while a step runs, so that it ends the process.
   * Both are bounded by their deadline; LangGraph's own savers know no signal at all.
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
    const { channel_values: values = {}, channel_versions: versions = {} } = checkpoint;
    const encryption = this.#encryption;
    const inlined = encryption?.inlinedIn({ ...request, checkpointId: parentCheckpointId }) ?? [];
    const kept = inlined.filter((it) => Object.hasOwn(values, it) && Object.hasOwn(versions, it));
    const stored =
      kept.length === 0
        ? newVersions
        : { ...Object.fromEntries(kept.map((it) => [it, versions[it]!])), ...newVersions };
    const [blobs, metadataJson] = await Promise.all([
      toBlobs(this.serde, values, stored),
      toMetadataJson(metadata, this.graph),
    ]);
    const plain = { ...request, blobs, metadataJson };
    const put = encryption ? await encryption.sealPut(plain, versions) : plain;
    await this.#stored(
      leaseToken,
      this.#calls.call((service, context) => service.put(put, context)),
    );
    this.threads.tellStored(leaseToken, checkpoint.id);
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
   * No writes, no call. Not given up when the config's signal aborts, as {@link put} is not.
   * `taskPath` is the task's place among those of its step, by which writes are read in the order in
   * which LangGraph applies them; it comes from LangGraph since 1.5.
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
    const plain = { ...request, writes: await toWrites(this.serde, writes) };
    const putWrites = this.#encryption ? await this.#encryption.sealPutWrites(plain) : plain;
    await this.#stored(
      leaseToken,
      this.#calls.call((service, context) => service.putWrites(putWrites, context)),
    );
    // Those to special channels tell how a task stands, not that it got anywhere.
    if (plain.writes.some(({ idx }) => (idx ?? 0) >= 0)) this.threads.tellStored(leaseToken);
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
    const signal = signalOf(options.config);
    const encryption = this.#encryption;
    return readDeltaHistory(this.#calls, this.serde, target, channels, signal, encryption);
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

function checkGraph(graph: unknown): string | undefined {
  if (graph === undefined) return undefined;
  if (typeof graph !== "string" || graph === "") {
    throw new TypeError(`graph must be a name, a text that is not empty, not ${String(graph)}`);
  }
  return checkName("graph", graph);
}

const saverOptions: Record<keyof ConnectSaverOptions, true> = {
  serde: true,
  timeoutMs: true,
  retry: true,
  headers: true,
  token: true,
  valueCacheBytes: true,
  graph: true,
  encryption: true,
};

const urlOptions: Record<keyof ConnectSaverUrlOptions, true> = {
  ...saverOptions,
  protocol: true,
  json: true,
  session: true,
  compression: true,
  maxRequestBytes: true,
  lookup: true,
  tls: true,
};

function signalOf(config: RunnableConfig): AbortSignal | undefined {
  return checkSignal("config.signal", config.signal);
}

function toListRequest(config: RunnableConfig, options: CheckpointListOptions): ListInit {
  const { threadId, checkpointNs, checkpointId } = readConfig(config);
  const before = options.before?.configurable?.checkpoint_id;
  const limit = checkLimit(options.limit);
  const request: ListInit = { metadataFilterJson: toFilterJson(options.filter) };
  if (threadId !== undefined) request.threadId = threadId;
  if (checkpointNs !== undefined) request.checkpointNs = checkpointNs;
  if (checkpointId !== undefined) request.checkpointId = checkpointId;
  if (before !== undefined && before !== null) {
    request.beforeCheckpointId = checkName("before.configurable.checkpoint_id", before);
  }
  if (limit !== undefined) request.limit = limit;
  return request;
}
