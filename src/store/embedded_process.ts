/** The processes of the embedded Postgres: initdb and the server. */
import { type ChildProcess, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { chown, mkdir, open, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { EmbeddedOptions } from "./embedded.js";
import { POSTGRES_ENV, type RunAs } from "./embedded_binaries.js";

/** How long a fast shutdown may take before the immediate one, and then the kill, in ms. */
const FAST_MS = 20_000;
const IMMEDIATE_MS = 5_000;
/** The log is begun anew at a start that finds it larger than this, in bytes. */
const LOG_LIMIT = 16 * 1024 * 1024;

/**
 * The folder as Postgres is told it. On Linux its programs are started inside the folder and
 * told "here": the OS user `postgres` then needs no right to enter the folders above, which
 * under root's home it does not have.
 */
export function asPgdata(folder: string): string {
  return process.platform === "linux" ? "/proc/self/cwd" : folder;
}

/**
 * Makes a new cluster and its password in the data folder, all of it or nothing.
 *
 * @throws what initdb said, or the signal's reason once initdb has ended
 */
export async function initialise(
  dataDir: string,
  initdb: string,
  runAs: RunAs,
  signal: AbortSignal | undefined,
): Promise<void> {
  // Built aside and renamed at the end: a start killed half-way leaves nothing that looks like
  // a database.
  const draft = path.join(dataDir, "postgres.new");
  const cluster = path.join(draft, "cluster");
  const passwordFile = path.join(draft, "password");
  await rm(draft, { recursive: true, force: true });
  await mkdir(draft, { mode: 0o700 });
  await mkdir(cluster, { mode: 0o700 });
  await writeFile(passwordFile, `${randomBytes(24).toString("hex")}\n`, { mode: 0o600 });
  if (runAs.uid !== undefined && runAs.gid !== undefined) {
    for (const file of [passwordFile, cluster, draft]) await chown(file, runAs.uid, runAs.gid);
  }
  const args = [
    `--pgdata=${asPgdata(cluster)}`,
    "--username=postgres",
    "--pwfile=../password",
    "--auth=scram-sha-256",
    "--encoding=UTF8",
    // The same order of text on every machine, whatever its C library.
    "--locale=C",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--no-instructions",
  ];
  try {
    const child = spawn(initdb, args, {
      ...runAs,
      cwd: cluster,
      env: POSTGRES_ENV,
      // Of its own, so that a Ctrl-C is ours to pass on.
      detached: true,
      stdio: ["ignore", "ignore", "pipe"],
    });
    const kill = (name: NodeJS.Signals) => {
      try {
        process.kill(-(child.pid as number), name);
      } catch {
        // It never ran, or has ended.
      }
    };
    let timer: NodeJS.Timeout | undefined;
    const stop = () => {
      kill("SIGTERM");
      timer = setTimeout(kill, IMMEDIATE_MS, "SIGKILL");
    };
    signal?.addEventListener("abort", stop);
    process.once("exit", stop);
    if (signal?.aborted) stop();
    let said = "";
    child.stderr.setEncoding("utf8").on("data", (chunk: string) => {
      said += chunk;
    });
    // Waits for what initdb started too, which has the pipe from it.
    const end = await new Promise<unknown>((resolve) => {
      child.once("error", resolve);
      child.once("close", (code, by) => resolve(code ?? by));
    });
    clearTimeout(timer);
    process.off("exit", stop);
    signal?.removeEventListener("abort", stop);
    signal?.throwIfAborted();
    if (end !== 0) {
      throw new Error(
        `cannot initialise Postgres in ${dataDir}: ${said.trim() || `initdb: ${end}`}`,
      );
    }
  } catch (error) {
    await rm(draft, { recursive: true, force: true });
    throw error;
  }
  await rename(passwordFile, path.join(dataDir, "password"));
  await rename(cluster, path.join(dataDir, "postgres"));
  await rm(draft, { recursive: true, force: true });
}

/** How a process ended. */
export type Exit = { code: number | null; signal: NodeJS.Signals | null };

/**
 * Starts the server on a free port and resolves when it accepts connections. It ends with this
 * process, or by {@link shutDown}.
 *
 * @throws the end of its log when it does not start, or the signal's reason once it has ended
 */
export async function launch(
  dataDir: string,
  postgres: string,
  runAs: RunAs,
  { settings = {}, onProgress, signal }: EmbeddedOptions,
): Promise<{ server: ChildProcess; exited: Promise<Exit>; port: number }> {
  const logFile = path.join(dataDir, "postgres.log");
  const size = await stat(logFile).then(
    (found) => found.size,
    () => 0,
  );
  for (let attempt = 1; ; attempt += 1) {
    const port = await findFreePort();
    const log = await open(logFile, size > LOG_LIMIT && attempt === 1 ? "w" : "a", 0o600);
    const logStart = (await log.stat()).size;
    const flags = Object.entries({
      listen_addresses: "127.0.0.1",
      port: `${port}`,
      unix_socket_directories: "",
      log_timezone: "UTC",
      timezone: "UTC",
      // Details and statements can hold what agents store; their errors reach our own log.
      log_error_verbosity: "terse",
      log_min_error_statement: "panic",
      ...settings,
    }).flatMap(([name, value]) => ["-c", `${name}=${value}`]);
    const clusterDir = path.join(dataDir, "postgres");
    const server = spawn(postgres, ["-D", asPgdata(clusterDir), ...flags], {
      ...runAs,
      cwd: clusterDir,
      env: POSTGRES_ENV,
      detached: true,
      stdio: ["ignore", log.fd, log.fd],
    });
    let gone: string | undefined;
    const exited = new Promise<Exit>((resolve) => {
      server.once("error", (error) => {
        gone = error.message;
        resolve({ code: null, signal: null });
      });
      server.once("exit", (code, signal) => {
        gone ??= signal ?? `exit code ${code}`;
        resolve({ code, signal });
      });
    });
    const onExit = () => void server.kill("SIGINT");
    process.once("exit", onExit);
    void exited.then(() => process.off("exit", onExit));
    await log.close();
    const pidFile = path.join(clusterDir, "postmaster.pid");
    let ready = false;
    for (let waited = 0; !ready && gone === undefined; waited += 25) {
      if (signal?.aborted) {
        await shutDown(server, exited);
        throw signal.reason;
      }
      // Replaying the log after a kill takes as long as it takes; only say that it does.
      if (waited > 0 && waited % 10_000 === 0) onProgress("Postgres is still recovering…");
      await sleep(25);
      const lines = (await readFile(pidFile, "utf8").catch(() => "")).split("\n");
      ready = lines[0] === `${server.pid}` && lines[7]?.trim() === "ready";
    }
    if (ready) {
      // Nothing but the server's own sockets should keep this process alive.
      server.unref();
      return { server, exited, port };
    }
    const said = (await readFile(logFile)).subarray(logStart).toString().trim();
    // Someone took the port between our look and Postgres' bind.
    if (said.includes("could not create any TCP/IP sockets") && attempt < 5) continue;
    const tail = said.split("\n").slice(-5).join("\n");
    throw new Error(`Postgres in ${dataDir} did not start (${gone}):\n${tail || "(no output)"}`);
  }
}

/** Ends the server, ever less gently, and resolves when it has ended. */
export async function shutDown(server: ChildProcess, ended: Promise<Exit>): Promise<void> {
  server.ref();
  for (const [signal, ms] of [
    ["SIGINT", FAST_MS],
    ["SIGQUIT", IMMEDIATE_MS],
    ["SIGKILL", IMMEDIATE_MS],
  ] as const) {
    server.kill(signal);
    const timer = new AbortController();
    const inTime = await Promise.race([
      ended.then(() => true),
      sleep(ms, false, { signal: timer.signal }).catch(() => false),
    ]);
    timer.abort();
    if (inTime) return;
  }
}

function findFreePort(): Promise<number> {
  return new Promise((resolve, reject) => {
    const probe = createServer();
    probe.once("error", reject);
    probe.listen(0, "127.0.0.1", () => {
      const address = probe.address();
      probe.close(() => resolve(typeof address === "object" && address ? address.port : 0));
    });
  });
}
