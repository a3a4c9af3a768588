import { ConnectError } from "@connectrpc/connect";
import { Calls } from "../client/calls.js";
import type { TokenSource } from "../client/credential.js";
import { type OpenService, openService } from "../client/service.js";
import { toReasons } from "../client/thread_reasons.js";
import { Threads } from "../client/threads.js";
import { UrlTransport } from "../client/transport.js";
import {
  type Flags,
  readFlags,
  UsageError,
  unknownCommand,
  type Values,
} from "../settings/flags.js";
import {
  copyFlags,
  pruneFlags,
  releaseFlags,
  removeFlags,
  runCopy,
  runPrune,
  runRelease,
  runRemove,
} from "./threads_change.js";
import { diffFlags, runDiff } from "./threads_diff.js";
import { connectionFlags } from "./threads_flags.js";
import { historyFlags, runHistory } from "./threads_history.js";
import { listFlags, runList, runShow, showFlags } from "./threads_look.js";
import { chooseToken } from "./threads_token.js";
import { exportFlags, importFlags, runExport, runImport } from "./threads_transfer.js";
import { runWatch, watchFlags } from "./threads_watch.js";
import { toReadable } from "./value_text.js";

/** What a subcommand is run with. */
export interface ThreadsCommand<F extends Flags> {
  calls: Calls;
  threads: Threads;
  /** The words beside the flags. */
  words: string[];
  /** The values of its flags. */
  flags: Values<F>;
}

interface Subcommand {
  run(command: ThreadsCommand<Flags>): Promise<number>;
  flags: Flags;
  /** The words it takes, for --help. */
  words: string;
  /** How many words: least and most. */
  count: [number, number];
  meaning: string;
}

/** A function that reads a flag which the subcommand does not have does not compile. */
function define<F extends Flags>(
  subcommand: Omit<Subcommand, "run" | "flags"> & {
    flags: F;
    run: (command: ThreadsCommand<F>) => Promise<number>;
  },
): Subcommand {
  return subcommand;
}

/** The subcommands by name. */
export const subcommands: Record<string, Subcommand> = {
  ls: define({
    run: runList,
    flags: listFlags,
    words: "",
    count: [0, 0],
    meaning: "list threads and how they stand, the latest first",
  }),
  show: define({
    run: runShow,
    flags: showFlags,
    words: "THREAD",
    count: [1, 1],
    meaning: "one thread, its values, pending writes and namespaces",
  }),
  history: define({
    run: runHistory,
    flags: historyFlags,
    words: "THREAD",
    count: [1, 1],
    meaning: "a thread's checkpoints, the latest first: when, which nodes ran, what changed",
  }),
  watch: define({
    run: runWatch,
    flags: watchFlags,
    words: "",
    count: [0, 0],
    meaning: "a live table of the latest threads; in a pipe those that change, as they do",
  }),
  diff: define({
    run: runDiff,
    flags: diffFlags,
    words: "THREAD [OTHER]",
    count: [1, 2],
    meaning: "how the state of two threads differs, or of a checkpoint and its parent",
  }),
  cp: define({
    run: runCopy,
    flags: copyFlags,
    words: "SOURCE TARGET",
    count: [2, 2],
    meaning: "copy a thread, with all of its history, under another name",
  }),
  rm: define({
    run: runRemove,
    flags: removeFlags,
    words: "THREAD...",
    count: [1, 1000],
    meaning: "delete threads",
  }),
  release: define({
    run: runRelease,
    flags: releaseFlags,
    words: "THREAD",
    count: [1, 1],
    meaning: "end the lease that a worker holds on a thread, whoever it is",
  }),
  prune: define({
    run: runPrune,
    flags: pruneFlags,
    words: "[THREAD...]",
    count: [0, 1000],
    meaning: "remove old checkpoints (--keep-last N) or whole threads (--delete)",
  }),
  export: define({
    run: runExport,
    flags: exportFlags,
    words: "THREAD",
    count: [1, 1],
    meaning: "write a thread to a file or to standard output, as JSON lines",
  }),
  import: define({
    run: runImport,
    flags: importFlags,
    words: "[FILE]",
    count: [0, 1],
    meaning: "restore an exported thread, from a file or standard input",
  }),
};

/** `checkpointd threads …`: looks at and changes threads over the public RPCs of any server. */
export async function runThreads(args: string[]): Promise<number> {
  const [name = "", ...rest] = args;
  const known = Object.keys(subcommands);
  if (name === "") throw new UsageError(`threads needs one of ${known.join(", ")}.`);
  const subcommand = Object.hasOwn(subcommands, name) ? subcommands[name] : undefined;
  if (!subcommand) return unknownCommand(name, known, "threads ");
  const [least, most] = subcommand.count;
  const usage = ["Usage: checkpointd threads", name, subcommand.words, "[flags]"];
  const { values, words } = readFlags(
    { ...connectionFlags, ...subcommand.flags },
    rest,
    process.env,
    { least, most, usage: usage.filter((word) => word !== "").join(" ") },
  );
  // `checkpointd threads ls | head`: nobody reads on. Ended as the signal SIGPIPE ends others.
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code === "EPIPE") process.exit(141);
    throw error;
  });
  const { url, headers, tokenFile, tlsCa } = values;
  const token = chooseToken(tokenFile, rest, process.env);
  let transport: UrlTransport;
  try {
    transport = new UrlTransport(url, tlsCa === undefined ? {} : { tls: { ca: tlsCa } });
  } catch (error) {
    throw new UsageError(`--url: ${(error as Error).message}`);
  }
  // A person waits: two seconds of trying tell whether a server is there.
  const calls = new Calls(openAs(transport, headers, token), {
    timeoutMs: 60_000,
    retry: { attempts: 4 },
  });
  try {
    return await subcommand.run({
      calls,
      threads: new Threads(calls, ({ reasons }) => toReasons(reasons, toReadable)),
      words,
      flags: values,
    });
  } catch (error) {
    if (error instanceof ConnectError) throw new Error(`${url}: ${error.message}`);
    throw error;
  } finally {
    await calls.end();
    transport.close();
  }
}

function openAs(
  transport: UrlTransport,
  headers: Record<string, string>,
  token: TokenSource | undefined,
): OpenService {
  try {
    return openService(transport, {
      headers,
      ...(token === undefined ? {} : { token }),
      valueCacheBytes: 0,
    });
  } catch (error) {
    throw new UsageError(`--header, --token-file: ${(error as Error).message}`);
  }
}
