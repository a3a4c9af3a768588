// First, see there.
import "../server/base64.js";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { setFlagsFromString } from "node:v8";
import { createLog, type Log } from "../log.js";
import { isServed } from "../server/inspector.js";
import { removeDeadSocket } from "../server/local_socket.js";
import { type Server, startServer } from "../server/server.js";
import { makeTokenFile } from "../server/token_file.js";
import { readFlags, UsageError } from "../settings/flags.js";
import { type Embedded, startEmbedded } from "../store/embedded.js";
import { chooseDatabase } from "./database_url.js";
import { chooseListening } from "./listening.js";
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
  const { databaseUrl: _, databaseUrlFile: _1, dataDir, workers, logLevel, ...others } = values;
  const {
    tlsCert: _2,
    tlsKey: _3,
    tlsClientCa: _4,
    behindTlsProxy: _5,
    insecure: _6,
    ...given
  } = others;
  const { databaseUrl, warnings } = chooseDatabase(values, args);
  const { tls, warnings: more } = await chooseListening(values);
  const { poolSize, drainTimeoutMs, socketPath, tokenFile } = given;
  if (workers > poolSize) {
    throw new UsageError(
      `--workers (${workers}) must not be greater than --pool-size (${poolSize}): each worker needs a connection.`,
    );
  }
  const log = createLog(logLevel);
  logUnhandled(log);
  for (const warning of [...warnings, ...more]) log.warn(warning);
  if (tokenFile !== undefined) {
    const made = makeTokenFile(tokenFile);
    print(
      `${made ? "made a key, which" : "the key that"} every caller has to send: it is in ${tokenFile}`,
    );
  }
  if (socketPath !== undefined) await removeDeadSocket(socketPath);
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
      tls,
      log,
    });
    server =
      workers === 1 ? await startServer(options) : await startWorkers(workers, options, stop);
    const { url } = server;
    const besides = given.port !== undefined && socketPath !== undefined;
    print(`checkpointd listens on ${url}${besides ? ` and unix:${path.resolve(socketPath)}` : ""}`);
    if (server.metricsUrl !== undefined) print(`its metrics: ${server.metricsUrl}`);
    if (isServed(given.ui, given.host, tokenFile !== undefined || given.authFile !== undefined)) {
      if (given.port !== undefined) print(`its page: ${url}/`);
    }
    void server.ready.then(() => printText(`checkpointd is ready\n${nextSteps(url, tokenFile)}`));
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

/** What an agent and a person need to call. */
function nextSteps(url: string, tokenFile: string | undefined): string {
  const options = tokenFile === undefined ? "" : ", { token }";
  const flags = [
    ...(url === defaultUrl ? [] : ["--url", url]),
    ...(tokenFile === undefined ? [] : ["--token-file", tokenFile]),
  ];
  // npx knows the package where it is installed, and not in a clone of the repository.
  const self = fileURLToPath(new URL("main.js", import.meta.url));
  const isInstalled = self.split(path.sep).includes("node_modules");
  const program = isInstalled ? "npx checkpointd-server" : `node ${path.relative("", self)}`;
  const look = [program, "threads ls", ...flags].join(" ");
  return `next: ConnectSaver.fromUrl("${url}"${options}) in an agent; then: ${look}`;
}

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
