/** `checkpointd threads ls` and `show`. */

import { ListView } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import type { Calls } from "../client/calls.js";
import { decodeValue } from "../client/decode_value.js";
import { readList } from "../client/read_list.js";
import type { ListThreadsOptions, Thread } from "../client/threads.js";
import { valuesOfTuple } from "../client/tuple_values.js";
import { define } from "../settings/flags.js";
import { anyText, present } from "../settings/kinds.js";
import {
  type Colour,
  type Column,
  hint,
  hintMore,
  type Painted,
  paint,
  print,
  printJson,
  printTable,
  shorten,
  toAgo,
  toCount,
  toLeft,
  toSize,
} from "./print.js";
import { reasonTexts, toReasonCell } from "./reason_text.js";
import type { ThreadsCommand } from "./threads_command.js";
import { filterFlags, json, limit, ns, toFilter } from "./threads_flags.js";
import { toLine, toLines, toPlain } from "./value_text.js";

/** Characters of a question or an error that `ls` shows, and `show`. */
const listedReason = 80;
const shownReason = 400;
/** Namespaces that `show` names. */
const shownNamespaces = 20;

export const statusColours: Record<string, Colour> = {
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
  const { json: asJson, byId, counts, limit } = command.flags;
  const options: ListThreadsOptions = {
    ...toFilter(command.flags),
    order: byId ? "id" : "newest",
    counts,
    withReasons: true,
    // One more than is shown tells whether there are more.
    limit: limit + 1,
  };
  let found = 0;
  const threads = async function* () {
    for await (const thread of command.threads.list(options)) if (found++ < limit) yield thread;
  };
  const rows = async function* () {
    for await (const thread of threads()) yield toRow(thread, counts);
  };
  if (asJson) for await (const thread of threads()) printJson(toJson(thread));
  else await printTable(columnsOf(counts), rows());
  if (found === 0) hint("No threads.");
  if (found > limit) hintMore(limit);
  return 0;
}

/** The columns of a table of threads, with what is stored of each if `counts`. */
export const columnsOf = (counts: boolean): Column[] => [
  { heading: "THREAD" },
  { heading: "STATUS", colour: (text) => statusColours[text] },
  { heading: "STEP" },
  { heading: "SOURCE" },
  { heading: "AGE" },
  ...(counts ? ["CHECKPOINTS", "SIZE"] : []).map((heading) => ({ heading })),
  { heading: "HELD BY" },
  { heading: "PENDING" },
  { heading: "WHY", colour: (text) => (text.startsWith("error") ? "red" : "yellow") },
];

/** A thread as a row of it. */
export const toRow = (thread: Thread, counts: boolean): string[] => [
  thread.threadId,
  thread.status,
  String(thread.step ?? ""),
  thread.source,
  toAgo(thread.updatedAt),
  ...(counts
    ? [String(thread.counts?.checkpoints ?? 0), toSize(thread.counts?.storedBytes ?? 0)]
    : []),
  thread.claim ? `${thread.claim.owner}, ${toLeft(thread.claim.expiresAt)}` : "",
  thread.pendingNodes.join(" "),
  toReasonCell(thread, listedReason),
];

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
  const [thread, namespaces, { tuple }] = await Promise.all([
    command.threads.get(threadId, { counts: true, withReasons: true }),
    readNamespaces(command.calls, threadId),
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
        values: Object.fromEntries(
          [...valuesOfTuple(tuple)].map(([name, value]) => [name, toPlain(value)]),
        ),
        pendingWrites: tuple.pendingWrites.map(({ taskId, idx, channel, value }) => ({
          taskId,
          idx,
          channel,
          value: toPlain(decodeValue(value)),
        })),
      },
      namespaces: namespaces.map(([name]) => name),
    });
    return 0;
  }
  const facts: [string, string | Painted][] = [["thread", threadId]];
  if (thread) {
    const { status, counts, claim, pendingNodes } = thread;
    facts.push(["status", paint(statusColours[status] ?? "bold", status)]);
    for (const { kind, name, text } of reasonTexts(thread, shownReason)) {
      const node = name === undefined ? "" : `${shorten(name, listedReason)}: `;
      facts.push([kind, paint(kind === "error" ? "red" : "yellow", `${node}${text}`)]);
    }
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
  for (const [name, text] of facts) print(paint("bold", name.padEnd(10)), "  ", text);
  printHeading("values");
  for (const [channel, value] of valuesOfTuple(tuple)) {
    const [first = [], ...more] = toLines(value);
    const isLong = more.length > 0 || (value.kind === "list" && !value.name);
    print(`  ${channel}:`, ...(isLong ? [] : [" ", ...first]));
    if (isLong) for (const line of [first, ...more]) print("    ", ...line);
  }
  if (tuple.pendingWrites.length > 0) printHeading("pending writes");
  for (const { taskId, channel, value } of tuple.pendingWrites) {
    print(`  ${taskId}  ${channel}: `, ...toLine(decodeValue(value)));
  }
  printNamespaces(namespaces, checkpointNs);
  return 0;
}

function printHeading(text: string): void {
  print();
  print(paint("bold", text));
}

/** The namespaces of subgraphs, if there are any besides the one that is shown. */
function printNamespaces(namespaces: [name: string, count: number][], shown: string): void {
  const others = namespaces.filter(([name]) => name !== shown);
  if (others.length === 0) return;
  printHeading("other namespaces");
  for (const [name, count] of others.slice(0, shownNamespaces)) {
    print(`  ${name === "" ? '""' : name}  ${toCount(count, "checkpoint")}`);
  }
  const seen = namespaces.reduce((sum, [, count]) => sum + count, 0);
  const rest = others.length - shownNamespaces;
  if (rest > 0) hint(`${rest} more namespaces are not shown; --json has them.`);
  if (seen === namespacesOf) hint(`Namespaces are those of the latest ${seen} checkpoints.`);
  hint("--ns shows one, here and with history.");
}

/** A thread as --json prints it: these keys stay. */
export function toJson(thread: Thread) {
  const { updatedAt, claim, ...rest } = thread;
  return {
    ...rest,
    updatedAt: updatedAt.toISOString(),
    ...(claim ? { claim: { owner: claim.owner, expiresAt: claim.expiresAt.toISOString() } } : {}),
  };
}

/** Checkpoints that are looked at for the namespaces they are in, the latest ones. */
const namespacesOf = 500;

/** The namespaces of a thread, the latest first, as far as its latest checkpoints tell. */
async function readNamespaces(calls: Calls, threadId: string): Promise<[string, number][]> {
  const request = { threadId, view: ListView.METADATA, limit: namespacesOf };
  const found = new Map<string, number>();
  for await (const { key } of readList(calls, request)) {
    const name = key?.checkpointNs ?? "";
    found.set(name, (found.get(name) ?? 0) + 1);
  }
  return [...found];
}
