/** From an address and options to the transport that is used for it. */
import { lookup as dnsLookup } from "node:dns";
import type { Agent } from "node:http";
import type { LookupFunction } from "node:net";
import type { Transport } from "@connectrpc/connect";
import {
  compressionGzip,
  createConnectTransport,
  createGrpcTransport,
  createGrpcWebTransport,
} from "@connectrpc/connect-node";
import { defaultMessageBytes } from "../protocol/wire.js";
import { Endpoint, type TlsOptions } from "./endpoint.js";
import { Exchange, Http2Connections } from "./http2_exchange.js";
import { Reach } from "./reach.js";
import { openSessionSocket, turnOver } from "./session_socket.js";

/** How calls travel. All three reach the same service on the same port. */
export interface TransportOptions {
  /**
   * The wire protocol. "connect" (the default) costs the agent the least CPU; "grpc" and
   * "grpc-web" are for proxies that know only those.
   */
  protocol?: "connect" | "grpc" | "grpc-web";
  /**
   * Send JSON instead of binary messages, to read them on the way. Only with "connect". Not
   * for large values: base64 takes the agent's CPU 0.1 to 0.2 s for each MiB.
   */
  json?: boolean;
  /**
   * Carry the saver's five operations on a long-lived connection (two, when there are lists or
   * requests of more than 256 KiB), which costs both sides a fraction of the CPU. Where something
   * on the way does not let an HTTP/1.1 connection be upgraded for it, that is a stream of HTTP/2;
   * where there is neither, calls are made one by one all the same. Default true; only with
   * "connect" and without `json`.
   */
  session?: boolean;
  /**
   * Compress requests of 1 KiB and more with gzip, and ask for answers that are (which a service
   * gives that was started with `--compression`): for a network that is slow or paid for by the
   * byte. 47 KB of messages become 16 KB, which takes 1 ms of CPU, and 0.2 ms to read. Turns
   * `session` off. Default false.
   */
  compression?: boolean;
  /**
   * The largest request, in bytes as encoded; a larger one fails with RESOURCE_EXHAUSTED
   * before anything is sent (the error calls the limit writeMaxBytes). Default 64 MiB, which
   * is the service's own default: raise both.
   */
  maxRequestBytes?: number;
  /**
   * Resolves the service's host name, as Node's `dns.lookup` does, which is the default. Of several
   * addresses each connection begins with another one; one that does not answer within a quarter of
   * a second costs that.
   */
  lookup?: LookupFunction;
  /** Which authorities to trust, and the certificate to show, for `https:` URLs. */
  tls?: TlsOptions;
}

/** How sessions are opened beside the RPCs of a transport. */
export interface SessionOptions {
  endpoint: Endpoint;
  reach: Reach;
  /** The largest request on one, in bytes as encoded. */
  maxRequestBytes: number;
  /** Opens the stream of one: openSessionSocket but for measurements. */
  open: typeof openSessionSocket;
}

// A peer that vanished without a word (a lost node, a dropped NAT entry) answers neither calls
// nor pings. Without pings each call would wait out its deadline until TCP gives up after some
// fifteen minutes; with them the session is replaced and the calls are retried, after 12 s. Not
// sooner, as on our own sessions: a ping waits behind an upload, which connect-node does not count as
// a sign of life (1 MB at 125 kB/s takes 8 s).
const PING_INTERVAL_MS = 2_000;
const PING_TIMEOUT_MS = 10_000;

// Node counts what a session has yet to send, and from 10 MB on refuses every new stream with
// ENHANCE_YOUR_CALM: one upload that the service refused and did not read made the session
// useless for good. The most that Node takes, for what is counted are the agent's own messages,
// which it holds in memory anyway.
const MAX_SESSION_MEMORY_MB = 2 ** 32 - 1;

// A connection of HTTP/1.1 that has rested is not used again, as a server or a proxy may close it at
// that moment, and nothing tells whether it still lives. Node's own server closes after 5 s.
const REST_MS = 4_000;
// As many as a connection of HTTP/2 has streams.
const MAX_CONNECTIONS = 256;

/**
 * RPCs on one connection of HTTP/2 (`https:` negotiates it, others have it with prior knowledge),
 * which the first call opens and which keeps no process alive when it is idle. Where HTTP/2 does not
 * get through they go over HTTP/1.1, a connection each at a time; gRPC, which needs HTTP/2, fails.
 */
export class UrlTransport implements Transport {
  readonly unary: Transport["unary"];
  readonly stream: Transport["stream"];
  /** What is known of the way to the URL. */
  readonly reach: Reach;
  /** Set where the options allow sessions. */
  readonly sessions: SessionOptions | undefined;
  readonly #connections: Http2Connections;
  readonly #agent: Agent;

