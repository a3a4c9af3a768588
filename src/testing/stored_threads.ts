/** What a service that stores what it is sent must answer, kept beside it by a test. */
import { Buffer } from "node:buffer";
import { createHash } from "node:crypto";
import type {
  CheckpointTuple,
  PendingWrite,
  Value,
} from "../../gen/checkpointd/v1/checkpoint_pb.js";
import type { HostilePut, HostileWrites } from "./hostile_writes.js";

/** What of a checkpoint's JSON decides what belongs to it, as Postgres reads it. */
export interface ReadJson {
  /** channel_versions as text; a version that is null counts for nothing. */
  versions: [channel: string, version: string | null][];
  /** The channels in channel_values. */
  inline: string[];
  beforeFormat4: boolean;
  runId: string | null;
}

interface StoredValue {
  type: string;
  data: Uint8Array;
}

interface StoredWrite {
  taskId: string;
  taskPath: string;
  idx: number;
  channel: string;
  value: StoredValue;
}

/** A checkpoint as it was sent. */
export interface StoredCheckpoint {
  threadId: string;
  checkpointNs: string;
  checkpointId: string;
  parentCheckpointId: string;
  checkpointJson: string;
  metadataJson: string;
  read: ReadJson;
}

/** Compares texts by their bytes. */
export const byBytes = (a: string, b: string) => Buffer.compare(Buffer.from(a), Buffer.from(b));

const keyOf = (...parts: (string | number | undefined)[]) => JSON.stringify(parts);

/** A value in few letters, so that a difference can be read. */
const brief = ({ type, data }: StoredValue) =>
  `${type} ${data.length} ${createHash("sha1").update(data).digest("hex").slice(0, 12)}`;
const briefly = (value: Value | undefined) =>
  value
    ? brief({
        type: value.type,
        data: typeof value.data === "string" ? Buffer.from(value.data) : value.data,
      })
    : "no value";
const briefWrite = ({ taskId, taskPath, idx, channel, value }: StoredWrite) =>
  keyOf(taskPath, taskId, idx, channel, brief(value));

/** What a tuple holds besides its JSON, to be compared. */
export const toParts = (tuple: CheckpointTuple) => ({
  parent: tuple.parentCheckpointId,
  blobs: tuple.blobs.map(({ channel, version, value }) => keyOf(channel, version, briefly(value))),
  writes: tuple.pendingWrites.map((write: PendingWrite) =>
    keyOf(write.taskPath, write.taskId, write.idx, write.channel, briefly(write.value)),
  ),
  sends: tuple.pendingSends.map(briefly),
});

/** Keeps what was taken. LangGraph's rules of what replaces what are told again here. */
export class StoredThreads {
  readonly #checkpoints = new Map<string, StoredCheckpoint>();
  readonly #blobs = new Map<string, StoredValue | undefined>();
  readonly #writes = new Map<string, Map<string, StoredWrite>>();

  put(put: HostilePut, read: ReadJson): void {
    const { threadId, checkpointNs = "", checkpointId = "", parentCheckpointId = "" } = put;
    const key = keyOf(threadId, checkpointNs, checkpointId);
    this.#checkpoints.set(key, {
      threadId,
      checkpointNs,
      checkpointId,
      parentCheckpointId: this.#checkpoints.get(key)?.parentCheckpointId ?? parentCheckpointId,
      checkpointJson: put.checkpointJson ?? "",
      metadataJson: put.metadataJson || "{}",
      read,
    });
    for (const { channel, version, value } of put.blobs ?? []) {
      const blob = keyOf(threadId, checkpointNs, channel, version);
      if (!this.#blobs.has(blob)) this.#blobs.set(blob, value as StoredValue | undefined);
    }
  }

  putWrites({
    threadId,
    checkpointNs,
    checkpointId,
    taskId = "",
    taskPath = "",
    writes = [],
  }: HostileWrites) {
    const place = keyOf(threadId, checkpointNs, checkpointId);
    const stored = this.#writes.get(place) ?? new Map<string, StoredWrite>();
    this.#writes.set(place, stored);
    const replace = writes.every(({ idx = 0 }) => idx < 0);
    for (const { idx = 0, channel = "", value } of writes) {
      const key = keyOf(taskId, idx);
      const before = stored.get(key);
      if (before && !replace) continue;
      const path = before?.taskPath ?? taskPath;
      stored.set(key, { taskId, taskPath: path, idx, channel, value: value as StoredValue });
    }
  }

  /** All checkpoints in the order of a List, or those of a thread. */
  list(threadId?: string): StoredCheckpoint[] {
    return [...this.#checkpoints.values()]
      .filter((each) => threadId === undefined || each.threadId === threadId)
      .sort(
        (a, b) =>
          byBytes(b.checkpointId, a.checkpointId) ||
          byBytes(b.threadId, a.threadId) ||
          byBytes(b.checkpointNs, a.checkpointNs),
      );
  }

  /** What a tuple must hold besides its JSON. */
  parts({ threadId, checkpointNs, checkpointId, parentCheckpointId, read }: StoredCheckpoint) {
    return {
      parent: parentCheckpointId === "" ? undefined : parentCheckpointId,
      blobs: read.versions
        .sort(([a], [b]) => byBytes(a, b))
        .flatMap(([channel, version]) => {
          const value =
            version === null
              ? undefined
              : this.#blobs.get(keyOf(threadId, checkpointNs, channel, version));
          return value ? [keyOf(channel, version ?? "", brief(value))] : [];
        }),
      writes: this.#writesOf(threadId, checkpointNs, checkpointId).map(briefWrite),
      sends: read.beforeFormat4
        ? this.#writesOf(threadId, checkpointNs, parentCheckpointId)
            .filter(({ channel }) => channel === "__pregel_tasks")
            .map(({ value }) => brief(value))
        : [],
    };
  }

  /** What GetChannelHistory must tell of the ancestors: their writes, and where a channel's walk ends. */
  history(from: StoredCheckpoint, channels: readonly string[]): [string, string[], string[]][] {
    const told: [string, string[], string[]][] = [];
    const open = new Set(channels);
    const seen = new Set<string>();
    const { threadId, checkpointNs } = from;
    const parentOf = (child: StoredCheckpoint) =>
      this.#checkpoints.get(keyOf(threadId, checkpointNs, child.parentCheckpointId));
    for (let each = parentOf(from); each && open.size > 0; each = parentOf(each)) {
      if (seen.size === seen.add(each.checkpointId).size) break;
      const writes = this.#writesOf(threadId, checkpointNs, each.checkpointId)
        .filter(({ channel }) => open.has(channel))
        .map(briefWrite);
      const blobs = this.parts(each).blobs.map((blob) => (JSON.parse(blob) as string[])[0] ?? "");
      const sends = this.parts(each).sends.length > 0 ? ["__pregel_tasks"] : [];
      const found = [...new Set([...blobs, ...each.read.inline, ...sends])].filter((channel) =>
        open.has(channel),
      );
      for (const channel of found) open.delete(channel);
      if (writes.length + found.length > 0) told.push([each.checkpointId, writes, found.sort()]);
    }
    return told;
  }

  #writesOf(threadId: string, checkpointNs: string, checkpointId: string): StoredWrite[] {
    const stored = this.#writes.get(keyOf(threadId, checkpointNs, checkpointId));
    return [...(stored?.values() ?? [])].sort(
      (a, b) => byBytes(a.taskPath, b.taskPath) || byBytes(a.taskId, b.taskId) || a.idx - b.idx,
    );
  }
}
