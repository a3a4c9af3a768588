import { readFileSync } from "node:fs";
import { isIP } from "node:net";
import { userInfo } from "node:os";
import type { ConnectionOptions } from "node:tls";
import { findPassword } from "./passfile.js";

/** How one host of a database URL is logged in to, said so that postgres.js and pg do the same. */
export interface Login {
  /** The URL without what it says of TLS, and with the password of the password file if it has none. */
  url: string;
  /** "prefer": with TLS where the server has it, whoever it is; else without. */
  tls: false | "prefer" | ConnectionOptions;
  /** Whether TLS begins at once, without asking the server. */
  isDirect: boolean;
}

const tlsParameters = [
  "sslmode",
  "ssl",
  "sslrootcert",
  "sslcert",
  "sslkey",
  "sslnegotiation",
  "uselibpqcompat",
];

/**
 * Reads a URL of one host. TLS is what libpq makes of `sslmode`, or of PGSSLMODE, with two
 * exceptions: without either there is none, and where libpq wants a root certificate
 * (`verify-ca`) and is given none, those that Node trusts are taken, and the name is checked.
 *
 * @throws Error with a sentence for an sslmode that there is not, and for a file that cannot be read
 */
export function readLogin(databaseUrl: string): Login {
  if (!URL.canParse(databaseUrl)) return { url: databaseUrl, tls: false, isDirect: false };
  const url = new URL(databaseUrl);
  const given = (name: string) => url.searchParams.get(name) ?? undefined;
  const host = decodeURIComponent(url.hostname.replace(/^\[(.*)\]$/, "$1")) || process.env.PGHOST;
  const tls = toTls(host ?? "localhost", given);
  const isDirect = tls !== false && given("sslnegotiation") === "direct";
  if (isDirect && tls === "prefer") {
    throw new Error("sslnegotiation=direct of the database URL needs sslmode=require or stricter");
  }
  const password = url.password || given("password") ? undefined : passwordOf(url, host);
  if (password !== undefined) {
    // A URL without a host can hold no password.
    if (url.hostname === "") url.hostname = encodeURIComponent(host ?? "localhost");
    url.password = encodeURIComponent(password);
  }
  const told = tlsParameters.filter((name) => url.searchParams.has(name));
  for (const name of told) url.searchParams.delete(name);
  // Whatever nothing was changed of stays as it was written.
  const isSame = password === undefined && told.length === 0;
  return { url: isSame ? databaseUrl : url.href, tls, isDirect };
}

/** The same URL with an sslmode that checks nobody. */
export function withSslmode(databaseUrl: string, sslmode: "require" | "disable"): string {
  const url = new URL(databaseUrl);
  for (const name of ["ssl", "sslrootcert", "sslcert", "sslkey"]) url.searchParams.delete(name);
  url.searchParams.set("sslmode", sslmode);
  return url.href;
}

/** What `ssl=` of postgres.js and pg means as an sslmode. */
const modesOfSsl: Record<string, string> = {
  true: "verify-full",
  "1": "verify-full",
  false: "disable",
  "0": "disable",
  "no-verify": "require",
};

function toTls(host: string, given: (name: string) => string | undefined): Login["tls"] {
  const rootFile = given("sslrootcert");
  const ssl = given("ssl");
  const unsaid = rootFile === "system" ? "verify-full" : process.env.PGSSLMODE || "disable";
  const said = given("sslmode") ?? (ssl && (modesOfSsl[ssl] ?? ssl)) ?? unsaid;
  const mode = said === "no-verify" ? "require" : said;
  // As with libpq: nobody listens in on a socket in the file system.
  if (host.startsWith("/")) return false;
  const options: ConnectionOptions = {
    ...(isIP(host) === 0 ? {} : { host }),
    ...(rootFile && rootFile !== "system" ? { ca: readPem("sslrootcert", rootFile) } : {}),
    ...(given("sslcert") ? { cert: readPem("sslcert", given("sslcert")!) } : {}),
    ...(given("sslkey") ? { key: readPem("sslkey", given("sslkey")!) } : {}),
  };
  switch (mode) {
    case "disable":
      return false;
    case "allow":
    case "prefer":
      return "prefer";
    case "require":
      return options.ca ? withoutName(options) : { ...options, rejectUnauthorized: false };
    case "verify-ca":
      return options.ca ? withoutName(options) : options;
    case "verify-full":
      return options;
    default:
      throw new Error(
        `sslmode of the database URL must be disable, allow, prefer, require, verify-ca or verify-full, not ${mode}`,
      );
  }
}

/** The certificate has to be of the authority, whatever name is in it. */
const withoutName = (options: ConnectionOptions): ConnectionOptions => ({
  ...options,
  checkServerIdentity: () => undefined,
});

function readPem(name: string, file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch (error) {
    throw new Error(
      `${name} of the database URL cannot be read (${(error as Error).message}): correct its path`,
    );
  }
}

/** As libpq: PGPASSWORD, which both drivers read, comes before the file. */
function passwordOf(url: URL, host = "localhost"): string | undefined {
  const { PGPASSWORD, PGPORT, PGUSER, PGDATABASE } = process.env;
  if (PGPASSWORD) return undefined;
  const user = decodeURIComponent(url.username) || PGUSER || userInfo().username;
  return findPassword({
    host,
    port: url.port || PGPORT || "5432",
    database: decodeURIComponent(url.pathname.slice(1)) || PGDATABASE || user,
    user,
  });
}
