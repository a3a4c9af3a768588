/** Where the service is, and how connections to it are made. */
import { readFileSync } from "node:fs";
import { type AgentOptions, Agent as HttpAgent } from "node:http";
import type { SecureClientSessionOptions } from "node:http2";
import { Agent as HttpsAgent } from "node:https";
import { connect as connectTcp, isIP, type LookupFunction } from "node:net";
import { connect as connectTls, createSecureContext, type SecureContext } from "node:tls";
import { checkOptions } from "./options.js";

/** Certificates for `https:` URLs. Each is PEM text, or the path of a file with it. */
export interface TlsOptions {
  /** The authorities to trust, in the place of Node's own. */
  ca?: string;
  /** The certificate to show to the service, with `key`; and those between it and its authority. */
  cert?: string;
  key?: string;
}

/** What Node's requests of http and https take. */
export interface Connecting {
  lookup: LookupFunction;
  socketPath?: string;
  secureContext?: SecureContext;
}

/** The service's place. */
export class Endpoint {
  /** What requests are made to: http: or https:, and of a socket of Unix that of localhost. */
  readonly baseUrl: string;
  /** As errors have it. There are no secrets in it. */
  readonly address: string;
  /** The path, where it is a socket of Unix. */
  readonly socketPath: string | undefined;
  readonly #lookup: LookupFunction;
  readonly #tls: TlsOptions | undefined;
  #context: SecureContext | undefined;

  /** Throws a TypeError with what is allowed if the URL, or one of the certificates, is not. */
  constructor(url: string | URL, lookup: LookupFunction, tls?: TlsOptions) {
    const { href, origin, pathname, protocol } = checkUrl(url);
    this.#lookup = lookup;
    if (protocol === "unix:") {
      this.socketPath = decodeURIComponent(pathname);
      this.baseUrl = "http://localhost";
      this.address = `unix:${this.socketPath}`;
    } else {
      this.baseUrl = href;
      this.address = pathname === "/" ? origin : href;
    }
    if (tls === undefined) return;
    checkOptions("tls", tls, tlsOptions);
    if (protocol !== "https:") {
      throw new TypeError(`tls is for URLs that begin with https://, not ${protocol}`);
    }
    if ((tls.cert === undefined) !== (tls.key === undefined)) {
      throw new TypeError("tls.cert and tls.key need each other");
    }
    this.#tls = tls;
    this.#context = readContext(tls);
  }

  /** For a request of http or https. Certificates are read anew, since short-lived ones are replaced. */
  connecting(): Connecting {
    const { socketPath } = this;
    return {
      lookup: this.#lookup,
      ...(socketPath === undefined ? {} : { socketPath }),
      ...(this.#tls ? { secureContext: this.#secureContext(this.#tls) } : {}),
    };
  }

  /** For connections of http2, which it is asked for once and makes many. */
  http2Options(): Pick<SecureClientSessionOptions, "lookup" | "createConnection"> {
    const { socketPath } = this;
    const tls = this.#tls;
    const lookup = this.#lookup;
    if (socketPath !== undefined) return { createConnection: () => connectTcp(socketPath) };
    if (!tls) return { lookup };
    return {
      createConnection: ({ hostname, port }) => {
        const host = hostname.replace(/^\[|\]$/g, "");
        return connectTls({
          host,
          port: Number(port || 443),
          lookup,
          ALPNProtocols: ["h2"],
          secureContext: this.#secureContext(tls),
          ...(isIP(host) ? {} : { servername: host }),
        });
      },
    };
  }

  /** For requests that share connections of HTTP/1.1, each of which is made as `connecting` says. */
  http1Agent(options: AgentOptions): HttpAgent {
    if (!this.baseUrl.startsWith("https:")) {
      return new HttpAgent({ ...options, ...this.connecting() });
    }
    // A session of TLS that is resumed would have the certificates of the connection before.
    const agent = new HttpsAgent({ ...options, ...(this.#tls ? { maxCachedSessions: 0 } : {}) });
    const connect = agent.createConnection.bind(agent);
    agent.createConnection = (given, callback) =>
      connect({ ...given, ...this.connecting() }, callback);
    return agent;
  }

  #secureContext(tls: TlsOptions): SecureContext {
    try {
      this.#context = readContext(tls);
    } catch (error) {
      // They are being replaced. Until that is done the ones before are as good.
      if (!this.#context) throw error;
    }
    return this.#context;
  }
}

function readContext(tls: TlsOptions): SecureContext {
  const texts = Object.entries(tls).flatMap(([name, value]) =>
    value === undefined ? [] : [[name, readPem(name, value)]],
  );
  try {
    return createSecureContext(Object.fromEntries(texts));
  } catch (error) {
    throw new TypeError(`tls: these certificates cannot be used (${(error as Error).message})`);
  }
}

function readPem(name: string, value: unknown): string {
  if (typeof value !== "string") throw new TypeError(`tls.${name} must be PEM or a file's path`);
  let text = value;
  if (!value.includes("-----BEGIN")) {
    try {
      text = readFileSync(value, "utf8");
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      // It may be a key that was cut: nothing of it is repeated.
      throw new TypeError(`tls.${name} is neither PEM nor the path of a file (${code})`);
    }
  }
  // Node takes what holds none for an authority that signs nothing.
  if (!text.includes("-----BEGIN")) throw new TypeError(`tls.${name} names a file without PEM`);
  return text;
}

function checkUrl(url: string | URL): URL {
  const example = "such as http://127.0.0.1:8080";
  if (!URL.canParse(String(url))) {
    // It may hold a password.
    const text = String(url).includes("@") ? "" : `: ${JSON.stringify(String(url))}`;
    throw new TypeError(`not a URL${text}; give the service's, ${example}`);
  }
  const parsed = new URL(url);
  if (!["http:", "https:", "unix:"].includes(parsed.protocol)) {
    throw new TypeError(
      `the URL must begin with http://, https:// or unix:, not ${parsed.protocol}; ${example}`,
    );
  }
  // Neither is repeated in the message: it may be a secret.
  if (parsed.username !== "" || parsed.password !== "") {
    throw new TypeError("the URL must not hold a user or password; use the headers option");
  }
  if (parsed.search !== "" || parsed.hash !== "") {
    throw new TypeError("the URL must not have a query or a fragment");
  }
  if (parsed.protocol === "unix:" && (parsed.host !== "" || !parsed.pathname.startsWith("/"))) {
    throw new TypeError("the URL must have an absolute path, such as unix:/run/checkpointd.sock");
  }
  return parsed;
}

const tlsOptions: Record<keyof TlsOptions, true> = { ca: true, cert: true, key: true };
