import { readConfig } from "../config.js";
import { createLog } from "../log.js";
import { type Server, startServer } from "../server/main.js";
import { startEmbedded } from "../store/embedded.js";

/** The settings `checkpointd serve` takes. */
export const serveSettings = [
  "database-url",
  "schema",
  "data-dir",
  "host",
  "port",
  "pool-size",
  "queue-limit",
  "queue-timeout",
  "prepare",
  "migrate",
  "max-message-size",
  "call-timeout",
  "session-age",
  "drain-timeout",
  "retention",
  "retention-interval",
  "cors-origins",
  "log-level",
] as const;

/**
 * Serves until SIGTERM or SIGINT, then drains and exits 0. Another signal half a second later or
 * more exits at once with 1. Without a database URL an embedded Postgres is started first and stopped last.
 */
export async function runServe(args: string[]): Promise<number> {
  const config = readConfig(serveSettings, args, process.env);
  const log = createLog(config["log-level"]);
  const stop = onStopSignal();

  const embedded = config["database-url"]
    ? undefined
    : await startEmbedded({
        dataDir: config["data-dir"],
        onProgress: (line) => process.stdout.write(`${line}\n`),
      });
  let server: Server | undefined;
  try {
    server = await startServer({
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
      callTimeoutMs: config["call-timeout"],
      sessionAgeMs: config["session-age"],
      drainTimeoutMs: config["drain-timeout"],
      retention: config.retention ?? [],
      retentionIntervalMs: config["retention-interval"],
      corsOrigins: config["cors-origins"] ?? [],
      log,
    });
    process.stdout.write(`checkpointd listens on ${server.url}\n`);
    void server.ready.then(() => process.stdout.write("checkpointd is ready\n"));
    const code = await Promise.race([
      stop.then(() => 0),
      ...(embedded ? [embedded.exited.then(() => 1)] : []),
    ]);
    if (code === 1) log.error("the embedded Postgres ended by itself");
    return code;
  } finally {
    await server?.drain();
    await embedded?.stop();
  }
}

/** Resolves at the first SIGTERM or SIGINT; a later one ends the process. */
function onStopSignal(): Promise<void> {
  return new Promise((resolve) => {
    let first: number | undefined;
    for (const signal of ["SIGTERM", "SIGINT"] as const) {
      process.on(signal, () => {
        const now = performance.now();
        first ??= now;
        // Under `npm start` one Ctrl-C arrives twice: from the terminal and passed on by npm.
        if (now - first > 500) process.exit(1);
        resolve();
      });
    }
  });
}
