/** `checkpointd threads ls`, `show` and `history`. */

import type { CheckpointTuple, Value } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import { ListView } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { readList } from "../client/read_list.js";
import type { ListThreadsOptions, Thread } from "../client/threads.js";
import { define } from "../settings/flags.js";
import { anyText, present } from "../settings/kinds.js";
import {
  type Colour,
  type Column,
  clean,
  paint,
  print,
  printJson,
  printTable,
  shorten,
  toAgo,
  toCount,
  toSize,
} from "./print.js";
import type { ThreadsCommand } from "./threads_command.js";
import { filterFlags, json, limit, ns, toFilter } from "./threads_flags.js";

/** Rows of a table unless --limit says otherwise. */
const tableRows = 50;

const statusColours: Record<string, Colour> = {
  failed: "red",
  interrupted: "yellow",
  pending: "cyan",
  completed: "green",
};

export const listFlags = {
  ...filterFlags,
  limit,
  byId: define({
    flag: "by-id",
    kind: present,
    unset: false,
    help: "in the order of their ids, not the latest first",
  }),
  counts: define({
    flag: "counts",
    kind: present,
    unset: false,
    help: "count what is stored of each",
  }),
  json,
};

export async function runList(command: ThreadsCommand<typeof listFlags>): Promise<number> {
  const { json: asJson, byId, counts } = command.flags;
  const limit = command.flags.limit ?? (asJson ? undefined : tableRows);
  const options: ListThreadsOptions = {
    ...toFilter(command.flags),
    order: byId ? "id" : "newest",
    counts,
    // One more than is shown tells whether there are more.
    ...(limit === undefined ? {} : { limit: asJson ? limit : limit + 1 }),
  };
  const threads = command.threads.list(options);
  if (asJson) {
    for await (const thread of threads) printJson(toJson(thread));
    return 0;
  }
  let more = false;
  const rows = async function* () {
    let shown = 0;
    for await (const thread of threads) {
      if (shown++ === limit) {
        more = true;
        return;
      }
      yield [
        thread.threadId,
        thread.status,
        String(thread.step ?? ""),
        thread.source,
        toAgo(thread.updatedAt),
        ...(counts
          ? [String(thread.counts?.checkpoints ?? 0), toSize(thread.counts?.storedBytes ?? 0)]
          : []),
        thread.claim ? `${thread.claim.owner} ` : "",
        thread.pendingNodes.join(" "),
      ];
    }
  };
  const columns: Column[] = [
    { heading: "THREAD" },
    { heading: "STATUS", colour: (text) => statusColours[text] },
    { heading: "STEP" },
    { heading: "SOURCE" },
    { heading: "AGE" },
    ...(counts ? ["CHECKPOINTS", "SIZE"] : []).map((heading) => ({ heading })),
    { heading: "HELD BY" },
    { heading: "PENDING" },
  ];
  if ((await printTable(columns, rows())) === 0) print("No threads.");
  if (more) print(paint("dim", `There are more: --limit shows more than ${limit}.`));
  return 0;
}

export const showFlags = {
  checkpointId: define({
    flag: "checkpoint",
    kind: anyText,
    unset: "",
    help: "the checkpoint's id; the latest unless given",
  }),
  checkpointNs: ns,
  json,
};

