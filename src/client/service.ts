import type { ConnectError, Transport } from "@connectrpc/connect";
import { withSpans } from "./call_span.js";
import type { Service } from "./carrier.js";
import { withFallback } from "./carrier.js";
import { ClientSession } from "./client_session.js";
import { Credential, type TokenSource } from "./credential.js";
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
   * An API key or a token, sent with every call as `authorization: Bearer …`; or a function that gives
   * one, for tokens that end. It is asked when the first call or session begins, and anew when a
   * session is to be followed by another and when the service answers UNAUTHENTICATED, whereupon the
   * call is tried once more; its answer serves all calls in between. An error that it throws is the
   * call's.
   */
  token?: TokenSource;
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
  /** What its calls are sent with. */
  readonly credential: Pick<Credential, "turn" | "renew">;
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
  const credential = new Credential(options.headers, options.token);
  const unary = createUnaryCarrier(transport, credential);
  const explain: OpenService["explain"] =
    transport instanceof UrlTransport
      ? (error, deadline) => transport.reach.explain(error, deadline)
      : async (error) => error;
  const wire = transport instanceof UrlTransport ? transport.sessions : undefined;
  const attributes =
    transport instanceof UrlTransport ? transport.attributes : { "rpc.system.name": "connectrpc" };
  if (!wire) {
    return { service: withSpans(unary, attributes), credential, abort: () => {}, explain };
  }
  const { endpoint, reach, maxRequestBytes } = wire;
  const sessions = createSessionCarrier((isNext) => {
    const open = async (signal: AbortSignal) => {
      const headers = await (isNext ? credential.nextHeaders() : credential.headers());
      return wire.open({ endpoint, headers, reach }, signal);
    };
    return new ClientSession(open, maxRequestBytes);
  });
  credential.onRenew = () => sessions.leave();
  const carrier = extendPuts(withFallback(sessions.carrier, unary), valueCacheBytes);
  const service = withSpans({ ...unary, ...carrier }, attributes);
  return { service, credential, abort: sessions.abort, explain };
}
