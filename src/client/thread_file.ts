/**
 * A thread as a file: JSON lines. A header, one line for each checkpoint (protobuf's JSON of
 * CheckpointTuple, the latest first), and a last line with their number, without which the file was cut
 * off. A value that several checkpoints share is only in the first of them.
 */
import { fromJson, type MessageInitShape, toJsonString } from "@bufbuild/protobuf";
import {
  type ChannelBlob,
  type CheckpointTuple,
  CheckpointTupleSchema,
} from "../../gen/checkpointd/v1/checkpoint_pb.js";
import type {
  PutRequestSchema,
  PutWritesRequestSchema,
} from "../../gen/checkpointd/v1/checkpoint_service_pb.js";

/** Values of one request at the most; a larger one travels alone. */
const requestBytes = 16 * 1024 * 1024;

/**
 * The lines of the file, without their ends, of a thread's checkpoints in the order of List, complete or
 * without what is unchanged.
 */
export async function* threadToLines(
  threadId: string,
  tuples: AsyncIterable<CheckpointTuple>,
): AsyncGenerator<string> {
  yield JSON.stringify({ checkpointd: "thread", version: 1, threadId });
  const seen = new Set<string>();
  let checkpoints = 0;
  for await (const tuple of tuples) {
    tuple.blobs = tuple.blobs.filter(({ channel, version }) => {
      const name = JSON.stringify([tuple.key?.checkpointNs, channel, version]);
      return seen.size !== seen.add(name).size;
    });
    tuple.unchangedChannels = [];
    yield toJsonString(CheckpointTupleSchema, tuple);
    checkpoints++;
  }
  yield JSON.stringify({ end: true, checkpoints });
}

/** What stores a thread: calls of the service, made by whoever imports. */
export interface ThreadStore {
  /** Throws if the thread may not get that name, for instance because there is one. */
  check(threadId: string): Promise<void>;
  put(request: MessageInitShape<typeof PutRequestSchema>): Promise<unknown>;
  putWrites(request: MessageInitShape<typeof PutWritesRequestSchema>): Promise<unknown>;
  copyThread(request: { sourceThreadId: string; targetThreadId: string }): Promise<unknown>;
  deleteThread(request: { threadId: string }): Promise<unknown>;
}

/**
 * Restores a thread from the lines of its file, under the name it was exported from unless `as` gives
 * another, and returns that and how many checkpoints it has. It is stored under a name of its own first and
 * copied from there in one call, so that it is whole or not there at all. `onProgress` is told how many are
 * stored. Throws an Error that says what is wrong with the file.
 */
export async function threadFromLines(
  lines: AsyncIterable<string>,
  as: string | undefined,
  store: ThreadStore,
  onProgress: (checkpoints: number) => void,
): Promise<{ threadId: string; checkpoints: number }> {
  // Not randomUUID, which pages have only over TLS and on loopback.
  const random = crypto.getRandomValues(new Uint32Array(4));
  const temporary = `importing-${[...random].map((part) => part.toString(16)).join("-")}`;
  const sends = createSends();
  let target = as;
  let [n, stored] = [0, 0];
  let end: number | undefined;
  let isStored = false;
  const remove = async (): Promise<void> => {
    if (isStored) await store.deleteThread({ threadId: temporary });
  };
  try {
    for await (const text of lines) {
      const line = parse(text, ++n);
      if (n === 1) {
        if (line.checkpointd !== "thread" || line.version !== 1) {
          throw new Error("not an exported thread: the first line is not its header");
        }
        if (target === undefined && typeof line.threadId !== "string") {
          throw new Error("not an exported thread: its header names no thread");
        }
        target ??= String(line.threadId);
        await store.check(target);
      } else if (line.end === true) {
        end = Number(line.checkpoints);
        break;
      } else {
        const tuple = toTuple(line, n);
        sends.note(tuple);
        isStored = true;
        await storeTuple(store, temporary, tuple);
        onProgress(++stored);
      }
    }
    if (target === undefined || n === 0) {
      throw new Error("not an exported thread: the file is empty");
    }
    if (end !== stored) {
      const expected = end === undefined ? "its last line is missing" : `${end} were exported`;
      const found = `${stored} checkpoint${stored === 1 ? "" : "s"}`;
      throw new Error(`the file is incomplete: it has ${found}, ${expected}`);
    }
    for (const put of sends.missing(temporary)) await store.putWrites(put);
    await store.copyThread({ sourceThreadId: temporary, targetThreadId: target });
  } catch (error) {
    await remove().catch(() => {
      // Where nobody answers any more, nobody removes anything either.
      const left = `what was stored until then is left in the thread ${temporary}: delete it`;
      throw new Error(`${error instanceof Error ? error.message : error}; ${left}`);
    });
    throw error;
  }
  await remove();
  return { threadId: target, checkpoints: stored };
}

