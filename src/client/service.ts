import { validateHeaderName, validateHeaderValue } from "node:http";
import type { ConnectError, Transport } from "@connectrpc/connect";
import { type Service, withFallback } from "./carrier.js";
import { ClientSession } from "./client_session.js";
import { extendPuts } from "./extending_carrier.js";
import { checkInteger } from "./options.js";
import { createSessionCarrier } from "./session_carrier.js";
import { UrlTransport } from "./transport.js";
import { createUnaryCarrier } from "./unary_carrier.js";

/** What the service is asked with. */
export interface ServiceOptions {
  /** Sent with every call, for example `{ authorization: "Bearer …" }`. */
  headers?: Record<string, string> | Headers;
  /**
   * Up to how many bytes of the values put last are kept in memory, so that a large value that
   * has most of the one before it in its channel (the messages of a conversation) is not sent again
   * as a whole: the service makes it of the stored one and of what is new. Values below 16 KiB
   * or above an eighth of this, puts under a lease and calls that are not on a session are always
   * sent whole. Default 32 MiB; 0 sends every value whole.
   */
  valueCacheBytes?: number;
}

/** The default of `valueCacheBytes`. */
export const defaultValueCacheBytes = 32 * 1024 * 1024;

/** The service, and the end of what was opened for it. */
export interface OpenService {
  readonly service: Service;
  /** Ends its sessions at once; what is under way on them fails with the error. Idempotent. */
  abort(error: ConnectError): void;
  /** The error of a call, with the address and the likely cause if it did not reach the service. */
  explain(error: unknown, deadline: number): Promise<unknown>;
}

/**
 * Asks the service over a transport: on sessions where it has them, else by RPCs. Throws a TypeError
 * naming the option if its value is not allowed.
 */
export function openService(transport: Transport, options: ServiceOptions): OpenService {
  const { valueCacheBytes = defaultValueCacheBytes } = options;
  checkInteger("valueCacheBytes", valueCacheBytes, 0);
  const headers = toHeaders(options.headers);
  const unary = createUnaryCarrier(transport, headers);
  const explain: OpenService["explain"] =
    transport instanceof UrlTransport
      ? (error, deadline) => transport.reach.explain(error, deadline)
      : async (error) => error;
  const wire = transport instanceof UrlTransport ? transport.sessions : undefined;
  if (!wire) return { service: unary, abort: () => {}, explain };
  const { baseUrl, lookup, reach, maxRequestBytes } = wire;
  const open = (signal: AbortSignal) => wire.open({ baseUrl, headers, lookup, reach }, signal);
  const sessions = createSessionCarrier(() => new ClientSession(open, maxRequestBytes));
  const carrier = extendPuts(withFallback(sessions.carrier, unary), valueCacheBytes);
  return { service: { ...unary, ...carrier }, abort: sessions.abort, explain };
}

/** Those that HTTP/2 has no place for. */
const ofConnection =
  /^(connection|host|keep-alive|proxy-connection|te|transfer-encoding|upgrade)$/i;

/**
 * The headers, each of which can be sent. Throws a TypeError naming the one that cannot, without its
 * value, which is a secret more often than not and which Node's own errors repeat.
 */
function toHeaders(given: ServiceOptions["headers"]): Headers | undefined {
  if (given === undefined || given === null) return undefined;
  if (typeof given !== "object") {
    throw new TypeError('headers must be an object, such as { authorization: "…" }');
  }
  const headers = new Headers();
  const entries = Symbol.iterator in given ? given : Object.entries(given);
  for (const [name, value] of entries) {
    validateHeaderName(name);
    if (ofConnection.test(name)) {
      throw new TypeError(`headers: "${name}" belongs to the connection and cannot be set`);
    }
    try {
      if (typeof value !== "string") throw new TypeError();
      headers.append(name, value);
      validateHeaderValue(name, headers.get(name) as string);
    } catch {
      throw new TypeError(
        `headers: the value of "${name}" must be text without line breaks and control characters`,
      );
    }
  }
  return headers;
}