  /** Throws a TypeError with what is allowed if the URL or an option is not. */
  constructor(url: string | URL, options: TransportOptions) {
    const { protocol = "connect", json = false, session = true, compression = false } = options;
    const { maxRequestBytes = defaultMessageBytes, lookup = dnsLookup as LookupFunction } = options;
    const endpoint = new Endpoint(url, turnOver(lookup), options.tls);
    const { baseUrl } = endpoint;
    if (typeof json !== "boolean") throw new TypeError(`json must be true or false, not ${json}`);
    if (typeof compression !== "boolean") {
      throw new TypeError(`compression must be true or false, not ${compression}`);
    }
    if (json && protocol !== "connect") {
      throw new TypeError(`json needs the protocol "connect", not "${protocol}"`);
    }
    if (!Number.isInteger(maxRequestBytes) || maxRequestBytes < 1 || maxRequestBytes >= 2 ** 32) {
      throw new TypeError(
        `maxRequestBytes must be a whole number from 1 to 4294967295, not ${maxRequestBytes}`,
      );
    }
    const create = transports[protocol];
    if (!create) {
      throw new TypeError(
        `protocol must be "connect", "grpc" or "grpc-web", not ${JSON.stringify(protocol)}`,
      );
    }
    const reach = new Reach(endpoint, protocol === "grpc");
    this.reach = reach;
    this.#connections = new Http2Connections(
      baseUrl,
      { pingIntervalMs: PING_INTERVAL_MS, pingTimeoutMs: PING_TIMEOUT_MS },
      { maxSessionMemory: MAX_SESSION_MEMORY_MB, ...endpoint.http2Options() },
      reach,
    );
    const common = {
      baseUrl,
      useBinaryFormat: !json,
      // Not left to the service alone: connect-node goes on with an upload that was answered
      // before its end, and keeps its bytes (75 MB for each refused put of 70 MiB).
      writeMaxBytes: maxRequestBytes,
      ...(compression
        ? { acceptCompression: [compressionGzip], sendCompression: compressionGzip }
        : { acceptCompression: [] }),
    };
    const over = (sessionManager: Exchange) =>
      create({ ...common, httpVersion: "2", sessionManager });
    this.#agent = endpoint.http1Agent({
      keepAlive: true,
      timeout: REST_MS,
      maxSockets: MAX_CONNECTIONS,
    });
    const overHttp1 = createHttp1[protocol]?.({
      ...common,
      httpVersion: "1.1",
      nodeOptions: { agent: this.#agent },
    });
    this.unary = async (...call) => {
      if (!overHttp1 || !reach.versions.isHttp1) {
        const exchange = new Exchange(this.#connections, reach);
        try {
          return await over(exchange).unary(...call);
        } catch (error) {
          if (!exchange.foundNoHttp2(error) || !overHttp1) throw exchange.toError(error);
        } finally {
          exchange.end();
        }
      }
      return reach.overHttp1(() => overHttp1.unary(...call));
    };
    this.stream = async (method, signal, timeoutMs, header, input, contextValues) => {
      const call = [timeoutMs, header] as const;
      // What is sent is one message for all of our streams, and may have to be sent twice.
      const sent = await collect(input);
      if (!overHttp1 || !reach.versions.isHttp1) {
        const exchange = new Exchange(this.#connections, reach);
        try {
          const response = over(exchange).stream(
            method,
            signal,
            ...call,
            repeat(sent),
            contextValues,
          );
          // After connect-node's own listener, which tells the server.
          signal?.addEventListener("abort", () => exchange.end(), { once: true });
          const { message, ...rest } = await response;
          return { ...rest, message: exchange.read(message) };
        } catch (error) {
          exchange.end();
          if (!exchange.foundNoHttp2(error) || !overHttp1) throw exchange.toError(error);
        }
      }
      return reach.overHttp1(async () => {
        const open = overHttp1.stream(method, signal, ...call, repeat(sent), contextValues);
        const { message, ...rest } = await open;
        return { ...rest, message: reach.readHttp1(message) };
      });
    };
    this.sessions =
      session && protocol === "connect" && !json && !compression
        ? { endpoint, reach, maxRequestBytes, open: openSessionSocket }
        : undefined;
  }

  /** Closes the connections at once, and every call on them. Idempotent. */
  close(): void {
    this.#connections.abort();
    this.#agent.destroy();
  }
}

async function collect<Message>(messages: AsyncIterable<Message>): Promise<Message[]> {
  const all: Message[] = [];
  for await (const message of messages) all.push(message);
  return all;
}

async function* repeat<Message>(messages: readonly Message[]): AsyncGenerator<Message> {
  yield* messages;
}

type OptionsOf<Create extends (options: never) => Transport> = Parameters<Create>[0];

const transports: Record<
  NonNullable<TransportOptions["protocol"]>,
  (
    options: OptionsOf<typeof createConnectTransport> & OptionsOf<typeof createGrpcTransport>,
  ) => Transport
> = {
  connect: createConnectTransport,
  grpc: createGrpcTransport,
  "grpc-web": createGrpcWebTransport,
};

/** gRPC has its status in trailers, of which HTTP/1.1 has none here. */
const createHttp1 = {
  connect: createConnectTransport,
  grpc: undefined,
  "grpc-web": createGrpcWebTransport,
};
