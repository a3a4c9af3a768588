import { createLog } from "../log.js";
import { defaultMessageBytes } from "../protocol/wire.js";
import type { Limits } from "../server/limits.js";
import { type Server, type ServerOptions, startServer } from "../server/server.js";

/** Starts a server in this process on a free port and does not wait for its database. */
export function startUnreadyServer(
  databaseUrl: string,
  options: Partial<ServerOptions> = {},
  limits: Partial<Limits> = {},
): Promise<Server> {
  const all: ServerOptions = {
    databaseUrl,
    schema: "public",
    poolSize: 4,
    queueLimit: 5000,
    queueTimeoutMs: 10_000,
    prepare: true,
    host: "127.0.0.1",
    port: 0,
    migrate: true,
    maxMessageSize: defaultMessageBytes,
    compression: false,
    callTimeoutMs: 60_000,
    slowCallMs: 1000,
    sessionAgeMs: 600_000,
    drainTimeoutMs: 5_000,
    retention: [],
    retentionIntervalMs: 3_600_000,
    corsOrigins: [],
    ui: "auto",
    allowedHosts: [],
    authFile: undefined,
    auditLog: undefined,
    metricsPort: undefined,
    metricsHost: "127.0.0.1",
    metricsThreads: 0,
    traceLimit: 1_000_000,
    traceThreads: true,
    log: createLog("silent"),
    ...options,
  };
  return startServer(all, limits);
}

/** Starts one on a database that is there, and waits until it is ready. The caller drains it. */
export async function startTestServer(
  databaseUrl: string,
  options: Partial<ServerOptions> = {},
  limits: Partial<Limits> = {},
): Promise<Server> {
  const server = await startUnreadyServer(databaseUrl, options, limits);
  await server.ready;
  return server;
}
