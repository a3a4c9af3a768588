import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";

/** The compiled command line, as it is installed. `npm test` builds it first. */
const cli = fileURLToPath(new URL("../../dist/src/cli", import.meta.url));

/** What a finished process left. */
export interface Finished {
  code: number | null;
  signal: NodeJS.Signals | null;
  stdout: string;
  stderr: string;
}

/** `checkpointd serve` in a process of its own. */
export interface ServeProcess {
  readonly child: ChildProcess;
  readonly url: string;
  /** What it printed so far. */
  output(): { stdout: string; stderr: string };
  /** Resolves when standard output holds the text; rejects when the process ends before. */
  printed(text: string): Promise<void>;
  /** Sends the signal (SIGTERM) and waits for the end. */
  stop(signal?: NodeJS.Signals): Promise<Finished>;
  /** Resolves when the process has ended. */
  readonly finished: Promise<Finished>;
}

/** Runs a command to its end. The environment is empty but for PATH and what is given. */
export async function runCommand(
  args: readonly string[],
  env: Record<string, string> = {},
  cwd?: string,
  program?: string,
): Promise<Finished> {
  return spawnCommand(args, env, cwd, program).finished;
}

/** Starts `checkpointd serve` on a free port and waits until it listens (not until it is ready). */
export async function startServe(
  args: readonly string[],
  env: Record<string, string> = {},
  cwd?: string,
  program?: string,
): Promise<ServeProcess> {
  const started = spawnCommand(["serve", "--port", "0", ...args], env, cwd, program);
  await started.printed("listens on");
  const url = /listens on (\S+)/.exec(started.output().stdout)?.[1] as string;
  return { ...started, url };
}

/** Starts a command, of this version unless another program is given, and waits for nothing. */
export function spawnCommand(
  args: readonly string[],
  env: Record<string, string> = {},
  cwd?: string,
  program = "main.js",
): Omit<ServeProcess, "url"> {
  const child = spawn(process.execPath, [path.resolve(cli, program), ...args], {
    env: { PATH: process.env.PATH ?? "", ...env },
    stdio: ["ignore", "pipe", "pipe"],
    ...(cwd === undefined ? {} : { cwd }),
  });
  let stdout = "";
  let stderr = "";
  const changed = new Set<() => void>();
  child.stdout.setEncoding("utf8").on("data", (chunk: string) => {
    stdout += chunk;
    for (const wake of changed) wake();
  });
  child.stderr.setEncoding("utf8").on("data", (chunk: string) => {
    stderr += chunk;
  });
  const finished: Promise<Finished> = once(child, "close").then(([code, signal]) => ({
    code,
    signal,
    stdout,
    stderr,
  }));
  return {
    child,
    finished,
    output: () => ({ stdout, stderr }),
    async printed(text: string) {
      const seen = new Promise<void>((resolve) => {
        const look = () => {
          if (stdout.includes(text)) resolve();
        };
        changed.add(look);
        look();
      });
      await Promise.race([
        seen,
        finished.then((end) => {
          if (!stdout.includes(text)) {
            throw new Error(
              `the process ended (${end.code}) before "${text}":\n${stdout}${stderr}`,
            );
          }
        }),
      ]);
    },
    async stop(signal: NodeJS.Signals = "SIGTERM") {
      child.kill(signal);
      return finished;
    },
  };
}

/** Resident memory of a process in bytes (Linux). */
export function residentBytes(pid: number): number {
  const kilobytes = /^VmRSS:\s+(\d+) kB$/m.exec(readFileSync(`/proc/${pid}/status`, "utf8"))?.[1];
  return Number(kilobytes) * 1024;
}
