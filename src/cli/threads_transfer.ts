/**
 * `checkpointd threads export` and `import`. The file is JSON lines: a header, one line for each
 * checkpoint (protobuf's JSON of CheckpointTuple, the latest first), and a last line with their
 * number, without which the file was cut off. A value that several checkpoints share is only in
 * the first of them.
 */
import { randomUUID } from "node:crypto";
import { createReadStream, createWriteStream } from "node:fs";
import { createInterface } from "node:readline";
import type { Readable, Writable } from "node:stream";
import { finished } from "node:stream/promises";
import { fromJson, toJsonString } from "@bufbuild/protobuf";
import {
  type ChannelBlob,
  type CheckpointTuple,
  CheckpointTupleSchema,
} from "../../gen/checkpointd/v1/checkpoint_pb.js";
import { clean } from "../clean.js";
import type { Calls } from "../client/calls.js";
import { readList } from "../client/read_list.js";
import { define } from "../settings/flags.js";
import { text } from "../settings/kinds.js";
import { print, startProgress, toCount, toSize } from "./print.js";
import type { ThreadsCommand } from "./threads_command.js";

/** Values of one request at the most; a larger one travels alone. */
const requestBytes = 16 * 1024 * 1024;

export const exportFlags = {
  out: define({
    flag: "out",
    kind: text,
    unset: undefined,
    help: "the file to write; standard output unless given",
  }),
};

export async function runExport(command: ThreadsCommand<typeof exportFlags>): Promise<number> {
  const { calls, words } = command;
  const [threadId = ""] = words;
  const file = command.flags.out;
  const tuples = readList(calls, { threadId });
  // Before a file is made: a thread that does not exist leaves none.
  let next = await tuples.next();
  if (next.done) throw new Error(`no thread ${JSON.stringify(threadId)}`);
  const out: Writable = file === undefined ? process.stdout : createWriteStream(file);
  // A pipe that closed (`| head`) must end the export, not the process with a stack.
  const broken = new Promise<never>((_, reject) => out.once("error", reject));
  broken.catch(() => {});
  const progress = startProgress();
  const seen = new Set<string>();
  let checkpoints = 0;
  let bytes = 0;
  const write = async (json: string) => {
    // The same JSON, also where it is read on a terminal.
    const line = clean(json);
    bytes += line.length;
    if (!out.write(`${line}\n`)) {
      await Promise.race([new Promise((resolve) => out.once("drain", resolve)), broken]);
    }
  };
  try {
    await write(JSON.stringify({ checkpointd: "thread", version: 1, threadId }));
    for (; !next.done; next = await tuples.next()) {
      const tuple = next.value;
      tuple.blobs = tuple.blobs.filter(({ channel, version }) => {
        const name = JSON.stringify([tuple.key?.checkpointNs, channel, version]);
        return seen.size !== seen.add(name).size;
      });
      await write(toJsonString(CheckpointTupleSchema, tuple));
      checkpoints++;
      progress.say(`${toCount(checkpoints, "checkpoint")}, ${toSize(bytes)}`);
    }
    await write(JSON.stringify({ end: true, checkpoints }));
    if (file !== undefined) {
      out.end();
      await finished(out);
    }
  } finally {
    progress.end();
    await tuples.return();
  }
  if (file !== undefined)
    print(`Exported ${toCount(checkpoints, "checkpoint")} to ${file} (${toSize(bytes)}).`);
  return 0;
}

export const importFlags = {
  as: define({
    flag: "as",
    kind: text,
    unset: undefined,
    help: "the thread's name; the one it was exported from unless given",
  }),
};

/**
 * Restores the thread under a name of its own first and copies it from there in one statement, so
 * that the thread is whole or not there at all. Refuses a name under which something is stored.
 */
export async function runImport(command: ThreadsCommand<typeof importFlags>): Promise<number> {
  const { calls, threads, words } = command;
  const [file] = words;
  const input: Readable =
    file === undefined || file === "-" ? process.stdin : createReadStream(file);
  const lines = createInterface({ input, crlfDelay: Number.POSITIVE_INFINITY });
  const failed = new Promise<never>((_, reject) => input.once("error", reject));
  failed.catch(() => {});
  const temporary = `importing-${randomUUID()}`;
  const progress = startProgress();
  let target = command.flags.as;
  let stored = 0;
  let end: number | undefined;
  let isBegun = false;
  const sends = createSends();
  try {
    const each = lines[Symbol.asyncIterator]();
    for (let n = 1; ; n++) {
      const { done, value } = await Promise.race([each.next(), failed]);
      if (done) break;
      const line = parse(value, n);
      if (n === 1) {
        if (line.checkpointd !== "thread" || line.version !== 1) {
          throw new Error("not an exported thread: the first line is not its header");
        }
        isBegun = true;
        target ??= String(line.threadId);
        if (await threads.get(target)) {
          throw new Error(`thread ${JSON.stringify(target)} exists; --as gives another name`);
        }
      } else if (line.end === true) {
        end = Number(line.checkpoints);
        break;
      } else {
        const tuple = toTuple(line, n);
        sends.note(tuple);
        await storeTuple(calls, temporary, tuple);
        stored++;
        progress.say(`${toCount(stored, "checkpoint")}`);
      }
    }
    if (!isBegun || target === undefined) {
      throw new Error("not an exported thread: the file is empty");
    }
    if (end !== stored) {
      const expected = end === undefined ? "its last line is missing" : `${end} were exported`;
      throw new Error(
        `the file is incomplete: it has ${toCount(stored, "checkpoint")}, ${expected}`,
      );
    }
    for (const put of sends.missing(temporary)) {
      await calls.call((service, context) => service.putWrites(put, context));
    }
    await threads.copy(temporary, target);
  } finally {
    progress.end();
    lines.close();
    await calls.call((service, context) => service.deleteThread({ threadId: temporary }, context));
  }
  print(`Imported ${toCount(stored, "checkpoint")} as ${JSON.stringify(target)}.`);
  return 0;
}

async function storeTuple(calls: Calls, threadId: string, tuple: CheckpointTuple): Promise<void> {
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
  for (const each of puts) {
    const put = { ...name, parentCheckpointId, ...each };
    await calls.call((service, context) => service.put(put, context));
  }
  const tasks = new Map<string, CheckpointTuple["pendingWrites"]>();
  for (const write of tuple.pendingWrites) {
    const task = JSON.stringify([write.taskId, write.taskPath]);
    tasks.set(task, [...(tasks.get(task) ?? []), write]);
  }
  for (const [task, writes] of tasks) {
    const [taskId, taskPath] = JSON.parse(task) as [string, string];
    for (const part of inRequests(writes)) {
      const putWrites = {
        ...name,
        taskId,
        taskPath,
        writes: part.map(({ idx, channel, value }) => ({
          idx,
          channel,
          ...(value ? { value } : {}),
        })),
      };
      await calls.call((service, context) => service.putWrites(putWrites, context));
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
    return fromJson(CheckpointTupleSchema, line as never);
  } catch (error) {
    throw new Error(`line ${n} is not a checkpoint: ${(error as Error).message}`);
  }
}
