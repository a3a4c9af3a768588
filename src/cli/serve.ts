import { setTimeout as sleep } from "node:timers/promises";
import { setFlagsFromString } from "node:v8";
import { readConfig, UsageError } from "../config.js";
import { createLog, type Log } from "../log.js";
import { type Server, startServer } from "../server/main.js";
import { type Embedded, startEmbedded } from "../store/embedded.js";
import { isWorker, stopSignal as stop } from "./stop_signal.js";
import { logUnhandled } from "./unhandled.js";
import { aborted, runWorker, startWorkers, type Workers } from "./workers.js";

/** The settings `checkpointd serve` takes. */
export const serveSettings = [
  "database-url",
  "schema",
  "data-dir",
  "host",
  "port",
  "workers",
  "pool-size",
  "queue-limit",
  "queue-timeout",
  "prepare",
  "migrate",
  "max-message-size",
  "compression",
  "call-timeout",
  "slow-call",
  "session-age",
  "drain-timeout",
  "retention",
  "retention-interval",
  "cors-origins",
  "log-level",
] as const;

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
  const config = readConfig(serveSettings, args, process.env);
  const { workers } = config;
  if (workers > config["pool-size"]) {
    throw new UsageError(
      `--workers (${workers}) must not be greater than --pool-size (${config["pool-size"]}): each worker needs a connection.`,
    );
  }
  const log = createLog(config["log-level"]);
  logUnhandled(log);
  const drainMs = config["drain-timeout"];
  let embedded: Embedded | undefined;
  let server: (Server & Partial<Workers>) | undefined;
  try {
    stop.throwIfAborted();
    if (config["database-url"] === undefined) {
      embedded = await startEmbedded({
        dataDir: config["data-dir"],
        onProgress: (line) => process.stdout.write(`${line}\n`),
        signal: stop,
      });
    }
    const options = {
      databaseUrl: config["database-url"] ?? (embedded?.databaseUrl as string),
      schema: config.schema,
      poolSize: config["pool-size"],
      queueLimit: config["queue-limit"],
      queueTimeoutMs: config["queue-timeout"],
      prepare: config.prepare,
      host: config.host,
      port: config.port,
      migrate: config.migrate,
      maxMessageSize: config["max-message-size"],
      compression: config.compression,
      callTimeoutMs: config["call-timeout"],
      slowCallMs: config["slow-call"],
      sessionAgeMs: config["session-age"],
      drainTimeoutMs: drainMs,
      retention: config.retention ?? [],
      retentionIntervalMs: config["retention-interval"],
      corsOrigins: config["cors-origins"] ?? [],
      log,
    };
    server =
      workers === 1 ? await startServer(options) : await startWorkers(workers, options, stop);
    process.stdout.write(`checkpointd listens on ${server.url}\n`);
    void server.ready.then(() => process.stdout.write("checkpointd is ready\n"));
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
    if (server) await drainWithin(server, drainMs + drainGraceMs, log);
    await embedded?.stop();
  }
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
