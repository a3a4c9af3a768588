// First, see there.
import "../server/base64.js";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { setFlagsFromString } from "node:v8";
import { createLog, type Log } from "../log.js";
import { type Server, startServer } from "../server/server.js";
import { readFlags, UsageError } from "../settings/flags.js";
import { type Embedded, startEmbedded } from "../store/embedded.js";
import { chooseDatabase } from "./database_url.js";
import { print, printText } from "./print.js";
import { serverOptions, settings } from "./settings.js";
import { isWorker, stopSignal as stop } from "./stop_signal.js";
import { connectionFlags } from "./threads_flags.js";
import { logUnhandled } from "./unhandled.js";
import { aborted, runWorker, startWorkers, type Workers } from "./workers.js";

/**
 * Serves until SIGTERM or SIGINT, then drains and exits 0, also when it had not started yet:
 * within the drain timeout and some seconds, and what the embedded Postgres takes. Another signal
 * half a second later or more exits at once with 1. Without a database URL an embedded Postgres is
 * started first and stopped last. With more than one worker this process only keeps them.
 */
export async function runServe(args: string[]): Promise<number> {
  // V8 collects when a small part of the heap's size is new, and ours is small but for the
  // Buffers: with few calls at a time it collected everything after each 200 of them, which was
  // half of what this process did (130 us of CPU a putWrites instead of 240).
  setFlagsFromString("--heap-growing-percent=300");
  if (isWorker) return runWorker();
  const { values } = readFlags(settings, args, process.env);
  // These serve takes itself, the others are the server's: see serverOptions.
  const { databaseUrl: _, databaseUrlFile: _1, dataDir, workers, logLevel, ...given } = values;
  const { databaseUrl, warnings } = chooseDatabase(values, args);
  const { poolSize, drainTimeoutMs } = given;
  if (workers > poolSize) {
    throw new UsageError(
      `--workers (${workers}) must not be greater than --pool-size (${poolSize}): each worker needs a connection.`,
    );
  }
  const log = createLog(logLevel);
  logUnhandled(log);
  for (const warning of warnings) log.warn(warning);
  let embedded: Embedded | undefined;
  let server: (Server & Partial<Workers>) | undefined;
  try {
    stop.throwIfAborted();
    if (databaseUrl === undefined) {
      embedded = await startEmbedded({
        dataDir,
        onProgress: (line) => print(line),
        signal: stop,
      });
      print(`its database: ${psqlLine(embedded.databaseUrl, dataDir)}`);
    }
    // What agents ask for is done by a role that can do no more than that.
    const roles = await embedded?.makeRoles();
    const options = serverOptions(given, {
      databaseUrl: databaseUrl ?? (roles?.servingUrl as string),
      ...(roles ? { migrationUrl: roles.migrationUrl } : {}),
      log,
    });
    server =
      workers === 1 ? await startServer(options) : await startWorkers(workers, options, stop);
    print(`checkpointd listens on ${server.url}`);
    const { url } = server;
    const look = `npx checkpointd-server threads ls${url === defaultUrl ? "" : ` --url ${url}`}`;
    void server.ready.then(() => {
      printText(
        `checkpointd is ready\nnext: ConnectSaver.fromUrl("${url}") in an agent; then: ${look}`,
      );
    });
    const end = await Promise.race([
      aborted(stop).then(() => "stop"),
      ...(embedded ? [embedded.exited.then(() => "embedded")] : []),
      ...(server.failed ? [server.failed.then(() => "workers")] : []),
    ]);
    if (end === "embedded") log.error("the embedded Postgres ended by itself");
    return end === "stop" ? 0 : 1;
  } catch (error) {
    // Told to stop before it had started.
    if (stop.aborted && error === stop.reason) return 0;
    throw error;
  } finally {
    if (server) await drainWithin(server, drainTimeoutMs + drainGraceMs, log);
    await embedded?.stop();
  }
}

/** Where `checkpointd threads` looks unless it is told otherwise. */
const defaultUrl = connectionFlags.url.fallback;

/** The command that opens the embedded database, to be typed where `serve` was. */
function psqlLine(databaseUrl: string, dataDir: string): string {
  const { hostname, port, username, pathname } = new URL(databaseUrl);
  const psql = `psql -h ${hostname} -p ${port} -U ${username} ${pathname.slice(1)}`;
  const file = path.join(dataDir, "password");
  if (process.platform === "win32") return `${psql} (the password is in ${file})`;
  // The password itself is not printed: what a service prints is kept and read by others.
  const quoted = /^[\w./-]+$/.test(file) ? file : `'${file.replaceAll("'", "'\\''")}'`;
  return `PGPASSWORD=$(cat ${quoted}) ${psql}`;
}

/** How much longer than its timeout a drain may take; more than a worker gets before it is killed. */
const drainGraceMs = 8_000;

/** Whatever a drain still waits for, a frozen Postgres for one, it keeps nobody from ending. */
async function drainWithin(server: Server, ms: number, log: Log): Promise<void> {
  const late = new AbortController();
  const bound = sleep(ms, "late", { signal: late.signal }).catch(() => undefined);
  if ((await Promise.race([server.drain(), bound])) === "late") {
    log.error({ ms }, "the drain did not end in time: ending without it");
  }
  late.abort();
}
