/** `checkpointd threads watch`. */
import { setTimeout as sleep } from "node:timers/promises";
import { Code, ConnectError } from "@connectrpc/connect";
import type { ListThreadsOptions, Thread } from "../client/threads.js";
import { define } from "../settings/flags.js";
import { duration, integer } from "../settings/kinds.js";
import { clearScreen, hint, paint, print, printJson, printTable } from "./print.js";
import type { ThreadsCommand } from "./threads_command.js";
import { filterFlags, json, toFilter } from "./threads_flags.js";
import { columnsOf, toJson, toRow } from "./threads_look.js";

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

/**
 * Looks again and again until it is interrupted. On a terminal the table is drawn anew, those that wait
 * for somebody on top; else, and with --json, each thread is told when it is new or has changed. It goes
 * on when a server that was away is back.
 */
export async function runWatch(command: ThreadsCommand<typeof watchFlags>): Promise<number> {
  const { most, intervalMs, json: asJson } = command.flags;
  const isDrawn = process.stdout.isTTY && !asJson;
  const options: ListThreadsOptions = { ...toFilter(command.flags), limit: most };
  let before = new Map<string, string>();
  let pause = intervalMs;
  let isAway = false;
  for (;;) {
    try {
      const found: Thread[] = [];
      for await (const thread of command.threads.list(options)) found.push(thread);
      if (isAway && !isDrawn) hint("The server is back.");
      isAway = false;
      const now = new Map(found.map((thread) => [thread.threadId, JSON.stringify(toJson(thread))]));
      const changed = found.filter(({ threadId }) => before.get(threadId) !== now.get(threadId));
      if (isDrawn) await draw(found);
      else if (asJson) for (const thread of changed.reverse()) printJson(toJson(thread));
      else for (const thread of changed.reverse()) print(toRow(thread, false).join("  "));
      const isSame = changed.length === 0 && now.size === before.size;
      pause = isSame ? Math.min(pause * 1.5, intervalMs * mostIntervals) : intervalMs;
      before = now;
    } catch (error) {
      if (!isPassing(error)) throw error;
      if (!isAway) hint("The server does not answer; it is asked again.");
      isAway = true;
    }
    await sleep(pause);
  }
}

const isPassing = (error: unknown) =>
  error instanceof ConnectError &&
  [Code.Unavailable, Code.DeadlineExceeded, Code.ResourceExhausted].includes(error.code);

async function draw(found: readonly Thread[]): Promise<void> {
  const rank = ({ status }: Thread) => ["failed", "interrupted"].indexOf(status) + 1 || 3;
  const sorted = [...found].sort((a, b) => rank(a) - rank(b));
  clearScreen();
  print(paint("dim", `${new Date().toLocaleTimeString()}, until Ctrl-C`));
  const rows = async function* () {
    for (const thread of sorted) yield toRow(thread, false);
  };
  if ((await printTable(columnsOf(false), rows())) === 0) print("No threads.");
}
