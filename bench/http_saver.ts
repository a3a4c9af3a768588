/** The saver that agents of an HTTP proxy use: one POST a call, values as base64 in JSON. */
import http from "node:http";
import type { RunnableConfig } from "@langchain/core/runnables";
import {
  BaseCheckpointSaver,
  type ChannelVersions,
  type Checkpoint,
  type CheckpointListOptions,
  type CheckpointMetadata,
  type CheckpointTuple,
  type PendingWrite,
  WRITES_IDX_MAP,
} from "@langchain/langgraph-checkpoint";

/** A value as it travels: the serializer's type and base64 of its bytes. */
export type WireValue = [type: string, base64: string];

/** A tuple as it travels. */
export interface WireTuple {
  thread_id: string;
  checkpoint_ns: string;
  checkpoint_id: string;
  parent_checkpoint_id: string | null;
  checkpoint: Omit<Checkpoint, "channel_values">;
  metadata: CheckpointMetadata;
  blobs: [channel: string, ...value: WireValue][];
  writes: [taskId: string, channel: string, ...value: WireValue][];
}

/** A new blob as it travels; the value is absent for a channel that became empty. */
export interface WireBlob {
  channel: string;
  version: string;
  value?: WireValue;
}

/** A write as it travels. */
export interface WireWrite {
  idx: number;
  channel: string;
  value: WireValue;
}

/**
 * Keeps checkpoints behind `http_proxy.ts`, over connections that are kept alive. Answers with
 * complete tuples, as the other savers do; a list arrives in one piece.
 */
export class HttpSaver extends BaseCheckpointSaver {
  readonly #agent = new http.Agent({ keepAlive: true });
  readonly #url: string;

  constructor(url: string) {
    super();
    this.#url = url;
  }

  override async getTuple(config: RunnableConfig): Promise<CheckpointTuple | undefined> {
    const { thread_id, checkpoint_ns = "", checkpoint_id } = config.configurable ?? {};
    const wire = await this.#post<WireTuple | null>("get-tuple", {
      thread_id,
      checkpoint_ns,
      checkpoint_id,
    });
    return wire === null ? undefined : this.#fromWire(wire);
  }

  override async *list(
    config: RunnableConfig,
    options: CheckpointListOptions = {},
  ): AsyncGenerator<CheckpointTuple> {
    const { thread_id, checkpoint_ns, checkpoint_id } = config.configurable ?? {};
    const tuples = await this.#post<WireTuple[]>("list", {
      thread_id,
      checkpoint_ns,
      checkpoint_id,
      before: options.before?.configurable?.checkpoint_id,
      filter: options.filter,
      limit: options.limit,
    });
    for (const wire of tuples) yield await this.#fromWire(wire);
  }

  override async put(
    config: RunnableConfig,
    checkpoint: Checkpoint,
    metadata: CheckpointMetadata,
    newVersions: ChannelVersions,
  ): Promise<RunnableConfig> {
    const { thread_id, checkpoint_ns = "", checkpoint_id } = config.configurable ?? {};
    const { channel_values, ...rest } = checkpoint;
    const blobs = await Promise.all(
      Object.entries(newVersions).map(async ([channel, version]): Promise<WireBlob> => {
        const blob = { channel, version: `${version}` };
        if (!Object.hasOwn(channel_values, channel)) return blob;
        return { ...blob, value: await this.#toWire(channel_values[channel]) };
      }),
    );
    await this.#post("put", {
      thread_id,
      checkpoint_ns,
      checkpoint_id: checkpoint.id,
      parent_checkpoint_id: checkpoint_id ?? null,
      checkpoint: rest,
      metadata,
      blobs,
    });
    return { configurable: { thread_id, checkpoint_ns, checkpoint_id: checkpoint.id } };
  }

  override async putWrites(
    config: RunnableConfig,
    writes: PendingWrite[],
    taskId: string,
  ): Promise<void> {
    const { thread_id, checkpoint_ns = "", checkpoint_id } = config.configurable ?? {};
    await this.#post("put-writes", {
      thread_id,
      checkpoint_ns,
      checkpoint_id,
      task_id: taskId,
      writes: await Promise.all(
        writes.map(
          async ([channel, value], position): Promise<WireWrite> => ({
            idx: WRITES_IDX_MAP[channel] ?? position,
            channel,
            value: await this.#toWire(value),
          }),
        ),
      ),
    });
  }

  override async deleteThread(threadId: string): Promise<void> {
    await this.#post("delete-thread", { thread_id: threadId });
  }

  async end(): Promise<void> {
    this.#agent.destroy();
  }

  async #toWire(value: unknown): Promise<WireValue> {
    const [type, bytes] = await this.serde.dumpsTyped(value);
    return [type, Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).toString("base64")];
  }

  async #fromWire(wire: WireTuple): Promise<CheckpointTuple> {
    const { thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id } = wire;
    const configurable = { thread_id, checkpoint_ns };
    const values = await Promise.all(
      wire.blobs.map(async ([channel, type, base64]): Promise<[string, unknown]> => {
        return [channel, await this.serde.loadsTyped(type, Buffer.from(base64, "base64"))];
      }),
    );
    const tuple: CheckpointTuple = {
      config: { configurable: { ...configurable, checkpoint_id } },
      checkpoint: { ...wire.checkpoint, channel_values: Object.fromEntries(values) },
      metadata: wire.metadata,
      pendingWrites: await Promise.all(
        wire.writes.map(
          async ([taskId, channel, type, base64]): Promise<[string, string, unknown]> => {
            const bytes = Buffer.from(base64, "base64");
            return [taskId, channel, await this.serde.loadsTyped(type, bytes)];
          },
        ),
      ),
    };
    if (parent_checkpoint_id !== null) {
      tuple.parentConfig = {
        configurable: { ...configurable, checkpoint_id: parent_checkpoint_id },
      };
    }
    return tuple;
  }

  #post<T>(operation: string, body: unknown): Promise<T> {
    const text = Buffer.from(JSON.stringify(body));
    const headers = { "content-type": "application/json", "content-length": text.length };
    const options = { method: "POST", agent: this.#agent, headers };
    return new Promise((resolve, reject) => {
      const request = http.request(`${this.#url}/checkpoints/${operation}`, options, (response) => {
        const chunks: Buffer[] = [];
        response.on("error", reject);
        response.on("data", (chunk: Buffer) => chunks.push(chunk));
        response.on("end", () => {
          const answer = Buffer.concat(chunks).toString();
          if (response.statusCode === 200) resolve(JSON.parse(answer) as T);
          else reject(new Error(`${operation} answered ${response.statusCode}: ${answer}`));
        });
      });
      request.on("error", reject);
      request.end(text);
    });
  }
}
