/** Single sessions of `pg`, which node-pg-migrate works with; what serves has a pool of its own. */
import type { Socket } from "node:net";
import pg from "pg";
import { eachHost } from "./hosts.js";
import { readLogin, withSslmode } from "./login.js";

const CONNECT_MS = 10_000;
/** How long we wait for a session to end by itself before its socket is closed. */
const END_MS = 2_000;

/**
 * Opens a session for `use` and closes it afterwards, which gives its locks back and ends its open
 * transaction. Of several hosts it is on the first that can be reached and takes writes. When the
 * signal aborts, what runs is ended in Postgres, or the socket closed where that cannot be reached.
 *
 * @throws the error of the connection, the signal's reason, or what `use` throws
 */
export async function withClient<T>(
  { databaseUrl, signal }: { databaseUrl: string; signal?: AbortSignal },
  use: (client: pg.Client, url: string) => Promise<T>,
): Promise<T> {
  const { client, url } = await open(databaseUrl, signal);
  const onAbort = () => void terminate(url, client);
  signal?.addEventListener("abort", onAbort, { once: true });
  try {
    return await use(client, url);
  } catch (error) {
    signal?.throwIfAborted();
    throw error;
  } finally {
    signal?.removeEventListener("abort", onAbort);
    // Ends an open transaction and gives the lock back, whatever happened.
    await end(client);
  }
}

/** Opens a session: of several hosts on the first that can be reached and takes writes. */
async function open(databaseUrl: string, signal: AbortSignal | undefined) {
  const urls = eachHost(databaseUrl);
  let failure: unknown;
  for (const host of urls) {
    signal?.throwIfAborted();
    try {
      const { client, url } = await connect(host, signal);
      const onAbort = () => cut(client);
      signal?.addEventListener("abort", onAbort, { once: true });
      try {
        if (urls.length === 1) return { client, url };
        const { rows } = await client.query("SHOW transaction_read_only");
        if (rows[0].transaction_read_only === "off") return { client, url };
        const message = "no host of the database URL takes writes";
        failure = Object.assign(new Error(message), { code: "25006" });
      } catch (error) {
        failure = error;
      } finally {
        signal?.removeEventListener("abort", onAbort);
      }
      await end(client);
    } catch (error) {
      failure = error;
    }
  }
  signal?.throwIfAborted();
  throw failure;
}

/** Connects to one host; the URL that it gives back says whether with TLS, also of `prefer`. */
async function connect(
  hostUrl: string,
  signal: AbortSignal | undefined,
): Promise<{ client: pg.Client; url: string }> {
  // pg cannot prefer: it is told to require, and then to do without.
  const isPreferred = readLogin(hostUrl).tls === "prefer";
  const url = isPreferred ? withSslmode(hostUrl, "require") : hostUrl;
  const client = newClient(url);
  const onAbort = () => cut(client);
  signal?.addEventListener("abort", onAbort, { once: true });
  try {
    await client.connect();
    return { client, url };
  } catch (error) {
    await end(client);
    const hasNoTls = /does not support SSL/.test((error as Error).message);
    if (!isPreferred || !hasNoTls || signal?.aborted) throw error;
  } finally {
    signal?.removeEventListener("abort", onAbort);
  }
  return connect(withSslmode(hostUrl, "disable"), signal);
}

/** A client for a URL of one host, not connected yet, whose loss ends no process. */
export function newClient(databaseUrl: string): pg.Client {
  const { url, tls, isDirect } = readLogin(databaseUrl);
  const config = {
    connectionString: url,
    connectionTimeoutMillis: CONNECT_MS,
    ssl: tls === "prefer" ? { rejectUnauthorized: false } : tls,
    ...(isDirect ? { sslnegotiation: "direct" as const } : {}),
  };
  const client = new pg.Client(config);
  // pg would look for a password file by itself, and by rules of its own.
  client.password ??= "";
  // A connection lost between two statements must reject the next one, not end the process.
  client.on("error", () => {});
  return client;
}

/** pg waits for the other side to close, without a bound. */
async function end(client: pg.Client): Promise<void> {
  const timer = setTimeout(() => cut(client), END_MS);
  await client.end().catch(() => {});
  clearTimeout(timer);
}

/** Closes the socket: whatever the client waits for fails. */
function cut(client: pg.Client): void {
  (client as unknown as { connection: { stream: Socket } }).connection.stream.destroy();
}

/** Ends the session from outside: its running statement would go on after a closed socket. */
async function terminate(databaseUrl: string, client: pg.Client): Promise<void> {
  const pid = (client as unknown as { processID: number }).processID;
  const other = newClient(databaseUrl);
  // A server that is out of reach or frozen: the session ends with the connection.
  const timer = setTimeout(() => {
    cut(other);
    cut(client);
  }, END_MS);
  try {
    await other.connect();
    await other.query("SELECT pg_terminate_backend($1)", [pid]);
  } catch {
    cut(client);
  }
  await end(other);
  clearTimeout(timer);
}
