/** The processes of the demo: the service and the workers, each ended by its own pid. */

import { type ChildProcess, fork, spawn } from "node:child_process";
import { once } from "node:events";
import { closeSync, existsSync, openSync, readFileSync } from "node:fs";
import { createServer } from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { ConnectSaver } from "../../src/index.js";
import type { WorkerResult } from "./worker.js";

const children = new Set<ChildProcess>();

/**
 * The address of the service that runs on this machine, as `npm start` does, if one does and takes
 * calls from whoever is here. Says so if something is there that does not.
 */
export async function findService(
  url = "http://127.0.0.1:8080",
  patienceMs = 30_000,
): Promise<string | undefined> {
  const end = Date.now() + patienceMs;
  const ask = () => fetch(`${url}/readyz`, { signal: AbortSignal.timeout(5_000) }).catch(() => {});
  let answer = await ask();
  // One that has just been started makes its tables first.
  while (answer?.status === 503 && Date.now() < end) {
    await sleep(200);
    answer = await ask();
  }
  if (answer === undefined) return undefined;
  const saver = ConnectSaver.fromUrl(url, { timeoutMs: 5_000 });
  try {
    await saver.threads.get("demo/");
    return url;
  } catch (error) {
    console.log(`What listens at ${url} is not used, as it answers: ${(error as Error).message}`);
    console.log("The demo starts a service of its own.\n");
    return undefined;
  } finally {
    await saver.end();
  }
}

/**
 * Starts `checkpointd serve` with an embedded Postgres in `folder` on a free port of 127.0.0.1 and
 * returns its URL once it is ready. Throws when it ends before that, or is not ready in 60 s.
 */
export async function startService(folder: string): Promise<string> {
  const port = await findFreePort();
  const main = fileURLToPath(new URL("../../src/cli/main.js", import.meta.url));
  // The demo brings its own database: nothing of the caller's configuration may reach it.
  const env = Object.fromEntries(
    Object.entries(process.env).filter(([name]) => !/^(CHECKPOINTD_|DATABASE_URL$)/.test(name)),
  );
  const where = ["--host", "127.0.0.1", "--port", `${port}`, "--data-dir", `${folder}/data`];
  const log = openSync(logFile(folder), "a");
  const service = spawn(process.execPath, [main, "serve", ...where], {
    cwd: folder,
    env,
    stdio: ["ignore", log, log],
    // Out of the terminal's reach: a Ctrl-C is for the demo, which then ends the service in order.
    detached: true,
  });
  children.add(service);
  closeSync(log);

  const url = `http://127.0.0.1:${port}`;
  for (let tries = 0; tries < 600; tries += 1) {
    if (hasEnded(service)) break;
    const answer = await fetch(`${url}/readyz`).catch(() => undefined);
    if (answer?.status === 200) return url;
    await sleep(100);
  }
  const state = hasEnded(service) ? `ended with ${service.exitCode}` : "is not ready after 60 s";
  throw new Error(`checkpointd serve ${state}`);
}

/** The last lines of the log of the service in `folder`; empty when none was started there. */
export function readServiceLog(folder: string): string {
  if (!existsSync(logFile(folder))) return "";
  return readFileSync(logFile(folder), "utf8").trimEnd().split("\n").slice(-20).join("\n");
}

function logFile(folder: string): string {
  return `${folder}/service.log`;
}

/** A worker that runs: its pid, and how it ends. */
export interface RunningWorker {
  pid: number;
  kill(): void;
  /** Never rejects; `result` is there if the worker sent one before it ended. */
  ended: Promise<{
    code: number | null;
    signal: NodeJS.Signals | null;
    result?: WorkerResult;
    stderr: string;
  }>;
}

/** Starts a worker process with the arguments that `worker.ts` lists. */
export function startWorker(args: string[]): RunningWorker {
  const child = fork(fileURLToPath(new URL("./worker.js", import.meta.url)), args, {
    // Structured clone between the processes: Map, Set, Date and Uint8Array arrive as they were.
    serialization: "advanced",
    silent: true,
  });
  children.add(child);
  let result: WorkerResult | undefined;
  let stderr = "";
  child.on("message", (message) => {
    result = message as WorkerResult;
  });
  child.stderr?.on("data", (chunk) => {
    stderr += chunk;
  });
  return {
    pid: child.pid ?? -1,
    kill: () => void child.kill("SIGKILL"),
    ended: once(child, "close").then(([code, signal]) => ({
      code,
      signal,
      ...(result && { result }),
      stderr,
    })),
  };
}

/** Ends whatever still runs: SIGTERM, and SIGKILL for what has not ended after 45 s. */
export async function endProcesses(): Promise<void> {
  await Promise.all(
    [...children]
      .filter((child) => !hasEnded(child))
      .map(async (child) => {
        const ended = once(child, "exit");
        child.kill("SIGTERM");
        const patience = new AbortController();
        // The service needs up to 30 s to stop its Postgres, which a SIGKILL would leave behind.
        const late = sleep(45_000, "late", patience).catch(() => "ended");
        if ((await Promise.race([ended, late])) === "late") child.kill("SIGKILL");
        patience.abort();
      }),
  );
}

function hasEnded(child: ChildProcess): boolean {
  return child.exitCode !== null || child.signalCode !== null || child.pid === undefined;
}

async function findFreePort(): Promise<number> {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const address = server.address();
  server.close();
  await once(server, "close");
  if (address === null || typeof address === "string") throw new Error("no port is free");
  return address.port;
}
