/** How the bytes of a session come to the server and back. */
import { type ClientRequest, request as requestHttp } from "node:http";
import { connect as connectHttp2, constants } from "node:http2";
import { request as requestHttps } from "node:https";
import type { LookupFunction, Socket } from "node:net";
import type { Duplex } from "node:stream";
import {
  connectionWindowBytes,
  requestIdHeader,
  sessionContentType,
  sessionPath,
  sessionUpgrade,
  streamWindowBytes,
} from "../protocol/wire.js";
import { NotCarried } from "./carrier.js";
import type { Endpoint } from "./endpoint.js";
import { isPassing } from "./foreign_status.js";
import { isNoHttp2 } from "./http_versions.js";
import type { Reach } from "./reach.js";

/** An open stream of enveloped messages, both ways. It does not keep the process alive. */
export interface SessionSocket {
  readonly duplex: Duplex;
  /** The name under which the server's log has the session. */
  readonly requestId: string | undefined;
  /** Calls `listener` when something on the way wants the client to leave. */
  onLeave(listener: () => void): void;
  /** Closes the connection at once. Idempotent. */
  destroy(): void;
}

/** There are no sessions on the way to this server: use unary calls. */
export class NoSessions extends NotCarried {
  /** Whether there may be some in a moment, as a proxy without a server behind it says. */
  readonly isPassing: boolean;

  constructor(message: string, isPassing = false) {
    super(message);
    this.isPassing = isPassing;
  }
}

// Within which a server is reached.
const connectMs = 10_000;
// Within which it answers; longer, and something on the way holds back what it does not know.
const upgradeMs = 2_500;
const responseMs = 2_500;

/** The server was not reached. */
class NotReached extends Error {}

/** What is there takes no upgrade, and says so. */
class NoUpgrade extends Error {
  readonly status: number;

  constructor(status = 0) {
    super(`no upgrade: status ${status}`);
    this.status = status;
  }
}

/** What it takes to ask for a session: where, and with which headers. */
export interface SessionAddress {
  endpoint: Endpoint;
  headers: Headers | undefined;
  /** Is told how far it came. */
  reach?: Reach;
}

/**
 * Opens a stream: an upgraded HTTP/1.1 connection or, where something on the way does not let it
 * through, a stream of HTTP/2. Rejects with NoSessions where there is neither, with the
 * connection's error where there is no server, and when the signal aborts.
 *
 * The upgrade comes first. Node writes what HTTP/2 is given to the socket when it is back in its
 * event loop, and LangGraph does not let it go there for the steps of a run: the service would begin
 * with their checkpoints when the steps are over. Against a stream of HTTP/2, in one run with medians
 * of 5 rounds: puts at 32 in flight +23 % a second, getTuples +16 %, invokes +5 % (alone +9 %), chats
 * +8 % (alone +2 %), a lone put the same; agent and service together 6 to 21 % less CPU an operation.
 * That alone would not pay for a second carrier; clients without an HTTP/2 of their own, as in
 * Python's standard library, need it. (`npm run bench -- --contenders connect,http2,unary`)
 */
export async function openSessionSocket(
  address: SessionAddress,
  signal: AbortSignal,
): Promise<SessionSocket> {
  try {
    return await openUpgraded(address, signal);
  } catch (error) {
    signal.throwIfAborted();
    // Not to be tried once more: Node's HTTP/2 holds a connection that is not made to the end.
    if (error instanceof NotReached) throw error;
    const versions = address.reach?.versions;
    if (!versions?.isHttp1) {
      try {
        return await openHttp2Stream(address, signal);
      } catch (later) {
        if (!isNoHttp2(later)) throw later;
        versions?.http2Refused();
      }
    }
    const passes = error instanceof NoUpgrade && isPassing(error.status);
    throw new NoSessions(`neither an upgrade nor HTTP/2: ${(error as Error).message}`, passes);
  }
}