async function storeTuple(
  store: ThreadStore,
  threadId: string,
  tuple: CheckpointTuple,
): Promise<void> {
  const { checkpointNs = "", checkpointId = "" } = tuple.key ?? {};
  const name = { threadId, checkpointNs, checkpointId };
  const parentCheckpointId = tuple.parentCheckpointId ?? "";
  const { checkpointJson, metadataJson } = tuple;
  const parts = inRequests(tuple.blobs);
  // Nobody reads it yet, so where there is much the JSON, which may be as large, travels by itself.
  const together = parts.length === 1 && checkpointJson.length + metadataJson.length < requestBytes;
  const puts = together
    ? [{ checkpointJson, metadataJson, blobs: tuple.blobs }]
    : [
        ...parts.map((blobs) => ({ checkpointJson: "{}", metadataJson: "", blobs })),
        { checkpointJson, metadataJson, blobs: [] },
      ];
  for (const each of puts) await store.put({ ...name, parentCheckpointId, ...each });
  const tasks = new Map<string, CheckpointTuple["pendingWrites"]>();
  for (const write of tuple.pendingWrites) {
    const task = JSON.stringify([write.taskId, write.taskPath]);
    tasks.set(task, [...(tasks.get(task) ?? []), write]);
  }
  for (const [task, ofTask] of tasks) {
    const [taskId, taskPath] = JSON.parse(task) as [string, string];
    for (const part of inRequests(ofTask)) {
      const writes = part.map(({ idx, channel, value }) => ({
        idx,
        channel,
        ...(value ? { value } : {}),
      }));
      await store.putWrites({ ...name, taskId, taskPath, writes });
    }
  }
}

/**
 * What checkpoints of a format before 4 were sent by a parent that is not in the file: a prune leaves
 * of it these writes alone.
 */
function createSends() {
  const seen = new Set<string>();
  const awaited = new Map<string, CheckpointTuple>();
  const placeOf = (checkpointNs: string, id: string) => JSON.stringify([checkpointNs, id]);
  return {
    note(tuple: CheckpointTuple): void {
      const { checkpointNs = "", checkpointId = "" } = tuple.key ?? {};
      const place = placeOf(checkpointNs, checkpointId);
      seen.add(place);
      awaited.delete(place);
      const parent = placeOf(checkpointNs, tuple.parentCheckpointId ?? "");
      if (tuple.pendingSends.length > 0 && !seen.has(parent)) awaited.set(parent, tuple);
    },
    /** The writes that bring them. */
    *missing(threadId: string) {
      for (const { key, parentCheckpointId = "", pendingSends } of awaited.values()) {
        for (const [i, writes] of inRequests(pendingSends.map((value) => ({ value }))).entries()) {
          yield {
            threadId,
            checkpointNs: key?.checkpointNs ?? "",
            checkpointId: parentCheckpointId,
            taskId: "00000000-0000-0000-0000-000000000000",
            // In the order of their paths.
            taskPath: String(i).padStart(6, "0"),
            writes: writes.map(({ value }, idx) => ({
              idx: i * 1_000_000 + idx,
              channel: "__pregel_tasks",
              value,
            })),
          };
        }
      }
    },
  };
}

/** Divides them so that each part fits a request; one empty part if there is nothing. */
function inRequests<Part extends Pick<ChannelBlob, "value">>(all: readonly Part[]): Part[][] {
  const parts: Part[][] = [[]];
  let bytes = 0;
  for (const each of all) {
    const size = (each.value?.data.length ?? 0) + 1_000;
    if (bytes > 0 && bytes + size > requestBytes) {
      parts.push([]);
      bytes = 0;
    }
    parts[parts.length - 1]?.push(each);
    bytes += size;
  }
  return parts;
}

function parse(line: string, n: number): Record<string, unknown> {
  try {
    const value = JSON.parse(line);
    if (typeof value === "object" && value !== null) return value;
  } catch {}
  throw new Error(`line ${n} is not JSON: the file is damaged or was cut off`);
}

function toTuple(line: Record<string, unknown>, n: number): CheckpointTuple {
  try {
    const tuple = fromJson(CheckpointTupleSchema, line as never);
    if (!tuple.key?.checkpointId) throw new Error("it has no id");
    return tuple;
  } catch (error) {
    throw new Error(`line ${n} is not a checkpoint: ${(error as Error).message}`);
  }
}
