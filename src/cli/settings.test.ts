import { chmodSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, describe, expect, it } from "vitest";
import { readFlags, UsageError } from "../settings/flags.js";
import { captureLog } from "../testing/captured_log.js";
import { chooseDatabase } from "./database_url.js";
import { migrateSettings, type ServeValues, serverOptions, settings } from "./settings.js";

const folder = mkdtempSync(path.join(tmpdir(), "settings-"));
afterAll(() => rmSync(folder, { recursive: true, force: true }));
function file(name: string, text: string, mode = 0o600): string {
  const at = path.join(folder, name);
  writeFileSync(at, text);
  chmodSync(at, mode);
  return at;
}
const urlFile = file("url", "postgres://u:p@h/x\nsomething else\n");

/** Of a setting: its flag and variable, a value for it, wrong ones, and what it is else. */
interface Example<Value> {
  flag: string;
  env: string;
  text: string;
  value: Value;
  wrong: [string, ...string[]];
  unset: Value;
}

/** One for each setting: without it a new setting does not compile. */
const examples: { [Name in keyof ServeValues]: Example<ServeValues[Name]> } = {
  databaseUrl: {
    flag: "--database-url",
    env: "DATABASE_URL",
    text: "postgres://u:p@h/x",
    value: "postgres://u:p@h/x",
    wrong: ["mysql://secret@h/x", "postgres://u:secret%zz@h/x", ""],
    unset: undefined,
  },
  databaseUrlFile: {
    flag: "--database-url-file",
    env: "CHECKPOINTD_DATABASE_URL_FILE",
    text: urlFile,
    value: { path: urlFile, url: "postgres://u:p@h/x", isOpen: false },
    wrong: [file("wrong", "mysql://secret@h/x\n"), file("empty", ""), "/none", ""],
    unset: undefined,
  },
  schema: {
    flag: "--schema",
    env: "CHECKPOINTD_SCHEMA",
    text: "agents",
    value: "agents",
    wrong: ["pg_x", ""],
    unset: "public",
  },
  dataDir: {
    flag: "--data-dir",
    env: "CHECKPOINTD_DATA_DIR",
    text: "/data",
    value: "/data",
    wrong: [""],
    unset: ".checkpointd",
  },
  host: {
    flag: "--host",
    env: "CHECKPOINTD_HOST",
    text: "::1",
    value: "::1",
    wrong: [""],
    unset: "127.0.0.1",
  },
  port: {
    flag: "--port",
    env: "CHECKPOINTD_PORT",
    text: "0",
    value: 0,
    wrong: ["-1", "65536"],
    unset: 8080,
  },
  socketPath: {
    flag: "--listen-socket",
    env: "CHECKPOINTD_LISTEN_SOCKET",
    text: "/run/c.sock",
    value: "/run/c.sock",
    wrong: ["", "x".repeat(104)],
    unset: undefined,
  },
  tlsCert: {
    flag: "--tls-cert",
    env: "CHECKPOINTD_TLS_CERT",
    text: "/etc/file",
    value: "/etc/file",
    wrong: [""],
    unset: undefined,
  },
  tlsKey: {
    flag: "--tls-key",
    env: "CHECKPOINTD_TLS_KEY",
    text: "/etc/file",
    value: "/etc/file",
    wrong: [""],
    unset: undefined,
  },
  tlsClientCa: {
    flag: "--tls-client-ca",
    env: "CHECKPOINTD_TLS_CLIENT_CA",
    text: "/etc/file",
    value: "/etc/file",
    wrong: [""],
    unset: undefined,
  },
  tokenFile: {
    flag: "--token-file",
    env: "CHECKPOINTD_TOKEN_FILE",
    text: "/etc/file",
    value: "/etc/file",
    wrong: [""],
    unset: undefined,
  },
  behindTlsProxy: {
    flag: "--behind-tls-proxy",
    env: "CHECKPOINTD_BEHIND_TLS_PROXY",
    text: "true",
    value: true,
    wrong: ["yes"],
    unset: false,
  },
  insecure: {
    flag: "--insecure",
    env: "CHECKPOINTD_INSECURE",
    text: "true",
    value: true,
    wrong: ["yes"],
    unset: false,
  },
  workers: {
    flag: "--workers",
    env: "CHECKPOINTD_WORKERS",
    text: "64",
    value: 64,
    wrong: ["0", "65", "two"],
    unset: 1,
  },
  poolSize: {
    flag: "--pool-size",
    env: "CHECKPOINTD_POOL_SIZE",
    text: "1000",
    value: 1000,
    wrong: ["0", "1001"],
    unset: 8,
  },
  queueLimit: {
    flag: "--queue-limit",
    env: "CHECKPOINTD_QUEUE_LIMIT",
    text: "0",
    value: 0,
    wrong: ["-1", "1000001"],
    unset: 5000,
  },
  queueTimeoutMs: {
    flag: "--queue-timeout",
    env: "CHECKPOINTD_QUEUE_TIMEOUT",
    text: "1ms",
    value: 1,
    wrong: ["0ms"],
    unset: 10_000,
  },
  prepare: {
    flag: "--prepare",
    env: "CHECKPOINTD_PREPARE",
    text: "false",
    value: false,
    wrong: ["no", "flase"],
    unset: true,
  },
  migrate: {
    flag: "--migrate",
    env: "CHECKPOINTD_MIGRATE",
    text: "false",
    value: false,
    wrong: ["maybe"],
    unset: true,
  },
  maxMessageSize: {
    flag: "--max-message-size",
    env: "CHECKPOINTD_MAX_MESSAGE_SIZE",
    text: "255MiB",
    value: 267_386_880,
    wrong: ["1023B", "256MiB", "1GB"],
    unset: 67_108_864,
  },
  compression: {
    flag: "--compression",
    env: "CHECKPOINTD_COMPRESSION",
    text: "true",
    value: true,
    wrong: ["gzip"],
    unset: false,
  },
  callTimeoutMs: {
    flag: "--call-timeout",
    env: "CHECKPOINTD_CALL_TIMEOUT",
    text: "1h",
    value: 3_600_000,
    wrong: ["0ms", "61m", "60"],
    unset: 60_000,
  },
  slowCallMs: {
    flag: "--slow-call",
    env: "CHECKPOINTD_SLOW_CALL",
    text: "0",
    value: 0,
    wrong: ["1", "61m", ""],
    unset: 1_000,
  },
  sessionAgeMs: {
    flag: "--session-age",
    env: "CHECKPOINTD_SESSION_AGE",
    text: "90s",
    value: 90_000,
    wrong: ["90"],
    unset: 600_000,
  },
  drainTimeoutMs: {
    flag: "--drain-timeout",
    env: "CHECKPOINTD_DRAIN_TIMEOUT",
    text: "2m",
    value: 120_000,
    wrong: ["2min"],
    unset: 30_000,
  },
  retention: {
    flag: "--retention",
    env: "CHECKPOINTD_RETENTION",
    text: "keep_last=2",
    value: [{ text: "keep_last=2", keepLast: 2, metadata: undefined, olderThanMs: undefined }],
    wrong: ["keep_last=0", "keep_last=1,older_than=1"],
    unset: [],
  },
  retentionIntervalMs: {
    flag: "--retention-interval",
    env: "CHECKPOINTD_RETENTION_INTERVAL",
    text: "5m",
    value: 300_000,
    wrong: ["never"],
    unset: 3_600_000,
  },
  corsOrigins: {
    flag: "--cors-origins",
    env: "CHECKPOINTD_CORS_ORIGINS",
    text: "https://a.example, http://localhost:1",
    value: ["https://a.example", "http://localhost:1"],
    wrong: ["example.com", "https://a.example/"],
    unset: [],
  },
  authFile: {
    flag: "--auth-file",
    env: "CHECKPOINTD_AUTH_FILE",
    text: "/auth.json",
    value: "/auth.json",
    wrong: [""],
    unset: undefined,
  },
  auditLog: {
    flag: "--audit-log",
    env: "CHECKPOINTD_AUDIT_LOG",
    text: "/audit.jsonl",
    value: "/audit.jsonl",
    wrong: [""],
    unset: undefined,
  },
  ui: {
    flag: "--ui",
    env: "CHECKPOINTD_UI",
    text: "read-only",
    value: "read-only",
    wrong: ["true", ""],
    unset: "auto",
  },
  allowedHosts: {
    flag: "--allowed-hosts",
    env: "CHECKPOINTD_ALLOWED_HOSTS",
    text: "checkpointd.internal, db",
    value: ["checkpointd.internal", "db"],
    wrong: ["http://a.example", "a.example:80", "a b"],
    unset: [],
  },
  metricsPort: {
    flag: "--metrics-port",
    env: "CHECKPOINTD_METRICS_PORT",
    text: "main",
    value: "main",
    wrong: ["65536", "on", "9464/metrics"],
    unset: undefined,
  },
  metricsHost: {
    flag: "--metrics-host",
    env: "CHECKPOINTD_METRICS_HOST",
    text: "0.0.0.0",
    value: "0.0.0.0",
    wrong: [""],
    unset: "127.0.0.1",
  },
  metricsThreads: {
    flag: "--metrics-threads",
    env: "CHECKPOINTD_METRICS_THREADS",
    text: "500",
    value: 500,
    wrong: ["2001", "-1", "all"],
    unset: 0,
  },
  traceLimit: {
    flag: "--trace-limit",
    env: "CHECKPOINTD_TRACE_LIMIT",
    text: "1000",
    value: 1000,
    wrong: ["-1", "none"],
    unset: 100,
  },
  traceThreads: {
    flag: "--trace-threads",
    env: "CHECKPOINTD_TRACE_THREADS",
    text: "false",
    value: false,
    wrong: ["yes"],
    unset: true,
  },
  logLevel: {
    flag: "--log-level",
    env: "CHECKPOINTD_LOG_LEVEL",
    text: "debug",
    value: "debug",
    wrong: ["loud", ""],
    unset: "info",
  },
};

