// First, see there.
import "./base64.js";
import { CheckpointService } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { ThreadService } from "../../gen/checkpointd/v1/thread_service_pb.js";
import type { Log } from "../log.js";
import { defaultMessageBytes, retryAfterHeader } from "../protocol/wire.js";
import type { RetentionRule } from "../settings/retention_rules.js";
import { type DbOptions, openDb } from "../store/db.js";
import { createCalls } from "./call.js";
import { createCallLog, logLeftOut } from "./call_log.js";
import { shuttingDown } from "./connect_error.js";
import type { NodeHandler } from "./handler.js";
import { createHealth, ServingStatus } from "./health.js";
import { startListener } from "./http.js";
import { Intake } from "./intake.js";
import { defaultLimits, type Limits } from "./limits.js";
import { createOperations } from "./operation_handlers.js";
import { startReadiness } from "./readiness.js";
import { type Retention, startRetention } from "./retention.js";
import { createRpc } from "./rpc.js";
import { createStreams } from "./stream_handlers.js";

/** What a server is started with. Durations in milliseconds, sizes in bytes. */
export interface ServerOptions extends DbOptions {
  host: string;
  /** Of the role that migrates; the same as serves unless given. */
  migrationUrl?: string;
  /** 0 takes a free port. */
  port: number;
  /**
   * Whether to bring the tables up to date before becoming ready; a promise when somebody else
   * does, which resolves when it is done.
   */
  migrate: boolean | Promise<void>;
  /** The largest request accepted. */
  maxMessageSize: number;
  /** Whether answers of 1 KiB and more are compressed for clients that accept it. */
  compression: boolean;
  /** The limit of a unary call whose client sets no deadline. */
  callTimeoutMs: number;
  /** A call whose client waited so long has a line in the log; 0: none. */
  slowCallMs: number;
  /** After which a session's client is asked to open another, so that balancers can move it. */
  sessionAgeMs: number;
  /** How long running calls may go on once the server drains. */
  drainTimeoutMs: number;
  /** What to remove in the background; empty: nothing. */
  retention: readonly RetentionRule[];
  retentionIntervalMs: number;
  /** Origins whose pages may call from a browser. */
  corsOrigins: readonly string[];
  /** Names it answers to besides those of loopback; see createWebGuard. */
  allowedHosts: readonly string[];
  log: Log;
}

/** A server that listens. */
export interface Server {
  /** Where it listens: `http://127.0.0.1:8080`. */
  readonly url: string;
  readonly port: number;
  /** Resolves when the database was reached and its tables are there, for the first time. */
  readonly ready: Promise<void>;
  /**
   * Health turns NOT_SERVING, no connection is accepted any more, running calls finish within
   * the drain timeout, the pool is closed. Resolves when all is done; idempotent.
   */
  drain(): Promise<void>;
}

/**
 * Starts listening, whether or not the database can be reached: the server becomes ready by
 * itself once it can.
 *
 * @param ownLimits in place of the default ones
 * @throws when the address cannot be listened on
 */
export async function startServer(
  options: ServerOptions,
  ownLimits: Partial<Limits> = {},
): Promise<Server> {
  const { log, maxMessageSize } = options;
  const limits: Limits = {
    ...defaultLimits,
    requestBytes: Math.max(defaultLimits.requestBytes, 4 * maxMessageSize),
    unreadBytes: defaultLimits.unreadBytes + maxMessageSize - defaultMessageBytes,
    ageMs: options.sessionAgeMs,
    ...ownLimits,
  };
  const db = openDb(options, logLeftOut(log));
  const health = createHealth(CheckpointService.typeName, ThreadService.typeName);
  const readiness = startReadiness(db, options, log, (ready) =>
    health.setAll(ready ? ServingStatus.SERVING : ServingStatus.NOT_SERVING),
  );
  const rpc = createRpc({
    ...options,
    limits,
    operations: createOperations(db, maxMessageSize, log),
    streams: createStreams(db, limits.listedBytes),
    calls: createCalls([createCallLog(log, options.slowCallMs)], new Intake(limits)),
    health: health.service,
    isReady: readiness.wasReady,
    fallback: (request, response) => answerProbe(request, response, readiness.isReady()),
  });

  let listener: Awaited<ReturnType<typeof startListener>>;
  try {
    listener = await startListener({
      host: options.host,
      port: options.port,
      handler: rpc.handler,
      upgrade: rpc.upgrade,
      corsOrigins: options.corsOrigins,
      allowedHosts: options.allowedHosts,
      limits,
      log,
    });
  } catch (error) {
    readiness.stop();
    await db.close(0);
    throw error;
  }

  let retention: Retention | undefined;
  if (options.retention.length > 0) {
    void readiness.firstTime.then(() => {
      if (draining) return;
      retention = startRetention(options, options.retention, options.retentionIntervalMs, log);
    });
  }

  let draining: Promise<void> | undefined;
  const drain = async () => {
    log.info({ connections: listener.connections() }, "draining");
    readiness.stop();
    health.close();
    rpc.sayGoodbye();
    // Calls that would be cut at the bound are told a little before, so that their clients
    // hear UNAVAILABLE and go elsewhere.
    const { drainTimeoutMs } = options;
    const notice = setTimeout(
      () => rpc.abort(shuttingDown()),
      drainTimeoutMs - Math.min(1000, drainTimeoutMs / 4),
    );
    await Promise.all([listener.drain(drainTimeoutMs), retention?.stop()]);
    clearTimeout(notice);
    await db.close(500);
    log.info("drained");
  };
  return {
    url: `http://${options.host.includes(":") ? `[${options.host}]` : options.host}:${listener.port}`,
    port: listener.port,
    ready: readiness.firstTime,
    drain: () => (draining ??= drain()),
  };
}

/** Plain HTTP for probes: /healthz says the process lives, /readyz that the database does too. */
function answerProbe(
  request: Parameters<NodeHandler>[0],
  response: Parameters<NodeHandler>[1],
  ready: boolean,
): void {
  const path = request.url?.split("?", 1)[0];
  const known = path === "/healthz" || path === "/readyz";
  const get = request.method === "GET" || request.method === "HEAD";
  const [status, body] = !known
    ? [404, "not found\n"]
    : !get
      ? [405, "method not allowed\n"]
      : path === "/healthz" || ready
        ? [200, "ok\n"]
        : [503, "not ready\n"];
  response.writeHead(status as number, {
    "content-type": "text/plain; charset=utf-8",
    ...(status === 405 ? { allow: "GET, HEAD" } : {}),
    ...(status === 503 ? { [retryAfterHeader]: "1" } : {}),
  });
  if (request.method === "HEAD") response.end();
  else response.end(body);
}
