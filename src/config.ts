/**
 * Every setting of the command line, in one table: its flag, its environment variable, its
 * default, what it may be. The README's table is checked against it.
 */
import { parseArgs } from "node:util";
import { logLevels } from "./log.js";
import { parseRetention, type RetentionRule, retentionAllowed } from "./server/retention_rules.js";
import { eachHost } from "./store/hosts.js";
import { checkSchemaName } from "./store/schema_name.js";

interface Kind<T> {
  /** What the value may be, as the end of a sentence: "must be …". */
  allowed: string;
  /** Returns undefined for a value that is not allowed. */
  parse: (text: string) => T | undefined;
}

interface Setting<T = unknown, Fallback extends string | undefined = string | undefined> {
  /** The environment variable that gives the value where no flag does. */
  env: string;
  /** The value as text where neither is given; undefined for "not set". */
  fallback: Fallback;
  kind: Kind<T>;
  /** What it is for, a phrase without a full stop. */
  meaning: string;
}

const text: Kind<string> = {
  allowed: "text that is not empty",
  parse: (value) => (value === "" ? undefined : value),
};

const oneOf = <const T extends string>(values: readonly T[]): Kind<T> => ({
  allowed: `one of ${values.join(", ")}`,
  parse: (value) => values.find((known) => known === value),
});

const boolean: Kind<boolean> = {
  allowed: "true or false",
  parse: (value) => (value === "true" ? true : value === "false" ? false : undefined),
};

const integer = (min: number, max: number): Kind<number> => ({
  allowed: `a whole number from ${min} to ${max}`,
  parse: (value) => {
    const number = /^\d+$/.test(value) ? Number(value) : Number.NaN;
    return number >= min && number <= max ? number : undefined;
  },
});

const withUnit = (
  units: Record<string, number>,
  allowed: string,
  min: number,
  max: number,
): Kind<number> => ({
  allowed,
  parse: (value) => {
    const [, number, unit] = /^(\d+)([A-Za-z]+)$/.exec(value) ?? [];
    const factor = unit === undefined ? undefined : units[unit];
    if (number === undefined || factor === undefined) return undefined;
    const amount = Number(number) * factor;
    return amount >= min && amount <= max ? amount : undefined;
  },
});

const duration = withUnit(
  { ms: 1, s: 1000, m: 60_000 },
  "a duration from 1ms to 60m, such as 500ms, 30s or 2m",
  1,
  3_600_000,
);

const durationOrOff: Kind<number> = {
  allowed: `0, or ${duration.allowed}`,
  parse: (value) => (value === "0" ? 0 : duration.parse(value)),
};

// Bytes reach Postgres as hexadecimal text, and a string of V8 ends at 512 Mi characters.
const size = withUnit(
  { B: 1, KiB: 1024, MiB: 1024 ** 2 },
  "a size from 1KiB to 255MiB, such as 512KiB or 64MiB",
  1024,
  255 * 1024 ** 2,
);

