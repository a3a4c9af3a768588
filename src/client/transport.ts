/** From an address and options to an HTTP/2 transport that can be closed. */
import type { Transport } from "@connectrpc/connect";
import {
  createConnectTransport,
  createGrpcTransport,
  createGrpcWebTransport,
  Http2SessionManager,
} from "@connectrpc/connect-node";

/** How calls travel. All three reach the same service on the same port. */
export interface TransportOptions {
  /**
   * The wire protocol. "connect" (the default) costs the agent the least CPU; "grpc" and
   * "grpc-web" are for proxies that know only those.
   */
  protocol?: "connect" | "grpc" | "grpc-web";
  /** Send JSON instead of binary messages, to read them on the way. Only with "connect". */
  json?: boolean;
}

/** A transport of our own, with the way to close it. */
export interface OpenTransport {
  transport: Transport;
  /** Closes the connection at once, and every call on it. Idempotent. */
  close(): void;
}

// A peer that vanished without a word (a lost node, a dropped NAT entry) answers neither calls
// nor pings. Without pings each call would wait out its deadline until TCP gives up after some
// fifteen minutes; with them the session is replaced and the calls are retried.
const PING_INTERVAL_MS = 20_000;
const PING_TIMEOUT_MS = 5_000;

/**
 * Opens nothing yet: the first call connects. `http:` is HTTP/2 with prior knowledge, `https:`
 * negotiates it. An idle connection does not keep the process alive.
 *
 * Throws a TypeError with what is allowed if the URL or an option is not.
 */
export function openTransport(url: string | URL, options: TransportOptions): OpenTransport {
  const { protocol = "connect", json = false } = options;
  const baseUrl = checkUrl(url);
  if (typeof json !== "boolean") throw new TypeError(`json must be true or false, not ${json}`);
  if (json && protocol !== "connect") {
    throw new TypeError(`json needs the protocol "connect", not "${protocol}"`);
  }
  const sessionManager = new Http2SessionManager(baseUrl, {
    pingIntervalMs: PING_INTERVAL_MS,
    pingTimeoutMs: PING_TIMEOUT_MS,
  });
  const common = {
    baseUrl,
    httpVersion: "2" as const,
    sessionManager,
    useBinaryFormat: !json,
    // Compression would spend more CPU on both sides than it saves on a local network.
    acceptCompression: [],
  };
  const close = () => sessionManager.abort();
  switch (protocol) {
    case "connect":
      return { transport: createConnectTransport(common), close };
    case "grpc":
      return { transport: createGrpcTransport(common), close };
    case "grpc-web":
      return { transport: createGrpcWebTransport(common), close };
    default:
      throw new TypeError(
        `protocol must be "connect", "grpc" or "grpc-web", not ${JSON.stringify(protocol)}`,
      );
  }
}

function checkUrl(url: string | URL): string {
  const example = "such as http://127.0.0.1:8080";
  if (!URL.canParse(String(url))) {
    throw new TypeError(
      `not a URL: ${JSON.stringify(String(url))}; give the service's, ${example}`,
    );
  }
  const parsed = new URL(url);
  if (parsed.protocol !== "http:" && parsed.protocol !== "https:") {
    throw new TypeError(
      `the URL must begin with http:// or https://, not ${parsed.protocol}; ${example}`,
    );
  }
  // Neither is repeated in the message: it may be a secret.
  if (parsed.username !== "" || parsed.password !== "") {
    throw new TypeError("the URL must not hold a user or password; use the headers option");
  }
  if (parsed.search !== "" || parsed.hash !== "") {
    throw new TypeError("the URL must not have a query or a fragment");
  }
  return parsed.href;
}
