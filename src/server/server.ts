// First, see there.
import "./base64.js";
import path from "node:path";
import { CheckpointService } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { ThreadService } from "../../gen/checkpointd/v1/thread_service_pb.js";
import { type Authenticator, startAuthenticator } from "../auth/authenticator.js";
import { createKeyAuthenticator } from "../auth/key_authenticator.js";
import type { Log } from "../log.js";
import { type Samples, toText } from "../metrics/samples.js";
import { defaultMessageBytes, retryAfterHeader } from "../protocol/wire.js";
import type { RetentionRule } from "../settings/retention_rules.js";
import { type Db, type DbOptions, openDb } from "../store/db.js";
import { createAccess, type Store } from "./access.js";
import { type Audit, createAudit, createAuditLog } from "./audit.js";
import { createCalls, type FinishedCall } from "./call.js";
import { createCallLog, logLeftOut } from "./call_log.js";
import { shuttingDown } from "./connect_error.js";
import type { Gate } from "./gate.js";
import type { NodeHandler } from "./handler.js";
import { createHealth, ServingStatus } from "./health.js";
import { startListener } from "./http.js";
import { isServed, readInspector, type UiMode } from "./inspector.js";
import { Intake } from "./intake.js";
import { defaultLimits, type Limits } from "./limits.js";
import { startServerMetrics } from "./metrics.js";
import {
  keepPage,
  type MetricsListener,
  metricsPath,
  pathOf,
  startMetricsPort,
  tellMetricsThroughGate,
} from "./metrics_page.js";
import { createOperations } from "./operation_handlers.js";
import { startReadiness } from "./readiness.js";
import { createRetentionTally, type Retention, startRetention } from "./retention.js";
import { createRpc } from "./rpc.js";
import { createStreams } from "./stream_handlers.js";
import { createTenants } from "./tenants.js";
import { startThreadSample, type ThreadSample } from "./thread_sample.js";
import type { TlsFiles } from "./tls.js";
import { readTokenFile } from "./token_file.js";
import { startTraces } from "./traces.js";
import { Usage } from "./usage.js";

/** What a server is started with. Durations in milliseconds, sizes in bytes. */
export interface ServerOptions extends DbOptions {
  host: string;
  /** Of the role that migrates; the same as serves unless given. */
  migrationUrl?: string;
  /** 0 takes a free port; undefined: none. */
  port: number | undefined;
  /** A socket of Unix to listen on besides. */
  socketPath?: string | undefined;
  /** Has the port speak TLS. */
  tls?: TlsFiles | undefined;
  /** Whose key every caller has to send, which may do everything then. */
  tokenFile?: string | undefined;
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
  /** The file that tells who may do what; undefined: everybody may do everything. */
  authFile: string | undefined;
  /** The file that the audit log is added to; undefined: it stands in the log. */
  auditLog: string | undefined;
  /** Whether the page of `ui/` is served at `/`; see inspector.ts. */
  ui: UiMode;
  /** Names it answers to besides those of loopback; see createWebGuard. */
  allowedHosts: readonly string[];
  /**
   * Where metrics are told: on a port of their own (0 takes a free one), or on the server's ("main");
   * undefined: nothing is measured.
   */
  metricsPort: number | "main" | undefined;
  /** The address of a port of their own, which asks for no credential. */
  metricsHost: string;
  /** How many of the latest threads are looked at once a minute; 0: none. */
  metricsThreads: number;
  /** How many calls are traced in a second at the most, where OpenTelemetry's variables ask for it. */
  traceLimit: number;
  /** Whether spans have the names of threads. */
  traceThreads: boolean;
  log: Log;
}

