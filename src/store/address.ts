import postgres from "postgres";
import type { Host, ParsedOptions } from "./connection.js";
import { eachHost } from "./hosts.js";
import { readLogin } from "./login.js";
import type { Address } from "./socket.js";

/** Where a database is and how to open connections to it. */
export interface Target {
  /** In the URL's order. */
  hosts: readonly Host[];
  /** Whether a server that refuses writes is passed over. */
  mustWrite: boolean;
}

const sessionAttributes = /[?&]target_session_attrs=([^&]*)/;

/**
 * Reads a postgres:// URL. As with libpq it may name several hosts, `host1:5432,host2:5432`, of
 * which the first is taken that can be reached and, with `target_session_attrs=read-write` or
 * `primary`, takes writes. Unlike libpq that is what several hosts mean unless `any` is given: this
 * service writes.
 *
 * @throws Error with a sentence when the URL asks for a server that takes no writes, or for TLS that
 *   there is not
 */
export function parseDatabaseUrl(databaseUrl: string, prepare: boolean): Target {
  const attributes = sessionAttributes.exec(databaseUrl)?.[1];
  if (attributes !== undefined && !["any", "read-write", "primary"].includes(attributes)) {
    throw new Error(
      `target_session_attrs of the database URL must be read-write, primary or any, not ${attributes}: the service writes`,
    );
  }
  // Without the attributes: postgres.js would look for itself, with a query whose failure ends the
  // process.
  const hosts = eachHost(databaseUrl).map((url) => {
    const { url: hostUrl, tls, isDirect } = readLogin(url);
    const options = parse(hostUrl, prepare);
    return { address: toAddress(options), encryption: { tls, isDirect }, options };
  });
  return {
    hosts,
    mustWrite: attributes === undefined ? hosts.length > 1 : attributes !== "any",
  };
}

function parse(url: string, prepare: boolean): ParsedOptions {
  const { options } = postgres(url, {
    // The socket that it is given is encrypted (see socket.ts).
    ssl: false,
    max: 1,
    prepare,
    // It would read the catalog first, with a query whose failure ends the process. Nothing here
    // needs it: arrays are sent as text (see connection.ts), and results are read raw.
    fetch_types: false,
    // Within which each part of a start-up has to end; the whole has a bound of its own.
    connect_timeout: 10,
    idle_timeout: 0,
    // It would end connections in the middle of a transaction. The pool replaces old ones.
    max_lifetime: null,
    connection: {
      application_name: "checkpointd",
      // Each statement has one good plan (plans.test.ts looks at the generic ones). Left to
      // itself Postgres plans those with arrays anew every time: 0.6 ms for a getTuple. Not
      // through a pooler, which refuses settings it does not know.
      ...(prepare ? { plan_cache_mode: "force_generic_plan" } : {}),
    },
    onnotice: () => {},
  });
  // PGTARGETSESSIONATTRS of the environment would do the same.
  return { ...options, target_session_attrs: undefined } as unknown as ParsedOptions;
}

function toAddress(options: ParsedOptions): Address {
  // Of these postgres.js has its own types wrong: they are arrays, and the path may be false.
  const { host, port, path } = options as unknown as {
    host: string[];
    port: number[];
    path: string | false;
  };
  return path ? { path } : { host: host[0]!, port: port[0]! };
}
