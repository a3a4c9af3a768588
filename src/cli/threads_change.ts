/** `checkpointd threads cp`, `rm` and `prune`. */
import type { PruneOptions, ThreadCounts } from "../client/threads.js";
import { UsageError } from "../config.js";
import { confirm, print, printJson, printTable, startProgress, toCount, toSize } from "./print.js";
import type { ThreadsCommand } from "./threads.js";
import { readFilter, readInteger, toAge } from "./threads_flags.js";

export async function runCopy({ threads, words, has }: ThreadsCommand): Promise<number> {
  const [source = "", target = ""] = words;
  const copied = await threads.copy(source, target);
  if (copied.checkpoints + copied.writes + copied.blobs === 0) {
    throw new Error(`no thread ${JSON.stringify(source)}`);
  }
  if (has("json")) printJson(copied);
  else print(`Copied ${toWords(copied)}.`);
  return 0;
}

export async function runRemove({ calls, threads, words, has }: ThreadsCommand): Promise<number> {
  const missing: string[] = [];
  for (const threadId of words) if (!(await threads.get(threadId))) missing.push(threadId);
  if (missing.length > 0)
    throw new Error(`no thread ${missing.map((id) => JSON.stringify(id)).join(", ")}`);
  const what =
    words.length === 1 ? `thread ${JSON.stringify(words[0])}` : `${words.length} threads`;
  if (!(await confirm(`Delete ${what}?`, has("yes")))) return 1;
  for (const threadId of words) {
    await calls.call((service, context) => service.deleteThread({ threadId }, context));
  }
  print(`Deleted ${what}.`);
  return 0;
}

export async function runPrune(command: ThreadsCommand): Promise<number> {
  const options = readOptions(command);
  const asJson = command.has("json");
  if (command.has("dry-run")) {
    const { threads, total } = await prune(command, { ...options, dryRun: true }, !asJson);
    if (asJson) printJson({ dryRun: true, threads, ...total });
    else print(`Would remove ${toWords(total)} of ${toCount(threads, "thread")}.`);
    return 0;
  }
  if (!command.has("yes")) {
    const { threads, total } = await prune(command, { ...options, dryRun: true }, false);
    if (threads === 0) {
      print("Nothing to remove.");
      return 0;
    }
    if (!(await confirm(`Remove ${toWords(total)} of ${toCount(threads, "thread")}?`, false)))
      return 1;
  }
  const { threads, total } = await prune(command, options, false);
  if (asJson) printJson({ dryRun: false, threads, ...total });
  else print(`Removed ${toWords(total)} of ${toCount(threads, "thread")}.`);
  return 0;
}

function readOptions(command: ThreadsCommand): PruneOptions {
  const keepLast = readInteger(command, "keep-last", 1);
  const isDelete = command.has("delete");
  if ((keepLast === undefined) === !isDelete) {
    throw new UsageError("prune needs --keep-last N or --delete, and not both.");
  }
  const age = command.flag("older-than");
  const olderThanMs = age === undefined ? undefined : toAge(age);
  if (age !== undefined && olderThanMs === undefined) {
    throw new UsageError(`--older-than must be an age such as 12h or 30d, not "${age}".`);
  }
  const filter = readFilter(command);
  if (command.words.length > 0 && Object.keys(filter).length > 0) {
    throw new UsageError("prune takes threads or a filter, not both.");
  }
  return {
    ...filter,
    ...(command.words.length > 0 ? { threadIds: [...new Set(command.words)] } : {}),
    ...(keepLast === undefined ? { delete: true as const } : { keepLast }),
    ...(olderThanMs === undefined ? {} : { olderThanMs }),
  };
}

async function prune({ threads }: ThreadsCommand, options: PruneOptions, isListed: boolean) {
  const total: ThreadCounts = { checkpoints: 0, blobs: 0, writes: 0, storedBytes: 0 };
  let count = 0;
  const progress = startProgress();
  const rows = async function* () {
    for await (const { threadId, removed, threadsExamined } of threads.prune(options)) {
      progress.say(`${threadsExamined} threads looked at, ${toSize(total.storedBytes)} removed`);
      if (threadId === undefined) continue;
      count++;
      total.checkpoints += removed.checkpoints;
      total.blobs += removed.blobs;
      total.writes += removed.writes;
      total.storedBytes += removed.storedBytes;
      const { checkpoints, blobs, writes, storedBytes } = removed;
      yield [threadId, String(checkpoints), String(blobs), String(writes), toSize(storedBytes)];
    }
  };
  try {
    if (isListed) {
      const columns = ["THREAD", "CHECKPOINTS", "VALUES", "WRITES", "SIZE"];
      await printTable(
        columns.map((heading) => ({ heading })),
        rows(),
      );
    } else {
      for await (const _ of rows());
    }
  } finally {
    progress.end();
  }
  return { threads: count, total };
}

const toWords = ({ checkpoints, blobs, writes, storedBytes }: ThreadCounts) =>
  `${toCount(checkpoints, "checkpoint")}, ${toCount(blobs, "value")} and ${toCount(writes, "write")} (${toSize(storedBytes)})`;