export async function runShow(command: ThreadsCommand<typeof showFlags>): Promise<number> {
  const [threadId = ""] = command.words;
  const { checkpointNs, checkpointId } = command.flags;
  const [thread, { tuple }] = await Promise.all([
    command.threads.get(threadId, { counts: true }),
    command.calls.call((service, context) =>
      service.getTuple({ threadId, checkpointNs, checkpointId }, context),
    ),
  ]);
  if (!tuple) {
    throw new Error(
      checkpointId === "" && checkpointNs === ""
        ? `no thread ${JSON.stringify(threadId)}`
        : `no such checkpoint of thread ${JSON.stringify(threadId)}`,
    );
  }
  if (command.flags.json) {
    printJson({
      ...(thread ? toJson(thread) : { threadId }),
      checkpoint: {
        checkpointNs,
        checkpointId: tuple.key?.checkpointId,
        parentCheckpointId: tuple.parentCheckpointId,
        metadata: JSON.parse(tuple.metadataJson),
        values: Object.fromEntries(valuesOf(tuple)),
        pendingWrites: tuple.pendingWrites.map(({ taskId, idx, channel, value }) => ({
          taskId,
          idx,
          channel,
          value: toValue(value),
        })),
      },
    });
    return 0;
  }
  const facts: [string, string][] = [["thread", threadId]];
  if (thread) {
    const { status, counts, claim, pendingNodes } = thread;
    facts.push(["status", paint(statusColours[status] ?? "bold", status)]);
    if (pendingNodes.length > 0) facts.push(["pending", pendingNodes.join(" ")]);
    facts.push(["updated", `${thread.updatedAt.toISOString()} (${toAgo(thread.updatedAt)} ago)`]);
    if (claim) facts.push(["held by", `${claim.owner} until ${claim.expiresAt.toISOString()}`]);
    if (counts) {
      const { checkpoints, blobs, writes, storedBytes } = counts;
      const stored = `${toCount(checkpoints, "checkpoint")}, ${toCount(blobs, "value")}, ${toCount(writes, "write")}`;
      facts.push(["stored", `${stored}, ${toSize(storedBytes)}`]);
    }
  }
  facts.push(
    ["checkpoint", tuple.key?.checkpointId ?? ""],
    ["parent", tuple.parentCheckpointId ?? "none"],
    ["metadata", tuple.metadataJson],
  );
  for (const [name, text] of facts) print(`${paint("bold", name.padEnd(10))}  ${text}`);
  print(`\n${paint("bold", "values")}`);
  for (const [channel, value] of valuesOf(tuple)) print(`  ${clean(channel)}: ${toText(value)}`);
  if (tuple.pendingWrites.length > 0) print(`\n${paint("bold", "pending writes")}`);
  for (const { taskId, channel, value } of tuple.pendingWrites) {
    print(`  ${clean(taskId)}  ${clean(channel)}: ${toText(toValue(value))}`);
  }
  return 0;
}

export const historyFlags = { checkpointNs: ns, limit, json };

export async function runHistory(command: ThreadsCommand<typeof historyFlags>): Promise<number> {
  const [threadId = ""] = command.words;
  const { checkpointNs, limit } = command.flags;
  const tuples = readList(command.calls, {
    threadId,
    checkpointNs,
    view: ListView.METADATA,
    ...(limit === undefined ? {} : { limit }),
  });
  if (command.flags.json) {
    for await (const tuple of tuples) {
      printJson({ ...facts(tuple), metadata: JSON.parse(tuple.metadataJson) });
    }
    return 0;
  }
  const rows = async function* () {
    for await (const tuple of tuples) {
      const { checkpointId, parentCheckpointId = "", step, source } = facts(tuple);
      yield [checkpointId, parentCheckpointId, String(step ?? ""), String(source ?? "")];
    }
  };
  const columns = ["CHECKPOINT", "PARENT", "STEP", "SOURCE"].map((heading) => ({ heading }));
  const count = await printTable(columns, rows());
  if (count === 0 && limit !== 0) throw new Error(`no thread ${JSON.stringify(threadId)}`);
  return 0;
}

function facts(tuple: CheckpointTuple) {
  const { step, source } = JSON.parse(tuple.metadataJson || "{}");
  return {
    checkpointId: tuple.key?.checkpointId ?? "",
    parentCheckpointId: tuple.parentCheckpointId,
    step,
    source,
  };
}

/** A thread as --json prints it: these keys stay. */
function toJson(thread: Thread) {
  const { updatedAt, claim, ...rest } = thread;
  return {
    ...rest,
    updatedAt: updatedAt.toISOString(),
    ...(claim ? { claim: { owner: claim.owner, expiresAt: claim.expiresAt.toISOString() } } : {}),
  };
}

/** The channels' values: those in the checkpoint's JSON, then those stored apart, by name. */
function valuesOf(tuple: CheckpointTuple): [string, unknown][] {
  const inlined = JSON.parse(tuple.checkpointJson).channel_values ?? {};
  const stored = tuple.blobs.map(({ channel, value }): [string, unknown] => [
    channel,
    toValue(value),
  ]);
  return [...new Map([...Object.entries(inlined), ...stored])].sort(([a], [b]) => (a < b ? -1 : 1));
}

/** The value where it is JSON, and what it is where it is not: classes are never made of it. */
function toValue(value: Value | undefined): unknown {
  if (value?.type === "json") {
    try {
      return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(value.data));
    } catch {}
  }
  return new Undecoded(value?.type ?? "nothing", value?.data.length ?? 0);
}

class Undecoded {
  constructor(
    readonly type: string,
    readonly bytes: number,
  ) {}
}

function toText(value: unknown): string {
  if (value instanceof Undecoded)
    return paint("dim", `<${clean(value.type)}, ${toSize(value.bytes)}>`);
  return clean(shorten(JSON.stringify(value) ?? "", 400));
}
