/** The processes of a run: agents, service and proxy, each ended by its own pid. */
import { type ChildProcess, fork, spawn } from "node:child_process";
import { once } from "node:events";
import { createInterface } from "node:readline";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import type { Contender } from "./contenders.js";
import type { Answer, Command } from "./load_agent.js";

/** How long one command to an agent, or the start of a server, may take, in ms. */
const commandMs = 180_000;
const startMs = 60_000;

const fileOf = (path: string) => fileURLToPath(new URL(path, import.meta.url));
const env = { PATH: process.env.PATH ?? "" };
const running = new Set<ChildProcess>();
let closed = false;

function keep<C extends ChildProcess>(child: C): C {
  running.add(child);
  // Work that was interrupted may come here once more on its way out.
  if (closed) void stopProcess(child.pid!);
  return child;
}

/** An agent process that obeys one command at a time. */
export interface Agent {
  pid: number;
  /** Rejects when the command fails or the process ends. */
  tell<T>(command: Command): Promise<T>;
}

/** Starts an agent process. `stopProcess` ends it. */
export function startAgent(): Agent {
  const child = keep(fork(fileOf("./load_agent.js"), { env, serialization: "advanced" }));
  return {
    pid: child.pid!,
    async tell<T>(command: Command): Promise<T> {
      const [answer] = (await within(commandMs, `an agent's ${command.do}`, (signal) => {
        const answered = once(child, "message", { signal });
        child.send(command);
        return Promise.race([answered, ended(child, "an agent", signal)]);
      })) as [Answer];
      if ("error" in answer) throw new Error(answer.error);
      return answer.result as T;
    },
  };
}

/** A service or proxy that listens. */
export interface Server {
  pid: number;
  url: string;
  /** The last 4000 characters of its log. */
  said(): string;
}

/**
 * Starts what stands between a contender's agents and its database, if anything does, and
 * waits until it can be used. `flags` are for the service. `stopProcess` ends it.
 */
export async function startServer(
  contender: Contender,
  databaseUrl: string,
  flags: readonly string[] = [],
): Promise<Server | undefined> {
  switch (contender) {
    case "direct":
    case "memory":
      return undefined;
    case "connect":
    case "grpc":
    case "http2":
    case "unary":
    case "encrypted":
      return listen("../src/cli/main.js", serveArgs(databaseUrl, flags), "checkpointd is ready");
    case "http-json":
      return listen("./http_proxy.js", [databaseUrl], "listens on");
  }
}

const serveArgs = (databaseUrl: string, flags: readonly string[]) => [
  ...["serve", "--database-url", databaseUrl, "--port", "0"],
  ...flags,
];

const listen = (file: string, args: string[], readyLine: string) =>
  startListening(process.execPath, [fileOf(file), ...args], readyLine);

/** Starts a program that says where it listens, and waits for the line that says it is ready. */
export async function startListening(
  program: string,
  args: string[],
  readyLine: string,
): Promise<Server> {
  const file = args[0]!;
  const child = keep(spawn(program, args, { env, stdio: ["ignore", "pipe", "pipe", "ipc"] }));
  let said = "";
  child.stderr!.setEncoding("utf8").on("data", (chunk: string) => {
    said = (said + chunk).slice(-4000);
  });
  const lines = createInterface({ input: child.stdout! });
  return within(startMs, `the start of ${file}`, (signal) => {
    const ready = new Promise<Server>((resolve) => {
      let url: string | undefined;
      lines.on("line", (line) => {
        url ??= /listens on (\S+)/.exec(line)?.[1];
        if (url && line.includes(readyLine)) resolve({ pid: child.pid!, url, said: () => said });
      });
    });
    const gone = ended(child, file, signal).catch((error: Error) => {
      throw new Error(`${error.message}: ${said}`);
    });
    return Promise.race([ready, gone]);
  });
}

/** Runs a program to its end, which must be a good one; `onLine` hears what it prints. */
export async function runProgram(
  program: string,
  args: string[],
  onLine: (line: string) => void,
): Promise<void> {
  const child = keep(spawn(program, args, { env, stdio: ["ignore", "pipe", "inherit"] }));
  createInterface({ input: child.stdout! }).on("line", onLine);
  const [code, signal] = await once(child, "close");
  running.delete(child);
  if (code !== 0) throw new Error(`${args[0]} ended with ${code ?? signal}`);
}

async function within<T>(
  ms: number,
  what: string,
  run: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  const over = new AbortController();
  const late = sleep(ms, undefined, { signal: over.signal }).then(() => {
    throw new Error(`${what} took longer than ${ms / 1000} s`);
  });
  const result = run(over.signal);
  try {
    return await Promise.race([result, late]);
  } finally {
    over.abort();
    // Whatever lost the race rejects now, unheard.
    for (const loser of [result, late]) loser.catch(() => {});
  }
}

async function ended(child: ChildProcess, what: string, signal: AbortSignal): Promise<never> {
  const over = child.exitCode ?? child.signalCode ?? (await once(child, "exit", { signal }))[0];
  throw new Error(`${what} ended by itself (${over})`);
}

/** Ends a process that was started here; after three seconds without mercy. */
export async function stopProcess(pid: number): Promise<void> {
  const child = [...running].find((each) => each.pid === pid);
  if (!child) return;
  running.delete(child);
  if (child.exitCode !== null || child.signalCode !== null) return;
  const exited = once(child, "exit");
  child.kill("SIGTERM");
  const timer = setTimeout(() => child.kill("SIGKILL"), 3000);
  await exited;
  clearTimeout(timer);
}

/** Ends all that were started here and still run. Nothing can be started after it. */
export async function stopAll(): Promise<void> {
  closed = true;
  await Promise.all([...running].map((child) => stopProcess(child.pid!)));
}
