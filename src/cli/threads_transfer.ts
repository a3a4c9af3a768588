/** `checkpointd threads export` and `import`: the files of client/thread_file.ts. */
import { createReadStream, createWriteStream } from "node:fs";
import { createInterface } from "node:readline";
import type { Readable, Writable } from "node:stream";
import { finished } from "node:stream/promises";
import { clean } from "../clean.js";
import { readList } from "../client/read_list.js";
import { threadFromLines, threadToLines } from "../client/thread_file.js";
import { define } from "../settings/flags.js";
import { text } from "../settings/kinds.js";
import { print, startProgress, toCount, toSize } from "./print.js";
import type { ThreadsCommand } from "./threads_command.js";

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
  const first = await tuples.next();
  if (first.done) throw new Error(`no thread ${JSON.stringify(threadId)}`);
  let checkpoints = 0;
  const all = async function* () {
    let next: Awaited<ReturnType<typeof tuples.next>> = first;
    for (; !next.done; next = await tuples.next()) {
      yield next.value;
      checkpoints++;
    }
  };
  const out: Writable = file === undefined ? process.stdout : createWriteStream(file);
  // A pipe that closed (`| head`) must end the export, not the process with a stack.
  const broken = new Promise<never>((_, reject) => out.once("error", reject));
  broken.catch(() => {});
  const progress = startProgress();
  let bytes = 0;
  try {
    for await (const json of threadToLines(threadId, all())) {
      // The same JSON, also where it is read on a terminal.
      const line = clean(json);
      bytes += line.length;
      if (!out.write(`${line}\n`)) {
        await Promise.race([new Promise((resolve) => out.once("drain", resolve)), broken]);
      }
      progress.say(`${toCount(checkpoints, "checkpoint")}, ${toSize(bytes)}`);
    }
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

/** Restores a thread, whole or not at all. Refuses a name under which something is stored. */
export async function runImport(command: ThreadsCommand<typeof importFlags>): Promise<number> {
  const { calls, threads, words } = command;
  const [file] = words;
  const input: Readable =
    file === undefined || file === "-" ? process.stdin : createReadStream(file);
  const lines = createInterface({ input, crlfDelay: Number.POSITIVE_INFINITY });
  const failed = new Promise<never>((_, reject) => input.once("error", reject));
  failed.catch(() => {});
  const read = async function* () {
    const each = lines[Symbol.asyncIterator]();
    for (;;) {
      const { done, value } = await Promise.race([each.next(), failed]);
      if (done) return;
      yield value;
    }
  };
  const progress = startProgress();
  try {
    const { threadId, checkpoints } = await threadFromLines(
      read(),
      command.flags.as,
      {
        async check(name) {
          if (await threads.get(name)) {
            throw new Error(`thread ${JSON.stringify(name)} exists; --as gives another name`);
          }
        },
        put: (put) => calls.call((service, context) => service.put(put, context)),
        putWrites: (put) => calls.call((service, context) => service.putWrites(put, context)),
        copyThread: (copy) => threads.copy(copy.sourceThreadId, copy.targetThreadId),
        deleteThread: (it) => calls.call((service, context) => service.deleteThread(it, context)),
      },
      (stored) => progress.say(toCount(stored, "checkpoint")),
    );
    progress.end();
    print(`Imported ${toCount(checkpoints, "checkpoint")} as ${JSON.stringify(threadId)}.`);
  } finally {
    progress.end();
    lines.close();
  }
  return 0;
}
