import { parseArgs } from "node:util";
import { ConnectError } from "@connectrpc/connect";
import { Calls } from "../client/calls.js";
import { openService } from "../client/service.js";
import { Threads } from "../client/threads.js";
import { UrlTransport } from "../client/transport.js";
import { UsageError } from "../config.js";
import { runCopy, runPrune, runRemove } from "./threads_change.js";
import { runHistory, runList, runShow } from "./threads_look.js";
import { runExport, runImport } from "./threads_transfer.js";

/** What a subcommand is run with. */
export interface ThreadsCommand {
  calls: Calls;
  threads: Threads;
  /** The words after the flags. */
  words: string[];
  /** The value of a flag, if it was given. */
  flag(name: string): string | undefined;
  /** Whether a flag without a value was given. */
  has(name: string): boolean;
}

interface Subcommand {
  run(command: ThreadsCommand): Promise<number>;
  /** The words it takes, for --help. */
  words: string;
  /** How many words: least and most. */
  count: [number, number];
  values: readonly string[];
  switches: readonly string[];
  meaning: string;
}

const filters = ["status", "prefix", "metadata", "updated-after", "updated-before"] as const;

/** The subcommands by name. */
export const subcommands: Record<string, Subcommand> = {
  ls: {
    run: runList,
    words: "",
    count: [0, 0],
    values: [...filters, "limit"],
    switches: ["by-id", "counts", "json"],
    meaning: "list threads and how they stand, the latest first",
  },
  show: {
    run: runShow,
    words: "THREAD",
    count: [1, 1],
    values: ["checkpoint", "ns"],
    switches: ["json"],
    meaning: "one thread, its values and pending writes",
  },
  history: {
    run: runHistory,
    words: "THREAD",
    count: [1, 1],
    values: ["ns", "limit"],
    switches: ["json"],
    meaning: "a thread's checkpoints, the latest first",
  },
  cp: {
    run: runCopy,
    words: "SOURCE TARGET",
    count: [2, 2],
    values: [],
    switches: ["json"],
    meaning: "copy a thread, with all of its history, under another name",
  },
  rm: {
    run: runRemove,
    words: "THREAD...",
    count: [1, 1000],
    values: [],
    switches: ["yes"],
    meaning: "delete threads",
  },
  prune: {
    run: runPrune,
    words: "[THREAD...]",
    count: [0, 1000],
    values: [...filters, "keep-last", "older-than"],
    switches: ["delete", "dry-run", "yes", "json"],
    meaning: "remove old checkpoints (--keep-last N) or whole threads (--delete)",
  },
  export: {
    run: runExport,
    words: "THREAD",
    count: [1, 1],
    values: ["out"],
    switches: [],
    meaning: "write a thread to a file or to standard output, as JSON lines",
  },
  import: {
    run: runImport,
    words: "[FILE]",
    count: [0, 1],
    values: ["as"],
    switches: [],
    meaning: "restore an exported thread, from a file or standard input",
  },
};

/** `checkpointd threads …`: looks at and changes threads over the public RPCs of any server. */
export async function runThreads(args: string[]): Promise<number> {
  const [name = "", ...rest] = args;
  const subcommand = subcommands[name];
  if (!subcommand) {
    const known = Object.keys(subcommands).join(", ");
    throw new UsageError(
      name === ""
        ? `threads needs one of ${known}.`
        : `Unknown command "threads ${name}". Known are ${known}.`,
    );
  }
  const { values, positionals } = parse(rest, subcommand);
  const [least, most] = subcommand.count;
  if (positionals.length < least || positionals.length > most) {
    throw new UsageError(`Usage: checkpointd threads ${name} ${subcommand.words} [flags]`);
  }
  // `checkpointd threads ls | head`: nobody reads on. Ended as the signal SIGPIPE ends others.
  process.stdout.on("error", (error: NodeJS.ErrnoException) => {
    if (error.code === "EPIPE") process.exit(141);
    throw error;
  });
  const url = values.url ?? (process.env.CHECKPOINTD_URL || "http://127.0.0.1:8080");
  const headers = Object.fromEntries(((values.header as string[]) ?? []).map(toHeader));
  let transport: UrlTransport;
  try {
    transport = new UrlTransport(url as string, {});
  } catch (error) {
    throw new UsageError(`--url: ${(error as Error).message}`);
  }
  // A person waits: two seconds of trying tell whether a server is there.
  const calls = new Calls(openService(transport, { headers, valueCacheBytes: 0 }), {
    timeoutMs: 60_000,
    retry: { attempts: 4 },
  });
  try {
    return await subcommand.run({
      calls,
      threads: new Threads(calls),
      words: positionals,
      flag: (flag) => values[flag] as string | undefined,
      has: (flag) => values[flag] === true,
    });
  } catch (error) {
    if (error instanceof ConnectError) throw new Error(`${url}: ${error.message}`);
    throw error;
  } finally {
    await calls.end();
    transport.close();
  }
}

function parse(args: string[], { values, switches }: Subcommand) {
  const text = { type: "string" } as const;
  const options = {
    url: text,
    header: { type: "string", multiple: true } as const,
    ...Object.fromEntries(values.map((name) => [name, text])),
    ...Object.fromEntries(switches.map((name) => [name, { type: "boolean" } as const])),
  };
  try {
    const parsed = parseArgs({ args, options, allowPositionals: true, strict: true });
    return {
      values: parsed.values as Record<string, string | string[] | boolean | undefined>,
      positionals: parsed.positionals,
    };
  } catch (error) {
    // Node's text up to its first full stop says what is wrong with which flag.
    throw new UsageError(`${(error as Error).message.split(". ")[0]}.`);
  }
}

function toHeader(header: string): [string, string] {
  const [, name, value] = /^\s*([\w-]+)\s*:\s*(.*)$/.exec(header) ?? [];
  if (name === undefined || value === undefined) {
    throw new UsageError(`--header must be "name: value".`);
  }
  return [name, value];
}
