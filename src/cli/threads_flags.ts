/** The flags that several of the `threads` commands take. */
import type { ThreadFilter, ThreadState } from "../client/threads.js";
import { define, type Values } from "../settings/flags.js";
import {
  anyText,
  integer,
  jsonObject,
  type Kind,
  present,
  Refusal,
  someOf,
  text,
  time,
} from "../settings/kinds.js";

/** Headers, one a flag. A value may be a secret: it is not repeated where it is wrong. */
const headers: Kind<Record<string, string>> = {
  allowed: '"name: value"',
  parse(header, earlier = {}) {
    const [, name, value] = /^\s*([\w-]+)\s*:\s*(.*)$/.exec(header) ?? [];
    if (name === undefined || value === undefined) throw new Refusal(`must be ${this.allowed}.`);
    return { ...earlier, [name]: value };
  },
};

/** The flags of all. */
export const connectionFlags = {
  url: define({
    flag: "url",
    env: "CHECKPOINTD_URL",
    kind: text,
    fallback: "http://127.0.0.1:8080",
    help: "the service; unix:/path is a socket",
  }),
  tokenFile: define({
    flag: "token-file",
    env: "CHECKPOINTD_TOKEN_FILE",
    kind: text,
    unset: undefined,
    help: "a file with the API key or token to call with; CHECKPOINTD_TOKEN holds one itself",
  }),
  tlsCa: define({
    flag: "tls-ca",
    env: "CHECKPOINTD_TLS_CA",
    kind: text,
    unset: undefined,
    help: "a file with the authorities to trust, for https:",
  }),
  headers: define({
    flag: "header",
    kind: headers,
    unset: {},
    help: '"name: value" sent with every call; may be repeated',
  }),
};

const states = ["completed", "pending", "interrupted", "failed"] satisfies readonly ThreadState[];

/** The flags that say which threads. */
export const filterFlags = {
  status: define({
    flag: "status",
    kind: someOf(states),
    unset: undefined,
    help: `how they stand: some of ${states.join(", ")}, separated by commas`,
  }),
  prefix: define({
    flag: "prefix",
    kind: anyText,
    unset: undefined,
    help: "what their ids begin with",
  }),
  metadata: define({
    flag: "metadata",
    kind: jsonObject,
    unset: undefined,
    help: "a JSON object that the latest checkpoint's metadata contains",
  }),
  updatedAfter: define({
    flag: "updated-after",
    kind: time,
    unset: undefined,
    help: "a time (2026-01-31T12:00:00Z) or an age (30m, 12h, 7d)",
  }),
  updatedBefore: define({
    flag: "updated-before",
    kind: time,
    unset: undefined,
    help: "a time or an age",
  }),
};

export const limit = define({
  flag: "limit",
  kind: integer(0, 999_999_999),
  fallback: "50",
  help: "how many at the most",
});

export const ns = define({
  flag: "ns",
  kind: anyText,
  unset: "",
  help: "the namespace of a subgraph",
});

export const json = define({
  flag: "json",
  kind: present,
  unset: false,
  help: "print JSON lines",
});

export const yes = define({
  flag: "yes",
  kind: present,
  unset: false,
  help: "do not ask before something is deleted or ended",
});

/** Which threads the flags say; no key for a flag that was not given. */
export function toFilter(flags: Values<typeof filterFlags>): ThreadFilter {
  const { status, prefix, metadata, updatedAfter, updatedBefore } = flags;
  const filter = { status, prefix, metadata, updatedAfter, updatedBefore };
  return Object.fromEntries(
    Object.entries(filter).filter(([, value]) => value !== undefined),
  ) as ThreadFilter;
}