const names = Object.keys(examples) as (keyof ServeValues)[];
const read = (args: string[], env: Record<string, string> = {}): ServeValues =>
  readFlags(settings, args, env).values;

describe("a setting", () => {
  it.each(names)("%s is given by its flag, else its variable, else its default", (name) => {
    const { flag, env, text, value, wrong, unset } = examples[name];
    expect(read([`${flag}=${text}`], { [env]: wrong[0] })[name]).toEqual(value);
    if (settings[name].kind.alone === undefined) {
      expect(read([flag, text])[name]).toEqual(value);
    }
    expect(read([], { [env]: text })).toEqual({ ...read([]), [name]: value });
    expect(read([], { [env]: "" })[name]).toEqual(unset);
    expect(read([])[name]).toEqual(unset);
  });

  it.each(names)("%s refuses what is wrong by the name of where it stands", (name) => {
    const { flag, env, wrong } = examples[name];
    const { kind } = settings[name];
    const refused = (args: string[], given: Record<string, string> = {}) => {
      try {
        read(args, given);
      } catch (error) {
        expect(error).toBeInstanceOf(UsageError);
        return (error as Error).message;
      }
      throw new Error(`${args} ${JSON.stringify(given)} was taken`);
    };
    for (const text of wrong) {
      const sentence = refused([`${flag}=${text}`]);
      // Of the rules of retention it says more than what all of them may be.
      const part = name === "retention" ? "is wrong in rule 1, " : `must be ${kind.allowed}`;
      expect(sentence).toContain(`${flag} ${part}`);
      expect(sentence.includes(`"${text}"`)).toBe(name !== "databaseUrl");
      expect(sentence).not.toContain("secret");
      if (text !== "") expect(refused([], { [env]: text })).toBe(sentence.replace(flag, env));
    }
    if (kind.alone === undefined) {
      expect(refused([flag])).toBe(`${flag} needs a value: ${kind.allowed}.`);
      expect(refused([flag, "--port"])).toBe(`${flag} needs a value: ${kind.allowed}.`);
    }
  });

  it("of two words is false with no- before its flag", () => {
    expect(read(["--no-migrate", "--no-prepare", "--compression"])).toMatchObject({
      migrate: false,
      prepare: false,
      compression: true,
    });
    expect(() => read(["--no-migrate=1"])).toThrow("--no-migrate takes no value.");
    expect(() => read(["--no-port"])).toThrow("Unknown flag --no-port.");
    expect(() => read(["--no-migrat"])).toThrow("Did you mean --no-migrate?");
  });

  it("of the port may be none", () => {
    expect(read(["--port", "none"]).port).toBeUndefined();
    expect(read(["--metrics-port", "none"]).metricsPort).toBeUndefined();
    expect(read(["--metrics-port", "9464"]).metricsPort).toBe(9464);
  });

  it("has a flag and a variable of its own", () => {
    const all = Object.values(settings);
    expect(new Set(all.map(({ flag }) => flag)).size).toBe(all.length);
    expect(new Set(all.map(({ env }) => env)).size).toBe(all.length);
  });

  it("of a database may name one host or several", () => {
    const url = (hosts: string) => () =>
      read(["--database-url", `postgres://${hosts}/x?target_session_attrs=any`]);
    for (const hosts of ["h", "h:1,h:2", "u:p@h,[::1]:3", "u:p%25,@h:1,h"]) {
      expect(url(hosts)).not.toThrow();
    }
    for (const hosts of ["h:1,h:x", "h:99999", "u:p%@h"]) {
      expect(url(hosts)).toThrow("must be a URL such as");
    }
  });

  it("of migrate is one of serve's, and --dry-run", () => {
    expect(readFlags(migrateSettings, ["--dry-run"], { DATABASE_URL: "postgres://h/x" })).toEqual({
      values: {
        databaseUrl: "postgres://h/x",
        databaseUrlFile: undefined,
        schema: "public",
        dryRun: true,
        distribute: false,
      },
      words: [],
    });
  });
});

