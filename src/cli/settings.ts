/**
 * The settings of `checkpointd serve` and `migrate`, in one table: the flag, the variable, what the
 * value may be, its default, what it is for. A setting has the name of the option that it gives:
 * an option of ServerOptions, or one that `serve` itself takes. The table in
 * docs/operate.md is checked against this one.
 */
import { readFileSync, statSync } from "node:fs";
import type { LogLevel } from "../log.js";
import { uiModes } from "../server/inspector.js";
import type { ServerOptions } from "../server/server.js";
import { define, type Values } from "../settings/flags.js";
import {
  boolean,
  duration,
  durationOrOff,
  integer,
  type Kind,
  kind,
  oneOf,
  present,
  Refusal,
  size,
  text,
} from "../settings/kinds.js";
import { retentionRules } from "../settings/retention_rules.js";
import { eachHost } from "../store/hosts.js";
import { checkSchemaName } from "../store/schema_name.js";

/** It holds a password, so it is not repeated where it is wrong. */
const databaseUrl = kind(
  "a URL such as postgres://user:password@host:5432/database",
  (value) => {
    if (!/^postgres(ql)?:\/\//.test(value)) return undefined;
    if (!eachHost(value).every((url) => URL.canParse(url))) return undefined;
    try {
      // "%" must be followed by two digits; a password with one is written %25.
      decodeURIComponent(value);
      return value;
    } catch {
      return undefined;
    }
  },
  true,
);

/** A file that holds a database URL. */
export interface DatabaseUrlFile {
  path: string;
  url: string;
  /** Whether every user of the machine may read it. */
  isOpen: boolean;
}

const databaseUrlFile: Kind<DatabaseUrlFile> = {
  allowed: `a file whose first line is ${databaseUrl.allowed}`,
  parse(path) {
    let why: string | undefined;
    try {
      const [line = ""] = readFileSync(path, "utf8").split("\n");
      const url = databaseUrl.parse(line.trim());
      const isOpen = process.platform !== "win32" && (statSync(path).mode & 0o004) !== 0;
      return { path, url, isOpen };
    } catch (error) {
      // Of what the file holds nothing is told.
      if (!(error instanceof Refusal)) why = (error as NodeJS.ErrnoException).code;
    }
    throw new Refusal(`must be ${this.allowed}, not "${path}"${why ? ` (${why})` : ""}.`);
  },
};

const schema = kind(
  "a schema name of 1 to 63 bytes without quotes and backslashes, not pg_…",
  (value) => {
    try {
      checkSchemaName(value);
      return value;
    } catch {
      return undefined;
    }
  },
);

const origins = kind(
  "origins such as https://app.example.com separated by commas, or *",
  (value) => {
    const list = value.split(",").map((origin) => origin.trim());
    const valid = list.every(
      (origin) => origin === "*" || (URL.canParse(origin) && new URL(origin).origin === origin),
    );
    return valid ? list : undefined;
  },
);

const hosts = kind("names of hosts without ports, separated by commas", (value) => {
  const list = value.split(",").map((host) => host.trim());
  const isName = (host: string) => URL.canParse(`http://${host}`) && !/[/:@?#]/.test(host);
  return list.every(isName) ? list : undefined;
});

const anyPort = integer(0, 65535);
/** undefined: none. */
const portOrNone: Kind<number | undefined> = {
  allowed: `${anyPort.allowed}, or none`,
  parse(value) {
    if (value === "none") return undefined;
    try {
      return anyPort.parse(value);
    } catch {
      throw new Refusal(`must be ${this.allowed}, not "${value}".`);
    }
  },
};

/** undefined: none. */
const metricsPort: Kind<number | "main" | undefined> = {
  allowed: `${anyPort.allowed}, main, or none`,
  parse(value) {
    if (value === "none") return undefined;
    if (value === "main") return value;
    try {
      return anyPort.parse(value);
    } catch {
      throw new Refusal(`must be ${this.allowed}, not "${value}".`);
    }
  },
};

/** As long as every system takes it. */
const socketPath = kind("a path of 1 to 103 bytes", (value) =>
  value !== "" && Buffer.byteLength(value) <= 103 ? value : undefined,
);

/** What `checkpointd serve` can be told. */
export const settings = {
  databaseUrl: define({
    flag: "database-url",
    env: "DATABASE_URL",
    kind: databaseUrl,
    unset: undefined,
    help: "the Postgres to use; without it an embedded one is started in the data dir",
  }),
  databaseUrlFile: define({
    flag: "database-url-file",
    env: "CHECKPOINTD_DATABASE_URL_FILE",
    kind: databaseUrlFile,
    unset: undefined,
    help: "a file whose first line is the database URL, which keeps it from whoever lists processes",
  }),
  schema: define({
    flag: "schema",
    env: "CHECKPOINTD_SCHEMA",
    kind: schema,
    fallback: "public",
    help: "the schema of LangGraph's tables",
  }),
  dataDir: define({
    flag: "data-dir",
    env: "CHECKPOINTD_DATA_DIR",
    kind: text,
    fallback: ".checkpointd",
    help: "the folder of the embedded Postgres",
  }),
  host: define({
    flag: "host",
    env: "CHECKPOINTD_HOST",
    kind: text,
    fallback: "127.0.0.1",
    help: "the address to listen on",
  }),
  port: define({
    flag: "port",
    env: "CHECKPOINTD_PORT",
    kind: portOrNone,
    fallback: "8080",
    help: "the port; 0 takes a free one, none leaves it to --listen-socket",
  }),
  socketPath: define({
    flag: "listen-socket",
    env: "CHECKPOINTD_LISTEN_SOCKET",
    kind: socketPath,
    unset: undefined,
    help: "a Unix socket to listen on besides the port, which no other user of the machine may connect to",
  }),
  tlsCert: define({
    flag: "tls-cert",
    env: "CHECKPOINTD_TLS_CERT",
    kind: text,
    unset: undefined,
    help: "a file with the port's certificate and those between it and its authority; read anew when it changes",
  }),
  tlsKey: define({
    flag: "tls-key",
    env: "CHECKPOINTD_TLS_KEY",
    kind: text,
    unset: undefined,
    help: "the file with the key of --tls-cert",
  }),
  tlsClientCa: define({
    flag: "tls-client-ca",
    env: "CHECKPOINTD_TLS_CLIENT_CA",
    kind: text,
    unset: undefined,
    help: "a file with the authorities of clients' certificates, which clients are asked for then",
  }),
  tokenFile: define({
    flag: "token-file",
    env: "CHECKPOINTD_TOKEN_FILE",
    kind: text,
    unset: undefined,
    help: "a file with the key that every caller has to send; made, for its owner only, if it is not there",
  }),
  behindTlsProxy: define({
    flag: "behind-tls-proxy",
    env: "CHECKPOINTD_BEHIND_TLS_PROXY",
    kind: boolean,
    fallback: "false",
    help: "says that a proxy ends TLS in front of the server, so that its port may be open without",
  }),
  insecure: define({
    flag: "insecure",
    env: "CHECKPOINTD_INSECURE",
    kind: boolean,
    fallback: "false",
    help: "listen on any address, without authentication or TLS",
  }),
  workers: define({
    flag: "workers",
    env: "CHECKPOINTD_WORKERS",
    kind: integer(1, 64),
    fallback: "1",
    help: "processes that share the port and the pool; an agent's connection stays on one of them",
  }),
  poolSize: define({
    flag: "pool-size",
    env: "CHECKPOINTD_POOL_SIZE",
    kind: integer(1, 1000),
    fallback: "8",
    help: "Postgres connections held at the most, by all workers together",
  }),
  queueLimit: define({
    flag: "queue-limit",
    env: "CHECKPOINTD_QUEUE_LIMIT",
    kind: integer(0, 1_000_000),
    fallback: "5000",
    help: "calls that may wait for a connection, in each worker",
  }),
  queueTimeoutMs: define({
    flag: "queue-timeout",
    env: "CHECKPOINTD_QUEUE_TIMEOUT",
    kind: duration,
    fallback: "10s",
    help: "how long a call may wait for a connection",
  }),
  prepare: define({
    flag: "prepare",
    env: "CHECKPOINTD_PREPARE",
    kind: boolean,
    fallback: "true",
    help: "use named prepared statements; false behind a transaction pooler",
  }),
  migrate: define({
    flag: "migrate",
    env: "CHECKPOINTD_MIGRATE",
    kind: boolean,
    fallback: "true",
    help: "bring the tables up to date before serving",
  }),
  maxMessageSize: define({
    flag: "max-message-size",
    env: "CHECKPOINTD_MAX_MESSAGE_SIZE",
    kind: size,
    fallback: "64MiB",
    help: "the largest request accepted",
  }),
  compression: define({
    flag: "compression",
    env: "CHECKPOINTD_COMPRESSION",
    kind: boolean,
    fallback: "false",
    help: "gzip answers of 1 KiB and more for clients that accept it; for slow networks",
  }),
  callTimeoutMs: define({
    flag: "call-timeout",
    env: "CHECKPOINTD_CALL_TIMEOUT",
    kind: duration,
    fallback: "60s",
    help: "the limit of a call whose client sets no deadline; a streamed List has none",
  }),
  slowCallMs: define({
    flag: "slow-call",
    env: "CHECKPOINTD_SLOW_CALL",
    kind: durationOrOff,
    fallback: "1s",
    help: "a call whose client waited so long for the server has a line in the log; 0 turns that off",
  }),
  sessionAgeMs: define({
    flag: "session-age",
    env: "CHECKPOINTD_SESSION_AGE",
    kind: duration,
    fallback: "10m",
    help: "after which a client is asked to open a new connection, so that load balancers can move it",
  }),
  drainTimeoutMs: define({
    flag: "drain-timeout",
    env: "CHECKPOINTD_DRAIN_TIMEOUT",
    kind: duration,
    fallback: "30s",
    help: "how long running calls may go on after SIGTERM",
  }),
  retention: define({
    flag: "retention",
    env: "CHECKPOINTD_RETENTION",
    kind: retentionRules,
    unset: [],
    help: "what to remove in the background, such as keep_last=20,older_than=30d; nothing unless given",
  }),
  retentionIntervalMs: define({
    flag: "retention-interval",
    env: "CHECKPOINTD_RETENTION_INTERVAL",
    kind: duration,
    fallback: "60m",
    help: "how long retention rests between two runs",
  }),
  corsOrigins: define({
    flag: "cors-origins",
    env: "CHECKPOINTD_CORS_ORIGINS",
    kind: origins,
    unset: [],
    help: "origins whose pages may call from a browser",
  }),
  authFile: define({
    flag: "auth-file",
    env: "CHECKPOINTD_AUTH_FILE",
    kind: text,
    unset: undefined,
    help: "the file that tells who may do what; see docs/security.md",
  }),
  auditLog: define({
    flag: "audit-log",
    env: "CHECKPOINTD_AUDIT_LOG",
    kind: text,
    unset: undefined,
    help: "the file that the audit log is added to; unless given it stands in the log",
  }),
  ui: define({
    flag: "ui",
    env: "CHECKPOINTD_UI",
    kind: oneOf(uiModes),
    fallback: "auto",
    help: "the page at / : on, read-only, off, or auto: on loopback and where the server asks who calls",
  }),
  allowedHosts: define({
    flag: "allowed-hosts",
    env: "CHECKPOINTD_ALLOWED_HOSTS",
    kind: hosts,
    unset: [],
    help: "names it answers to besides loopback's; unless given, on another address to every name",
  }),
  metricsPort: define({
    flag: "metrics-port",
    env: "CHECKPOINTD_METRICS_PORT",
    kind: metricsPort,
    fallback: "none",
    help: "a port of its own for Prometheus's /metrics, which asks for no credential; main puts it on the server's, for principals with admin",
  }),
  metricsHost: define({
    flag: "metrics-host",
    env: "CHECKPOINTD_METRICS_HOST",
    kind: text,
    fallback: "127.0.0.1",
    help: "the address of --metrics-port, whatever --host is",
  }),
  metricsThreads: define({
    flag: "metrics-threads",
    env: "CHECKPOINTD_METRICS_THREADS",
    kind: integer(0, 2000),
    fallback: "0",
    help: "how many of the latest threads are looked at once a minute, to tell how they stand; 0: none",
  }),
  traceLimit: define({
    flag: "trace-limit",
    env: "CHECKPOINTD_TRACE_LIMIT",
    kind: integer(0, 1_000_000),
    fallback: "100",
    help: "how many calls are traced in a second at the most, in each worker, where OpenTelemetry's variables ask for traces",
  }),
  traceThreads: define({
    flag: "trace-threads",
    env: "CHECKPOINTD_TRACE_THREADS",
    kind: boolean,
    fallback: "true",
    help: "name the thread in traces",
  }),
  logLevel: define({
    flag: "log-level",
    env: "CHECKPOINTD_LOG_LEVEL",
    kind: oneOf(["silent", "error", "warn", "info", "debug"] satisfies readonly LogLevel[]),
    fallback: "info",
    help: "silent, error, warn, info or debug",
  }),
};

/** What `checkpointd migrate` can be told. */
export const migrateSettings = {
  databaseUrl: { ...settings.databaseUrl, help: "the Postgres to use; it has to be given" },
  databaseUrlFile: settings.databaseUrlFile,
  schema: settings.schema,
  dryRun: define({
    flag: "dry-run",
    kind: present,
    unset: false,
    help: "print the SQL, change nothing",
  }),
  distribute: define({
    flag: "distribute",
    kind: present,
    unset: false,
    help: "spread tables that are up to date over the nodes of Citus by thread_id; changes nothing else",
  }),
};

/** The options of the server that no setting gives as it stands. */
type MadeByServe = Pick<ServerOptions, "databaseUrl" | "migrationUrl" | "tls" | "log">;

/** `Given` where it has what `Wanted` has and nothing else; anything else cannot be passed. */
export type Exactly<Wanted, Given> = Given & Record<Exclude<keyof Given, keyof Wanted>, never>;

/**
 * The options of the server: the settings that `serve` does not take itself, and what it makes. It
 * does not compile where a setting is no option of the server, nor where the server has an option,
 * also one that may be left out, that no setting gives.
 */
export function serverOptions<Given extends Required<Omit<ServerOptions, keyof MadeByServe>>>(
  given: Exactly<ServerOptions, Given>,
  made: MadeByServe,
): Given & MadeByServe {
  return { ...given, ...made };
}

/** The values of all settings of `serve`. */
export type ServeValues = Values<typeof settings>;
