/** `checkpointd threads cp`, `rm`, `release` and `prune`. */
import type { PruneOptions, ThreadCounts } from "../client/threads.js";
import { define, UsageError } from "../settings/flags.js";
import { age, present } from "../settings/kinds.js";
import { keepLast } from "../settings/retention_rules.js";
import { confirm, print, printJson, printTable, startProgress, toCount, toSize } from "./print.js";
import type { ThreadsCommand } from "./threads_command.js";
import { filterFlags, json, toFilter, yes } from "./threads_flags.js";

export const copyFlags = { json };

export async function runCopy(command: ThreadsCommand<typeof copyFlags>): Promise<number> {
  const { threads, words } = command;
  const [source = "", target = ""] = words;
  const copied = await threads.copy(source, target);
  if (copied.checkpoints + copied.writes + copied.blobs === 0) {
    throw new Error(`no thread ${JSON.stringify(source)}`);
  }
  if (command.flags.json) printJson(copied);
  else print(`Copied ${toWords(copied)}.`);
  return 0;
}

export const removeFlags = { yes };

export async function runRemove(command: ThreadsCommand<typeof removeFlags>): Promise<number> {
  const { calls, threads, words } = command;
  const missing: string[] = [];
  for (const threadId of words) if (!(await threads.get(threadId))) missing.push(threadId);
  if (missing.length > 0)
    throw new Error(`no thread ${missing.map((id) => JSON.stringify(id)).join(", ")}`);
  const what =
    words.length === 1 ? `thread ${JSON.stringify(words[0])}` : `${words.length} threads`;
  if (!(await confirm(`Delete ${what}?`, command.flags.yes))) return 1;
  for (const threadId of words) {
    await calls.call((service, context) => service.deleteThread({ threadId }, context));
  }
  print(`Deleted ${what}.`);
  return 0;
}

export const releaseFlags = { yes };

export async function runRelease(command: ThreadsCommand<typeof releaseFlags>): Promise<number> {
  const { calls, threads, words } = command;
  const [threadId = ""] = words;
  // A thread that is not there can be under a lease as well: its first run has stored nothing yet.
  const claim = (await threads.get(threadId))?.claim;
  const name = JSON.stringify(threadId);
  const whose = claim ? `of ${JSON.stringify(claim.owner)} ` : "";
  const question = `End the lease ${whose}on thread ${name}? Its holder can store nothing more.`;
  if (!(await confirm(question, command.flags.yes))) return 1;
  await calls.call((service, context) => service.releaseClaim({ threadId, force: true }, context));
  print(`Nobody holds thread ${name} now.`);
  return 0;
}

export const pruneFlags = {
  ...filterFlags,
  keepLast: define({
    flag: "keep-last",
    kind: keepLast,
    unset: undefined,
    help: "so many checkpoints of each namespace stay",
  }),
  olderThanMs: define({
    flag: "older-than",
    kind: age,
    unset: undefined,
    help: "only what is older (30m, 12h, 90d)",
  }),
  delete: define({
    flag: "delete",
    kind: present,
    unset: false,
    help: "the whole thread goes",
  }),
  dryRun: define({
    flag: "dry-run",
    kind: present,
    unset: false,
    help: "say what would be removed, and remove nothing",
  }),
  yes,
  json,
};

type PruneCommand = ThreadsCommand<typeof pruneFlags>;

export async function runPrune(command: PruneCommand): Promise<number> {
  const options = toOptions(command);
  const { dryRun, json: asJson } = command.flags;
  if (dryRun) {
    const { threads, total } = await prune(command, { ...options, dryRun }, !asJson);
    if (asJson) printJson({ dryRun, threads, ...total });
    else print(`Would remove ${toWords(total)} of ${toCount(threads, "thread")}.`);
    return 0;
  }
  if (!command.flags.yes) {
    const { threads, total } = await prune(command, { ...options, dryRun: true }, false);
    if (threads === 0) {
      print("Nothing to remove.");
      return 0;
    }
    if (!(await confirm(`Remove ${toWords(total)} of ${toCount(threads, "thread")}?`, false)))
      return 1;
  }
  const { threads, total } = await prune(command, options, false);
  if (asJson) printJson({ dryRun, threads, ...total });
  else print(`Removed ${toWords(total)} of ${toCount(threads, "thread")}.`);
  return 0;
}

function toOptions({ flags, words }: PruneCommand): PruneOptions {
  const { keepLast, olderThanMs } = flags;
  if ((keepLast === undefined) === !flags.delete) {
    throw new UsageError("prune needs --keep-last N or --delete, and not both.");
  }
  const filter = toFilter(flags);
  if (words.length > 0 && Object.keys(filter).length > 0) {
    throw new UsageError("prune takes threads or a filter, not both.");
  }
  return {
    ...filter,
    ...(words.length > 0 ? { threadIds: [...new Set(words)] } : {}),
    ...(keepLast === undefined ? { delete: true as const } : { keepLast }),
    ...(olderThanMs === undefined ? {} : { olderThanMs }),
  };
}

/** Runs a prune and adds up what it tells of. */
async function prune({ threads }: PruneCommand, options: PruneOptions, isListed: boolean) {
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
