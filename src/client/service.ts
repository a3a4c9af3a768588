import type { ConnectError, Transport } from "@connectrpc/connect";
import { checkInteger } from "./calls.js";
import { type Service, withFallback } from "./carrier.js";
import { ClientSession } from "./client_session.js";
import { extendPuts } from "./extending_carrier.js";
import { createSessionCarrier } from "./session_carrier.js";
import { UrlTransport } from "./transport.js";
import { createUnaryCarrier } from "./unary_carrier.js";

/** What the service is asked with. */
export interface ServiceOptions {
  /** Sent with every call, for example `{ authorization: "Bearer …" }`. */
  headers?: Record<string, string> | Headers;
  /**
   * Up to how many bytes of the values put last are kept in memory, so that a large value that
   * begins as the one before it in its channel (the messages of a conversation) is not sent again
   * as a whole: the service makes it of the stored one and of what was added. Values below 16 KiB
   * or above an eighth of this, puts under a lease and calls that are not on a session are always
   * sent whole. Default 32 MiB; 0 sends every value whole.
   */
  valueCacheBytes?: number;
}

/** The service, and the end of what was opened for it. */
export interface OpenService {
  readonly service: Service;
  /** Ends its sessions at once; what is under way on them fails with the error. Idempotent. */
  abort(error: ConnectError): void;
}

/**
 * Asks the service over a transport: on sessions where it has them, else by RPCs. Throws a TypeError
 * naming the option if its value is not allowed.
 */
export function openService(transport: Transport, options: ServiceOptions): OpenService {
  const { valueCacheBytes = 32 * 1024 * 1024 } = options;
  checkInteger("valueCacheBytes", valueCacheBytes, 0);
  const headers = options.headers === undefined ? undefined : new Headers(options.headers);
  const unary = createUnaryCarrier(transport, headers);
  const wire = transport instanceof UrlTransport ? transport.sessions : undefined;
  if (!wire) return { service: unary, abort: () => {} };
  const { baseUrl, lookup, maxRequestBytes } = wire;
  const open = (signal: AbortSignal) => wire.open({ baseUrl, headers, lookup }, signal);
  const sessions = createSessionCarrier(() => new ClientSession(open, maxRequestBytes));
  const carrier = extendPuts(withFallback(sessions.carrier, unary), valueCacheBytes);
  return { service: { ...unary, ...carrier }, abort: sessions.abort };
}