describe("the database", () => {
  const choose = (args: string[], env: Record<string, string> = {}) =>
    chooseDatabase(read(args, env), args);

  it("is named by a URL or by a file with one, not by both", () => {
    expect(choose([])).toEqual({ databaseUrl: undefined, warnings: [] });
    const chosen = { databaseUrl: "postgres://u:p@h/x", warnings: [] };
    expect(choose(["--database-url-file", urlFile])).toEqual(chosen);
    expect(choose([], { CHECKPOINTD_DATABASE_URL_FILE: urlFile })).toEqual(chosen);
    expect(choose([], { DATABASE_URL: "postgres://u:p@h/x" })).toEqual(chosen);
    expect(() =>
      choose(["--database-url-file", urlFile], { DATABASE_URL: "postgres://h" }),
    ).toThrow(UsageError);
    expect(() =>
      choose(["--database-url=postgres://h"], { CHECKPOINTD_DATABASE_URL_FILE: urlFile }),
    ).toThrow("not by both");
  });

  it("comes with a warning where others can read the password", () => {
    const warned = [expect.stringContaining("list of processes")];
    expect(choose(["--database-url", "postgres://u:p@h/x"]).warnings).toEqual(warned);
    expect(choose(["--database-url=postgres://u:p@h,g/x"]).warnings).toEqual(warned);
    expect(choose(["--database-url=postgres://h/x?password=p"]).warnings).toEqual(warned);
    expect(choose(["--database-url=postgres://u:p@h/x"]).warnings.join()).not.toContain("u:p");
    expect(choose(["--database-url=postgres://u@h/x"]).warnings).toEqual([]);
    const open = file("open", "postgres://u:p@h/x", 0o644);
    expect(choose(["--database-url-file", open]).warnings).toEqual([
      expect.stringContaining(`can read the database URL's file ${open}`),
    ]);
  });
});

describe("the options of the server", () => {
  const made = { databaseUrl: "postgres://h/x", tls: undefined, log: captureLog().log };
  const {
    databaseUrl: _,
    databaseUrlFile: _1,
    dataDir: _2,
    workers: _3,
    logLevel: _4,
    tlsCert: _5,
    tlsKey: _6,
    tlsClientCa: _7,
    behindTlsProxy: _8,
    insecure: _9,
    ...given
  } = read([]);

  it("are the settings that serve does not take itself", () => {
    expect(serverOptions(given, made)).toEqual({ ...given, ...made });
  });

  it("do not compile with a setting too many, too few or of another type", () => {
    // @ts-expect-error A setting that is no option of the server reaches nothing.
    serverOptions({ ...given, workers: 1 }, made);
    const { queueLimit, ...fewer } = given;
    // @ts-expect-error No setting gives the option queueLimit.
    serverOptions(fewer, made);
    // @ts-expect-error The option is a number.
    serverOptions({ ...given, queueLimit: `${queueLimit}` }, made);
  });
});
