/**
 * A thread as a file, and back: the same JSON lines that `checkpointd threads export` writes and `import`
 * reads. A header, a line for each checkpoint, the latest first, and one with their number.
 */
import { fromJson, toJsonString } from "@bufbuild/protobuf";
import { type ChannelBlob, type CheckpointTuple, CheckpointTupleSchema } from "checkpointd/client";
import { checkpoints, threads } from "../service.js";

/** Values of one request at the most; a larger one travels alone. */
const requestBytes = 16 * 1024 * 1024;

/** Reads a whole thread. `onProgress` is told how many checkpoints there are until now. */
export async function exportThread(
  threadId: string,
  onProgress: (checkpoints: number) => void,
): Promise<Blob> {
  const parts: string[] = [`${JSON.stringify({ checkpointd: "thread", version: 1, threadId })}\n`];
  const seen = new Set<string>();
  let count = 0;
  for await (const { tuple } of checkpoints.list({ threadId, omitUnchanged: true })) {
    if (!tuple) continue;
    // A value that several checkpoints share is in the first of them.
    tuple.blobs = tuple.blobs.filter(({ channel, version }) => {
      const name = JSON.stringify([tuple.key?.checkpointNs, channel, version]);
      return seen.size !== seen.add(name).size;
    });
    tuple.unchangedChannels = [];
    parts.push(`${toJsonString(CheckpointTupleSchema, tuple)}\n`);
    onProgress(++count);
  }
  parts.push(`${JSON.stringify({ end: true, checkpoints: count })}\n`);
  return new Blob(parts, { type: "application/jsonl" });
}

/**
 * Restores a thread under a name of its own first and copies it from there, so that it is whole or not
 * there at all. An empty `as` is the name it was exported from. Returns the name it has.
 */
export async function importThread(
  file: Blob,
  as: string,
  onProgress: (checkpoints: number) => void,
): Promise<string> {
  const lines = (await file.text()).split("\n").filter((line) => line !== "");
  const [header, end] = [parse(lines[0] ?? "", 1), parse(lines.at(-1) ?? "", lines.length)];
  if (header.checkpointd !== "thread" || header.version !== 1) {
    throw new Error("This is not an exported thread: its first line is not the header.");
  }
  const tuples = lines.slice(1, -1);
  if (end.end !== true || end.checkpoints !== tuples.length) {
    throw new Error("The file is incomplete: its last line is missing, or others are.");
  }
  const target = as || String(header.threadId);
  const { thread } = await threads.getThread({ threadId: target });
  if (thread) throw new Error(`There is a thread ${target} already: give another name.`);
  // Not randomUUID, which pages have only over TLS and on loopback.
  const random = crypto.getRandomValues(new Uint32Array(4));
  const temporary = `importing-${random.join("-")}`;
  try {
    let count = 0;
    for (const [i, line] of tuples.entries()) {
      const tuple = fromJson(CheckpointTupleSchema, parse(line, i + 2) as never);
      if (tuple.pendingSends.length > 0) {
        throw new Error("It was written by an old LangGraph: import it in a terminal.");
      }
      await store(temporary, tuple);
      onProgress(++count);
    }
    await threads.copyThread({ sourceThreadId: temporary, targetThreadId: target });
    return target;
  } finally {
    await checkpoints.deleteThread({ threadId: temporary });
  }
}

function parse(line: string, n: number): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(line);
    if (typeof value === "object" && value !== null) return value as Record<string, unknown>;
  } catch {}
  throw new Error(`Line ${n} is not JSON: the file is damaged, or was cut off.`);
}

async function store(threadId: string, tuple: CheckpointTuple): Promise<void> {
  const { checkpointNs = "", checkpointId = "" } = tuple.key ?? {};
  const key = { threadId, checkpointNs, checkpointId };
  const parentCheckpointId = tuple.parentCheckpointId ?? "";
  const { checkpointJson, metadataJson } = tuple;
  const parts = inRequests(tuple.blobs);
  const last = parts.pop() ?? [];
  for (const blobs of parts) {
    await checkpoints.put({ ...key, parentCheckpointId, checkpointJson: "{}", blobs });
  }
  await checkpoints.put({ ...key, parentCheckpointId, checkpointJson, metadataJson, blobs: last });
  const ofTasks = Map.groupBy(tuple.pendingWrites, ({ taskId, taskPath }) =>
    JSON.stringify([taskId, taskPath]),
  );
  for (const [task, all] of ofTasks) {
    const [taskId = "", taskPath = ""] = JSON.parse(task) as string[];
    for (const part of inRequests(all)) {
      const writes = part.map(({ idx, channel, value }) => ({
        idx,
        channel,
        ...(value ? { value } : {}),
      }));
      await checkpoints.putWrites({ ...key, taskId, taskPath, writes });
    }
  }
}

/** Divides them so that each part fits a request. */
function inRequests<Part extends Pick<ChannelBlob, "value">>(all: readonly Part[]): Part[][] {
  const parts: Part[][] = [[]];
  let bytes = 0;
  for (const each of all) {
    const size = (each.value?.data.length ?? 0) + 1_000;
    if (bytes > 0 && bytes + size > requestBytes) {
      parts.push([]);
      bytes = 0;
    }
    parts.at(-1)?.push(each);
    bytes += size;
  }
  return parts;
}
