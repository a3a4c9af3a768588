/** A thread as a file, and back: what `checkpointd threads export` writes and `import` reads. */
import { type CheckpointTuple, threadFromLines, threadToLines } from "checkpointd/client";
import { checkpoints, threads } from "../service.js";

/** Reads a whole thread, until the signal aborts. `onProgress` is told how many checkpoints there are until now. */
export async function exportThread(
  threadId: string,
  signal: AbortSignal,
  onProgress: (checkpoints: number) => void,
): Promise<Blob> {
  let count = 0;
  const tuples = async function* (): AsyncGenerator<CheckpointTuple> {
    for await (const { tuple } of checkpoints.list({ threadId, omitUnchanged: true }, { signal })) {
      if (!tuple) continue;
      yield tuple;
      onProgress(++count);
    }
  };
  const lines: Blob[] = [];
  // A blob each: the browser keeps them where they take no memory of the page's.
  for await (const line of threadToLines(threadId, tuples())) lines.push(new Blob([line, "\n"]));
  return new Blob(lines, { type: "application/jsonl" });
}

/** Restores a thread, whole or, also where the signal aborts, not at all. An empty `as` is the name it had. Returns the name it has. */
export async function importThread(
  file: Blob,
  as: string,
  signal: AbortSignal,
  onProgress: (checkpoints: number) => void,
): Promise<string> {
  const store = {
    async check(threadId: string) {
      const { thread } = await threads.getThread({ threadId });
      if (thread) throw new Error(`There is a thread ${threadId} already: give another name.`);
    },
    put: checkpoints.put,
    putWrites: checkpoints.putWrites,
    copyThread: threads.copyThread,
    deleteThread: checkpoints.deleteThread,
  };
  const { threadId } = await threadFromLines(
    linesOf(file, signal),
    as || undefined,
    store,
    onProgress,
  );
  return threadId;
}

/** Ends between lines: a call given up while it stores could be done after what it stored was removed. */
async function* linesOf(file: Blob, signal: AbortSignal): AsyncGenerator<string> {
  const reader = file.stream().pipeThrough(new TextDecoderStream()).getReader();
  let parts: string[] = [];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const [first = "", ...rest] = value.split("\n");
      parts.push(first);
      for (const next of rest) {
        signal.throwIfAborted();
        yield parts.join("");
        parts = [next];
      }
    }
  } finally {
    await reader.cancel();
  }
  const last = parts.join("");
  signal.throwIfAborted();
  if (last !== "") yield last;
}