const databaseUrl: Kind<string> = {
  allowed: "a URL such as postgres://user:password@host:5432/database",
  parse: (value) => {
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
};

const schema: Kind<string> = {
  allowed: "a schema name of 1 to 63 bytes without quotes and backslashes, not pg_…",
  parse: (value) => {
    try {
      checkSchemaName(value);
      return value;
    } catch {
      return undefined;
    }
  },
};

const origins: Kind<string[]> = {
  allowed: "origins such as https://app.example.com separated by commas, or *",
  parse: (value) => {
    const list = value.split(",").map((origin) => origin.trim());
    const valid = list.every(
      (origin) => origin === "*" || (URL.canParse(origin) && new URL(origin).origin === origin),
    );
    return valid ? list : undefined;
  },
};

const retention: Kind<RetentionRule[]> = { allowed: retentionAllowed, parse: parseRetention };

const define = <T, Fallback extends string | undefined>(
  kind: Kind<T>,
  env: string,
  fallback: Fallback,
  meaning: string,
): Setting<T, Fallback> => ({ kind, env, fallback, meaning });

/** The settings by the name of their flag, without its dashes. */
export const settings = {
  "database-url": define(
    databaseUrl,
    "DATABASE_URL",
    undefined,
    "the Postgres to use; without it an embedded one is started in the data dir",
  ),
  schema: define(schema, "CHECKPOINTD_SCHEMA", "public", "the schema of LangGraph's tables"),
  "data-dir": define(
    text,
    "CHECKPOINTD_DATA_DIR",
    ".checkpointd",
    "the folder of the embedded Postgres",
  ),
  host: define(text, "CHECKPOINTD_HOST", "127.0.0.1", "the address to listen on"),
  port: define(integer(0, 65535), "CHECKPOINTD_PORT", "8080", "the port; 0 takes a free one"),
  workers: define(
    integer(1, 64),
    "CHECKPOINTD_WORKERS",
    "1",
    "processes that share the port and the pool; an agent's connection stays on one of them",
  ),
  "pool-size": define(
    integer(1, 1000),
    "CHECKPOINTD_POOL_SIZE",
    "8",
    "Postgres connections held at the most, by all workers together",
  ),
  "queue-limit": define(
    integer(0, 1_000_000),
    "CHECKPOINTD_QUEUE_LIMIT",
    "5000",
    "calls that may wait for a connection, in each worker",
  ),
  "queue-timeout": define(
    duration,
    "CHECKPOINTD_QUEUE_TIMEOUT",
    "10s",
    "how long a call may wait for a connection",
  ),
  prepare: define(
    boolean,
    "CHECKPOINTD_PREPARE",
    "true",
    "use named prepared statements; false behind a transaction pooler",
  ),
  migrate: define(
    boolean,
    "CHECKPOINTD_MIGRATE",
    "true",
    "bring the tables up to date before serving",
  ),
  "max-message-size": define(
    size,
    "CHECKPOINTD_MAX_MESSAGE_SIZE",
    "64MiB",
    "the largest request accepted",
  ),
  compression: define(
    boolean,
    "CHECKPOINTD_COMPRESSION",
    "false",
    "gzip answers of 1 KiB and more for clients that accept it; for slow networks",
  ),
  "call-timeout": define(
    duration,
    "CHECKPOINTD_CALL_TIMEOUT",
    "60s",
    "the limit of a call whose client sets no deadline; a streamed List has none",
  ),
  "slow-call": define(
    durationOrOff,
    "CHECKPOINTD_SLOW_CALL",
    "1s",
    "a call whose client waited so long for the server has a line in the log; 0 turns that off",
  ),
  "session-age": define(
    duration,
    "CHECKPOINTD_SESSION_AGE",
    "10m",
    "after which an agent is asked to open a new session, so that load balancers can move it",
  ),
  "drain-timeout": define(
    duration,
    "CHECKPOINTD_DRAIN_TIMEOUT",
    "30s",
    "how long running calls may go on after SIGTERM",
  ),
  retention: define(
    retention,
    "CHECKPOINTD_RETENTION",
    undefined,
    "what to remove in the background, such as keep_last=20,older_than=30d; nothing unless given",
  ),
  "retention-interval": define(
    duration,
    "CHECKPOINTD_RETENTION_INTERVAL",
    "60m",
    "how long retention rests between two runs",
  ),
  "cors-origins": define(
    origins,
    "CHECKPOINTD_CORS_ORIGINS",
    undefined,
    "origins whose pages may call from a browser",
  ),
  "log-level": define(
    oneOf(logLevels),
    "CHECKPOINTD_LOG_LEVEL",
    "info",
    "silent, error, warn, info or debug",
  ),
} satisfies Record<string, Setting>;

export type SettingName = keyof typeof settings;

/** The values of the settings a command takes. */
export type Config<Name extends SettingName = SettingName> = {
  [N in Name]: (typeof settings)[N] extends Setting<infer T>
    ? (typeof settings)[N]["fallback"] extends string
      ? T
      : T | undefined
    : never;
};

/** A wrong command line. The message is one sentence for the person who typed it. */
export class UsageError extends Error {
  override readonly name = "UsageError";
}

/**
 * Reads the flags a command takes, then the environment, then the defaults.
 *
 * @param names the settings the command has
 * @param switches flags without a value that the command has besides, such as "dry-run"
 * @throws UsageError for an unknown flag, a missing or wrong value, or a stray word
 */
export function readConfig<Name extends SettingName, Switch extends string = never>(
  names: readonly Name[],
  args: readonly string[],
  env: Readonly<Record<string, string | undefined>>,
  switches: readonly Switch[] = [],
): Config<Name> & Record<Switch, boolean> {
  const { tokens } = parseArgs({
    args: [...args],
    options: Object.fromEntries(
      names.map((name) => [name, { type: settings[name].kind === boolean ? "boolean" : "string" }]),
    ),
    strict: false,
    tokens: true,
  });
  const given = new Map<string, { value: string; source: string }>();
  const switched = new Set<string>();
  for (const token of tokens) {
    if (token.kind === "option-terminator") continue;
    if (token.kind === "positional") {
      throw new UsageError(`Unexpected argument "${token.value}".`);
    }
    const { name, rawName } = token;
    if ((switches as readonly string[]).includes(name)) {
      if (token.value !== undefined) throw new UsageError(`${rawName} takes no value.`);
      switched.add(name);
    } else if (
      name.startsWith("no-") &&
      takesNo(names, name.slice(3)) &&
      token.value === undefined
    ) {
      given.set(name.slice(3), { value: "false", source: rawName });
    } else if ((names as readonly string[]).includes(name)) {
      const { kind } = settings[name as Name];
      if (token.value === undefined && kind === boolean) {
        given.set(name, { value: "true", source: rawName });
      } else if (
        token.value === undefined ||
        (!token.inlineValue && token.value.startsWith("--"))
      ) {
        throw new UsageError(`${rawName} needs a value: ${kind.allowed}.`);
      } else {
        given.set(name, { value: token.value, source: rawName });
      }
    } else {
      throw new UsageError(unknownFlag(rawName, [...names, ...switches]));
    }
  }
  const config: Record<string, unknown> = {};
  for (const name of names) {
    const setting: Setting = settings[name];
    const fromEnv = env[setting.env];
    const { value, source } =
      given.get(name) ??
      (fromEnv === undefined || fromEnv === ""
        ? { value: setting.fallback, source: "the default" }
        : { value: fromEnv, source: setting.env });
    if (value === undefined) continue;
    const parsed = setting.kind.parse(value);
    if (parsed === undefined) {
      // A database URL holds a password, so it is not repeated.
      const shown = name === "database-url" ? "" : `, not "${value}"`;
      throw new UsageError(`${source} must be ${setting.kind.allowed}${shown}.`);
    }
    config[name] = parsed;
  }
  for (const name of switches) config[name] = switched.has(name);
  return config as Config<Name> & Record<Switch, boolean>;
}

function takesNo(names: readonly string[], name: string): boolean {
  return names.includes(name) && settings[name as SettingName].kind === boolean;
}

function unknownFlag(flag: string, known: readonly string[]): string {
  const typed = flag.replace(/^-+/, "");
  const [nearest] = known
    .map((name) => ({ name, distance: editDistance(typed, name) }))
    .sort((a, b) => a.distance - b.distance);
  const hint =
    nearest && nearest.distance <= Math.max(2, typed.length / 3)
      ? ` Did you mean --${nearest.name}?`
      : ` Allowed are ${known.map((name) => `--${name}`).join(", ")}.`;
  return `Unknown flag ${flag}.${hint}`;
}

function editDistance(a: string, b: string): number {
  let previous = Array.from({ length: b.length + 1 }, (_, i) => i);
  for (let i = 1; i <= a.length; i++) {
    const current = [i];
    for (let j = 1; j <= b.length; j++) {
      current[j] = Math.min(
        (previous[j] as number) + 1,
        (current[j - 1] as number) + 1,
        (previous[j - 1] as number) + (a[i - 1] === b[j - 1] ? 0 : 1),
      );
    }
    previous = current;
  }
  return previous[b.length] as number;
}