/** A server that listens. */
export interface Server {
  /** Where it listens: `http://127.0.0.1:8080`, or `unix:/path` where there is no port. */
  readonly url: string;
  /** 0 where there is none. */
  readonly port: number;
  /** Where metrics are told; undefined where they are not. */
  readonly metricsUrl: string | undefined;
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
 * @param primary of a worker: what gathers the metrics of all, and tells them
 * @throws when the address cannot be listened on
 */
export async function startServer(
  options: ServerOptions,
  ownLimits: Partial<Limits> = {},
  primary?: MetricsPrimary,
): Promise<Server> {
  const { log, maxMessageSize } = options;
  const limits: Limits = {
    ...defaultLimits,
    requestBytes: Math.max(defaultLimits.requestBytes, 4 * maxMessageSize),
    unreadBytes: defaultLimits.unreadBytes + maxMessageSize - defaultMessageBytes,
    ageMs: options.sessionAgeMs,
    ...ownLimits,
  };
  const asks = options.authFile !== undefined || options.tokenFile !== undefined;
  const { auditLog } = options;
  const audit = createAudit(log, asks && auditLog ? createAuditLog(auditLog) : undefined);
  const authenticator = await authenticatorOf(options, audit);
  const gate: Gate | undefined = authenticator && {
    authenticator,
    usage: new Usage(),
    refused: new Map(),
    audit,
  };
  const db = openDb(options, logLeftOut(log));
  const traces = await startTraces(options, () => db.measures().history.host);
  const metrics = options.metricsPort === undefined ? undefined : startServerMetrics();
  const listed = { bytes: 0 };
  const inspector = isServed(options.ui, options.host, gate !== undefined)
    ? await readInspector(options.ui)
    : undefined;
  const createStore = (db: Db): Store => {
    const operations = createOperations(db, maxMessageSize, log);
    return {
      operations: metrics?.countLeases(operations) ?? operations,
      streams: createStreams(db, limits.listedBytes, listed),
    };
  };
  const health = createHealth(CheckpointService.typeName, ThreadService.typeName);
  let retireClients = () => {};
  const readiness = startReadiness(
    db,
    options,
    log,
    (ready) => health.setAll(ready ? ServingStatus.SERVING : ServingStatus.NOT_SERVING),
    () => retireClients(),
  );
  const migrateTenant = async (schema: string) => {
    await readiness.migrated;
    const { migrate } = await import("../store/migrate.js");
    const databaseUrl = options.migrationUrl ?? options.databaseUrl;
    await migrate({ databaseUrl, schema, onProgress: (line) => log.info({ schema }, line) });
  };
  let draining: Promise<void> | undefined;
  const retentions: Retention[] = [];
  const tally = createRetentionTally();
  const beginRetention = (schema: string) => {
    if (options.retention.length === 0 || draining) return;
    const { retention, retentionIntervalMs } = options;
    const ofSchema = { ...options, schema };
    retentions.push(startRetention(ofSchema, retention, retentionIntervalMs, log, tally));
  };
  const tenants =
    gate &&
    createTenants({
      db,
      createStore,
      authenticator: gate.authenticator,
      migrate: options.migrate === false ? undefined : migrateTenant,
      onReady: beginRetention,
      log,
    });
  const untraced = gate && tenants ? createAccess(tenants.storeOf, gate.audit) : createStore(db);
  const { operations, streams } = traces?.calls.tellThreads(untraced) ?? untraced;
  const observers = [
    createCallLog(log, options.slowCallMs),
    ...(gate ? [(call: FinishedCall) => gate.usage.end(call)] : []),
    ...(metrics ? [metrics.observe] : []),
  ];
  const calls = createCalls(observers, new Intake(limits), traces?.calls);
  let page = () => Promise.resolve("");
  const rpc = createRpc({
    ...options,
    limits,
    operations,
    streams,
    gate,
    calls,
    health: health.service,
    isReady: readiness.wasReady,
    fallback: (request, response) => {
      if (options.metricsPort === "main" && pathOf(request) === metricsPath) {
        tellMetricsThroughGate(gate, request, response, page, log);
      } else if (!inspector?.(request, response)) {
        answerProbe(request, response, readiness.isReady());
      }
    },
  });

  const giveUp = async () => {
    readiness.stop();
    tenants?.stop();
    authenticator?.stop();
    metrics?.stop();
    await db.close(0);
    await traces?.stop();
  };
  let listener: Awaited<ReturnType<typeof startListener>>;
  try {
    listener = await startListener({
      host: options.host,
      port: options.port,
      socketPath: options.socketPath,
      tls: options.tls,
      handler: rpc.handler,
      upgrade: rpc.upgrade,
      corsOrigins: options.corsOrigins,
      allowedHosts: options.allowedHosts,
      limits,
      log,
    });
  } catch (error) {
    await giveUp();
    throw error;
  }
  // A client that keeps its connection would be refused for as long as it does, whatever a balancer
  // knows of the other replicas.
  retireClients = () => {
    rpc.retire();
    listener.retire();
  };
  let sample: ThreadSample | undefined;
  const measured = () =>
    metrics?.samples({
      db,
      options,
      limits,
      calls,
      rpc,
      listener,
      readiness,
      isDraining: () => draining !== undefined,
      gate,
      tenants,
      listed,
      retention: options.retention.length > 0 ? tally : undefined,
      sample,
      spans: traces?.tally,
    }) ?? {};
  page = keepPage(() => primary?.page() ?? toText(measured()), limits.metricsPageMs);
  let ofMetrics: MetricsListener | undefined;
  try {
    primary?.begin(measured);
    if (!primary) ofMetrics = await startMetricsPort(options, page);
  } catch (error) {
    await listener.drain(0);
    await giveUp();
    throw error;
  }

  void readiness.firstTime.then(() => {
    beginRetention(options.schema);
    tenants?.prepareAll();
    const { metricsThreads } = options;
    if (metrics && metricsThreads > 0 && !draining) {
      sample = startThreadSample(db, metricsThreads, log);
    }
  });

  const drain = async () => {
    log.info({ connections: listener.connections() }, "draining");
    readiness.stop();
    tenants?.stop();
    health.close();
    sample?.stop();
    rpc.sayGoodbye();
    // Calls that would be cut at the bound are told a little before, so that their clients
    // hear UNAVAILABLE and go elsewhere.
    const { drainTimeoutMs } = options;
    const notice = setTimeout(
      () => rpc.abort(shuttingDown()),
      drainTimeoutMs - Math.min(1000, drainTimeoutMs / 4),
    );
    await Promise.all([
      listener.drain(drainTimeoutMs),
      ...retentions.map((retention) => retention.stop()),
    ]);
    clearTimeout(notice);
    authenticator?.stop();
    audit.stop();
    await db.close(500);
    await Promise.all([ofMetrics?.close(), traces?.stop()]);
    metrics?.stop();
    log.info("drained");
  };
  const url = toUrl(options, listener.port);
  return {
    url,
    port: listener.port,
    metricsUrl: options.metricsPort === "main" ? `${url}${metricsPath}` : ofMetrics?.url,
    ready: readiness.firstTime,
    drain: () => (draining ??= drain()),
  };
}

/** Who gathers the metrics of several workers, as one of them sees it. */
export interface MetricsPrimary {
  /** Is given what tells this worker's, for whenever they are asked for. */
  begin(measured: () => Samples): void;
  /** The page of all workers. */
  page(): Promise<string>;
}

/** undefined: everybody may do everything. */
async function authenticatorOf(
  { authFile, tokenFile, schema, log }: ServerOptions,
  audit: Audit,
): Promise<Authenticator | undefined> {
  if (authFile !== undefined) {
    const authenticator = await startAuthenticator({ file: authFile, log, onLoad: audit.loaded });
    for (const [tenant, { schema: ofTenant }] of authenticator.tenants) {
      if (ofTenant !== schema) continue;
      authenticator.stop();
      throw new Error(
        `${authFile}: tenants.${tenant}.schema: "${schema}" is the server's own schema, for principals without a tenant; give the tenant another one, or the server another --schema`,
      );
    }
    return authenticator;
  }
  return tokenFile === undefined ? undefined : createKeyAuthenticator(readTokenFile(tokenFile));
}

function toUrl({ host, port, socketPath, tls }: ServerOptions, bound: number): string {
  if (port === undefined) return `unix:${path.resolve(socketPath ?? "")}`;
  return `${tls ? "https" : "http"}://${host.includes(":") ? `[${host}]` : host}:${bound}`;
}

/** Plain HTTP for probes: /healthz says the process lives, /readyz that the database does too. */
function answerProbe(
  request: Parameters<NodeHandler>[0],
  response: Parameters<NodeHandler>[1],
  ready: boolean,
): void {
  const asked = pathOf(request);
  const known = asked === "/healthz" || asked === "/readyz";
  const get = request.method === "GET" || request.method === "HEAD";
  const [status, body] = !known
    ? [404, "not found\n"]
    : !get
      ? [405, "method not allowed\n"]
      : asked === "/healthz" || ready
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
