/** What each kind of trouble with the database means to whoever runs the server. */
const kinds: readonly [RegExp, string][] = [
  [
    /^(08P01 .*(startup parameter|prepared statement)|26000|42P05)/,
    "a transaction pooler such as PgBouncer stands before the database: start with --no-prepare",
  ],
  [
    /^(28|.*SASL)/,
    "the database refuses the user or the password of the database URL: correct them there, or in Postgres",
  ],
  [
    /^3D000/,
    "the database that the database URL names does not exist: create it, or correct the URL",
  ],
  [
    /^(42P01|42703|42883|3F000)/,
    "LangGraph's tables are missing or not as our migrations make them: run checkpointd migrate, or restore what was changed",
  ],
  [
    /^42501/,
    "the role of the database URL lacks a privilege: grant it what docs/operate.md names under Database privileges",
  ],
  [
    /^25006/,
    "the database is read-only (a standby, or default_transaction_read_only): give the URL of the primary",
  ],
  [
    /^53300/,
    "the database has no connection left for the server: lower --pool-size, or raise its limit",
  ],
  [/^57P03/, "the database is starting up or shutting down"],
  [
    /ENOTFOUND|EAI_AGAIN/,
    "the host of the database URL is not known: correct its name, or look at the resolver",
  ],
  [
    /^CONNECT.*(TLS|SSL|certificate)/,
    "the TLS connection to the database was not made: look at sslmode in the database URL and at the certificate",
  ],
  [
    /^(08|57P0|CONNECT|E(CONN|PIPE|TIMEDOUT|HOST|NET)|.*(timeout expired|terminated))/,
    "the database cannot be reached: see that it runs and that the host and port of the database URL are right",
  ],
];

/**
 * The trouble as one sentence, with what to do; undefined when the error says all there is to
 * say. Holds nothing of the URL.
 */
export function explainTrouble(error: unknown): string | undefined {
  const { code, name, message } = error as { code?: unknown; name?: string; message?: string };
  if (name === "TimeoutError") return "the database did not answer in time";
  const text = typeof code === "string" ? `${code} ${message}` : `${message}`;
  return kinds.find(([match]) => match.test(text))?.[1];
}