/** On an upgraded HTTP/1.1 connection. */
export function openUpgraded(
  { endpoint, headers, reach }: SessionAddress,
  signal: AbortSignal,
): Promise<SessionSocket> {
  const url = sessionUrl(endpoint.baseUrl);
  const request = url.protocol === "https:" ? requestHttps : requestHttp;
  return new Promise((resolve, reject) => {
    const asking: ClientRequest = request(url, {
      agent: false,
      headers: {
        ...Object.fromEntries(headers ?? []),
        connection: "upgrade",
        upgrade: sessionUpgrade,
      },
      signal,
      ...endpoint.connecting(),
    });
    let reached = false;
    const giveUp = (why: string) => asking.destroy(new Error(why));
    let cancelTimer = startTimer(connectMs, () => giveUp(`no connection within ${connectMs} ms`));
    asking.on("close", () => cancelTimer());
    asking.on("socket", (socket) => {
      socket.unref();
      socket.once("connect", () => {
        reached = true;
        reach?.came("connected");
        cancelTimer();
        cancelTimer = startTimer(upgradeMs, () => giveUp("no answer to an upgrade"));
      });
    });
    asking.on("upgrade", (response, duplex, head) => {
      cancelTimer();
      const socket = duplex as Socket;
      if (response.headers.upgrade?.toLowerCase() !== sessionUpgrade) {
        socket.destroy();
        reject(new Error("no upgrade: to something else"));
        return;
      }
      reach?.came("understood");
      socket.setNoDelay(true);
      socket.unshift(head);
      resolve({
        duplex: socket,
        requestId: response.headers[requestIdHeader] as string | undefined,
        onLeave: () => {},
        destroy: () => socket.destroy(),
      });
    });
    asking.on("response", (response) => {
      reach?.came("answered");
      response.destroy();
      reject(new NoUpgrade(response.statusCode));
    });
    asking.on("error", (error) => {
      reject(reached ? error : new NotReached(error.message, { cause: error }));
    });
    asking.end();
  });
}

/** On a stream of HTTP/2, the only one of its connection. */
export function openHttp2Stream(
  { endpoint, headers, reach }: SessionAddress,
  signal: AbortSignal,
): Promise<SessionSocket> {
  const url = sessionUrl(endpoint.baseUrl);
  return new Promise((resolve, reject) => {
    const http2 = connectHttp2(url.origin, {
      settings: { initialWindowSize: streamWindowBytes },
      ...endpoint.http2Options(),
    });
    http2.unref();
    let cancelTimer = startTimer(connectMs, () => fail(new Error("no connection")));
    const fail = (error: unknown) => {
      cancelTimer();
      reject(error);
      http2.destroy();
    };
    const onAbort = () => fail(signal.reason);
    signal.addEventListener("abort", onAbort);
    http2.on("error", fail);
    http2.on("close", () => fail(new Error("the connection was closed")));
    http2.once("remoteSettings", () => {
      reach?.came("understood");
      reach?.versions.http2Came();
    });
    http2.once("connect", () => {
      reach?.came("connected");
      http2.setLocalWindowSize(connectionWindowBytes);
      cancelTimer();
      cancelTimer = startTimer(responseMs, () => fail(new NoSessions("no answer")));
    });
    const duplex = http2.request({
      ...Object.fromEntries(headers ?? []),
      [constants.HTTP2_HEADER_METHOD]: "POST",
      [constants.HTTP2_HEADER_PATH]: url.pathname,
      "content-type": sessionContentType,
      "connect-protocol-version": "1",
    });
    duplex.on("error", fail);
    duplex.on("close", () => fail(new Error("the stream was closed")));
    duplex.on("response", (response) => {
      cancelTimer();
      signal.removeEventListener("abort", onAbort);
      // A server of an earlier version, or a proxy that knows no streams.
      const status = Number(response[":status"]);
      if (status !== 200 || response["content-type"] !== sessionContentType) {
        fail(new NoSessions(`no sessions here: status ${status}`, isPassing(status)));
        return;
      }
      resolve({
        duplex,
        requestId: response[requestIdHeader] as string | undefined,
        onLeave: (listener) => http2.on("goaway", listener),
        destroy: () => http2.destroy(),
      });
    });
  });
}

function sessionUrl(baseUrl: string): URL {
  const url = new URL(baseUrl);
  url.pathname = url.pathname.replace(/\/$/, "") + sessionPath;
  return url;
}

/**
 * Calls `then` after that time, unless the returned function was called. What arrived in time is
 * read first: Node's timers come before it in an agent that was busy. Keeps no process alive.
 */
export function startTimer(ms: number, then: () => void): () => void {
  let cancelled = false;
  const read = () => setImmediate(() => cancelled || then());
  const timer = setTimeout(read, ms).unref();
  return () => {
    cancelled = true;
    clearTimeout(timer);
  };
}

/**
 * Resolves names as `lookup` does, but begins with another of several addresses each time. Node
 * tries them in turn (autoSelectFamily), always in the resolver's order: without this all agents
 * would stay with the first that lives, and never come back to one that returned.
 */
export function turnOver(lookup: LookupFunction): LookupFunction {
  return (hostname, options, callback) =>
    lookup(hostname, options, (error, addresses, family) => {
      if (error || !Array.isArray(addresses)) {
        callback(error, addresses, family);
        return;
      }
      const first = Math.floor(Math.random() * addresses.length);
      callback(null, [...addresses.slice(first), ...addresses.slice(0, first)]);
    });
}
