/** `checkpointd threads watch`. */
import { setTimeout as sleep } from "node:timers/promises";
import { Code, ConnectError } from "@connectrpc/connect";
import type { ListThreadsOptions, Thread, Threads } from "../client/threads.js";
import { define } from "../settings/flags.js";
import { duration, integer } from "../settings/kinds.js";
import { hint, print, printJson } from "./print.js";
import { hasScreen, openScreen, type Screen } from "./screen.js";
import type { ThreadsCommand } from "./threads_command.js";
import { filterFlags, json, toFilter } from "./threads_flags.js";
import { toJson, toRow } from "./threads_look.js";
import { type Watched, watchPicture } from "./watch_picture.js";

export const watchFlags = {
  ...filterFlags,
  most: define({
    flag: "most",
    kind: integer(1, 1_000),
    fallback: "20",
    help: "how many of the latest threads are watched",
  }),
  intervalMs: define({
    flag: "interval",
    kind: duration,
    fallback: "2s",
    help: "how long to rest between two looks",
  }),
  json,
};

/** While nothing changes the pauses grow to so many intervals. */
const mostIntervals = 5;
/** Looked at for what waits for somebody, the latest: as the page does. */
const examinedForWaiting = 2_000;

/**
 * Looks again and again until it is interrupted. On a terminal the picture is drawn anew, those that wait
 * for somebody on top; else, and with --json, each thread is told when it is new or has changed. It goes
 * on when a server that was away is back.
 */
export async function runWatch(command: ThreadsCommand<typeof watchFlags>): Promise<number> {
  const watched: Watched = { threads: undefined, trouble: undefined };
  const isDrawn = hasScreen() && !command.flags.json;
  const screen = isDrawn ? openScreen((size) => watchPicture(watched, size)) : undefined;
  // Ages and leases go on between two looks.
  const timer = screen && setInterval(screen.draw, 1_000);
  try {
    return await lookForEver(command, watched, screen);
  } finally {
    clearInterval(timer);
    // Before what is wrong is said, which would go with the picture.
    screen?.close();
  }
}

async function lookForEver(
  command: ThreadsCommand<typeof watchFlags>,
  watched: Watched,
  screen: Screen | undefined,
): Promise<never> {
  const { most, intervalMs, json: asJson } = command.flags;
  const options: ListThreadsOptions = { ...toFilter(command.flags), limit: most };
  let before = new Map<string, string>();
  let pause = intervalMs;
  for (;;) {
    try {
      const found = await readWatched(command.threads, options);
      if (watched.trouble && !screen) hint("The server is back.");
      const now = new Map(found.map((thread) => [thread.threadId, stateOf(thread)]));
      const changed = found.filter(({ threadId }) => before.get(threadId) !== now.get(threadId));
      watched.threads = found;
      watched.trouble = undefined;
      for (const thread of screen ? [] : changed.reverse()) {
        if (asJson) printJson(toJson(thread));
        else print(toRow(thread, false).join("  "));
      }
      const isSame = changed.length === 0 && now.size === before.size;
      pause = isSame ? Math.min(pause * 1.5, intervalMs * mostIntervals) : intervalMs;
      before = now;
    } catch (error) {
      if (!isPassing(error)) throw error;
      const trouble = "The server does not answer; it is asked again.";
      if (!watched.trouble && !screen) hint(trouble);
      watched.trouble = trouble;
    }
    screen?.draw();
    await sleep(pause);
  }
}

const isPassing = (error: unknown) =>
  error instanceof ConnectError &&
  [Code.Unavailable, Code.DeadlineExceeded, Code.ResourceExhausted].includes(error.code);

/** Those that wait for somebody, then the others, each the latest first. */
async function readWatched(threads: Threads, options: ListThreadsOptions): Promise<Thread[]> {
  const read = async (more: ListThreadsOptions) => {
    const found: Thread[] = [];
    const asked = { ...options, ...more, withReasons: true };
    for await (const thread of threads.list(asked)) found.push(thread);
    return found;
  };
  const onTop =
    options.status === undefined
      ? read({ status: ["failed", "interrupted"], examineLimit: examinedForWaiting })
      : [];
  const [waiting, latest] = await Promise.all([onTop, read({})]);
  const all = new Map([...waiting, ...latest].map((thread) => [thread.threadId, thread]));
  const waits = ({ status }: Thread) => status === "failed" || status === "interrupted";
  const inOrder = [...all.values()];
  return [...inOrder.filter(waits), ...inOrder.filter((thread) => !waits(thread))].slice(
    0,
    options.limit,
  );
}

/** What changes when there is something to tell: a lease that is renewed is the same. */
function stateOf(thread: Thread): string {
  return JSON.stringify({ ...toJson(thread), claim: thread.claim?.owner });
}
