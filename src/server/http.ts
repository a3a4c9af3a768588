import * as http from "node:http";
import * as http2 from "node:http2";
import * as net from "node:net";
import type { Log } from "../log.js";
import { partingMs } from "../protocol/wire.js";
import { atTime } from "./at_time.js";
import { createBacklog, type Sender } from "./backlog.js";
import { createCors } from "./cors.js";
import { awaitHello, type Language, refusePlain } from "./hello.js";
import { defaultLimits, type Limits, longestMs } from "./limits.js";
import { countSpoken, type ListenerMeasures, noCuts, type Speaking } from "./listener_measures.js";
import { mostConnections } from "./open_files.js";
import {
  closeWhenLeft,
  endWhenAnswered,
  endWhenAnswered1,
  hurry,
  type Parting,
} from "./parting.js";
import { expiryOf, shareCertificate, startTls, type TlsFiles } from "./tls.js";
import { trackAnswer, type Writer, watchUnread } from "./unread.js";
import { createWebGuard } from "./web_guard.js";

/** A request over either version of HTTP. */
export type NodeRequest = http.IncomingMessage | http2.Http2ServerRequest;
/** Its response. */
export type NodeResponse = http.ServerResponse | http2.Http2ServerResponse;

/** What `startListener` takes. */
export interface ListenerOptions {
  host: string;
  /** 0 lets the system choose a free one; undefined: none, only the socket. */
  port: number | undefined;
  /** The path of a socket of Unix, without TLS, besides the port. */
  socketPath?: string | undefined;
  /** Has the port speak TLS. The files are read anew when they change. */
  tls?: TlsFiles | undefined;
  /** Answers every request that is not a CORS preflight. */
  handler: (request: NodeRequest, response: NodeResponse) => void | Promise<void>;
  /**
   * Takes a connection over that an HTTP/1.1 client asks to upgrade, and returns true; or returns
   * false, and the request is answered as if it had not asked. What is taken over is asked to end
   * by its taker: a drain waits for it.
   */
  upgrade?: (request: http.IncomingMessage, socket: net.Socket) => boolean;
  /** The web origins whose pages may call; "*" is all of them. */
  corsOrigins?: readonly string[];
  /** The names it is asked for by, besides those of loopback: see createWebGuard. */
  allowedHosts?: readonly string[];
  limits?: Partial<Limits>;
  log: Log;
}

/** A port, or a socket of Unix, or both, that are being listened on. */
export interface Listener {
  /** 0 where there is only the socket. */
  readonly port: number;
  /** How many connections are open. */
  connections(): number;
  /** What its connections do and did, to be told to whoever watches the server. */
  measures(): ListenerMeasures;
  /** Asks the client of every connection that there is to open another one: what is under way goes on. */
  retire(): void;
  /**
   * Stops accepting, lets what is under way finish (HTTP/2 clients get a GOAWAY, HTTP/1.1
   * clients `Connection: close`), and resolves when every connection is closed. Those still
   * open after `timeoutMs` are cut. Never rejects. Calling it again is how to cut earlier.
   */
  drain(timeoutMs: number): Promise<void>;
}

interface Connection extends Writer, Sender, Speaking {
  /** Where there is TLS what is spoken inside of it, once there is that. */
  socket: net.Socket;
  /** HTTP/1.1 responses under way. */
  readonly responses: Set<http.ServerResponse>;
  retiring: boolean;
}

/** Far above unreadBytes, which is where we end a connection that has more. */
const maxSessionMemory = 1024;

/**
 * How long before its client's certificate ends the client of a connection is asked to open another,
 * if there is so much time.
 */
const beforeExpiryMs = 10_000;

/**
 * Listens on one port for HTTP/1.1 and for HTTP/2 (without TLS with prior knowledge). Rejects with a
 * sentence for the operator when the port cannot be had, or the files of TLS cannot be used.
 *
 * Nothing that a client sends or fails to send ends the process. A handler that writes
 * faster than its client reads is held back by `write` and `drain`, as always in Node.
 */
export async function startListener(options: ListenerOptions): Promise<Listener> {
  const { host, port, socketPath, handler, log } = options;
  const limits = { ...defaultLimits, ...options.limits };
  const most = mostConnections(limits.connections);
  const answerCors = createCors(options.corsOrigins ?? []);
  const refusal = createWebGuard(host, options.allowedHosts ?? [], options.corsOrigins ?? []);
  const connections = new Map<net.Socket, Connection>();
  const cuts = noCuts();
  const parting: Parting = { limitMs: partingMs, streams: new Set() };
  const tls = options.tls && (await startTls(options.tls, limits.handshakes, log));

  async function answer(request: NodeRequest, response: NodeResponse): Promise<void> {
    response.on("error", (error: Error) => log.debug({ err: error }, "a response failed"));
    response.on("close", () => tellWriter(response));
    try {
      if (answerCors(request, response)) return;
      const refused = refusal(request);
      if (refused === undefined) {
        await handler(request, response);
        return;
      }
      log.info({ refused, path: request.url?.split("?", 1)[0] }, "a page's request was refused");
      response.writeHead(403, { "content-type": "text/plain; charset=utf-8" });
      response.end(`${refused}\n`);
    } catch (error) {
      // connectNodeAdapter throws for a Host that makes no URL, or for none (HTTP/1.0).
      const status = hasHost(request) ? 500 : 400;
      const fields = { err: error, status };
      if (status === 500) log.error(fields, "a handler failed");
      else log.debug(fields, "a request could not be handled");
      if (!response.headersSent) response.writeHead(status);
      response.end();
    }
  }

  // Neither of these two servers listens. They get their sockets from the third.
  const http1 = http.createServer({
    maxHeaderSize: limits.headerBytes,
    headersTimeout: limits.headersMs,
    requestTimeout: limits.requestMs,
    keepAliveTimeout: limits.keepAliveMs,
    connectionsCheckingInterval: Math.min(1_000, limits.headersMs),
  });
  // Node drops further ones without a word (of those that a request with an Upgrade is read again
  // from, the Content-Length); how many they can be, headerBytes bounds.
  http1.maxHeadersCount = 0;
  // Node begins to enforce headersTimeout and requestTimeout when a server listens, with a
  // listener of its own on this event.
  http1.emit("listening");
  http1.timeout = limits.unreadMs;
  http1.on("timeout", (socket) => {
    // Or nothing is under way on it. What is waited for, of us or of a client, has other limits.
    const idle = connections.get(socket)?.responses.size === 0;
    if (idle || socket.writableLength > 0) socket.destroy();
  });
  http1.on("request", (request, response) => {
    const { socket } = request;
    // Of one that was cut Node still hands on what it had read.
    if (socket.destroyed) return;
    const connection = connections.get(socket);
    if (connection) trackResponse(connection, response);
    if (connection && connection.responses.size > limits.streams) {
      cuts.pipelined++;
      log.warn({ limit: limits.streams }, "cut a connection that does not wait for its answers");
      socket.destroy();
      return;
    }
    endWhenAnswered1(request, response, parting);
    void answer(request, response);
  });
  http1.on("upgrade", (request, stream, head) => {
    const socket = stream as net.Socket;
    const connection = connections.get(socket);
    if (!connection) return;
    // It did not wait for its answers: it gets those and is to ask again.
    if (connection.responses.size > 0) {
      retire(connection);
      return;
    }
    socket.unshift(head);
    if (refusal(request) === undefined) {
      connection.upgraded = options.upgrade?.(request, socket) ?? false;
    }
    if (connection.upgraded) {
      // Node counts as activity what is taken of a write. One that is ours is not ended when nobody
      // has anything to say.
      socket.setTimeout(limits.unreadMs, () => {
        if (socket.writableLength > 0) socket.destroy();
      });
      return;
    }
    // Whoever listens for this event has every request with an Upgrade, also those of clients that
    // would like HTTP/2 and take HTTP/1.1 (curl --http2, Java). It is read again without it.
    socket.unshift(headWithoutUpgrade(request));
    http1.emit("connection", socket);
  });

  const http2Server = http2.createServer({
    settings: {
      initialWindowSize: limits.streamWindowBytes,
      maxConcurrentStreams: limits.streams,
      maxHeaderListSize: limits.headerBytes,
    },
    // In MB. Node's own 10 is exceeded by ten unread answers of 1 MB, and then it refuses new
    // streams (ENHANCE_YOUR_CALM) and, after a hundred of them, drops the connection.
    maxSessionMemory,
  });
  http2Server.on("request", (request, response) => {
    endWhenAnswered(request, parting);
    void answer(request, response);
  });

  const trackBacklog = createBacklog(limits, cuts, log);

  /** What is told of a connection whatever it speaks; of one with TLS once more, of what is inside. */
  function follow(connection: Connection, socket: net.Socket): void {
    connections.delete(connection.socket);
    connection.socket = socket;
    connections.set(socket, connection);
    // An HTTP/2 session's errors arrive here too. grpc-go's client causes one whenever it
    // leaves: nghttp2 takes the stream id in its GOAWAY for a protocol error. Hence debug.
    socket.on("error", (error) => log.debug({ err: error }, "a connection failed"));
    socket.on("close", () => connections.delete(socket));
    closeWhenLeft(socket);
  }

  function speak(connection: Connection, language: Language): void {
    const { socket } = connection;
    connection.spoken = true;
    if (language !== "http2") {
      // Of TLS where there is none the parser says 400, which is what a client of TLS takes for that.
      if (language === "tls") log.info("a client speaks TLS where there is none");
      http1.emit("connection", socket);
      return;
    }
    http2Server.once("session", (session) => {
      connection.session = session;
      shareCertificate(socket, session);
      // Before who answers.
      session.prependListener("stream", (stream) => {
        trackAnswer(connection, stream);
        trackBacklog(connection, stream);
      });
      session.setLocalWindowSize(limits.connectionWindowBytes);
    });
    // Of a client that negotiated nothing Node would not believe that it speaks HTTP/2.
    if ("alpnProtocol" in socket) socket.alpnProtocol = "h2";
    http2Server.emit("connection", socket);
  }

  function endWithCertificate(connection: Connection): void {
    const { socket } = connection;
    const expiry = expiryOf(socket);
    if (expiry === undefined) return;
    const beforeMs = Math.min(beforeExpiryMs, (expiry - Date.now()) / 2);
    const cancelNotice = atTime(expiry - beforeMs, () => retire(connection, true));
    const cancelEnd = atTime(expiry, () => {
      log.info("closed a connection whose client's certificate has ended");
      socket.destroy();
    });
    socket.on("close", () => {
      cancelNotice();
      cancelEnd();
    });
  }

  function accept(socket: net.Socket, withTls: typeof tls): void {
    // Not server.maxConnections: a cluster's worker gives what is above it back to the primary,
    // which offers it again at once and without end.
    if (connections.size >= most) {
      cuts.connections++;
      log.warn({ limit: most }, "too many connections");
      socket.destroy();
      return;
    }
    const connection: Connection = {
      socket,
      responses: new Set(),
      answers: new Map(),
      looksAbove: 0,
      bytesWritten: 0,
      since: performance.now(),
      spoken: false,
      backlog: 0,
      small: { frames: 0, since: performance.now() },
      upgraded: false,
      retiring: false,
    };
    const age = limits.ageMs && limits.ageMs * (0.9 + Math.random() * 0.2);
    const timer = age ? setTimeout(() => retire(connection, true), age).unref() : undefined;
    const lifeMs = Math.min(2 * limits.ageMs, longestMs);
    const end = age ? setTimeout(() => cutOld(connection, cuts, log), lifeMs).unref() : undefined;
    const hello = setTimeout(() => connection.socket.destroy(), limits.helloMs);
    socket.on("close", () => {
      clearTimeout(timer);
      clearTimeout(end);
      clearTimeout(hello);
    });
    follow(connection, socket);
    const speakNow = (language: Language) => {
      clearTimeout(hello);
      if (!connection.socket.destroyed) speak(connection, language);
    };
    if (!withTls) {
      awaitHello(socket, speakNow);
      return;
    }
    awaitHello(socket, (language) => {
      if (language !== "tls") {
        log.info("a client does not speak TLS where it is wanted");
        refusePlain(socket, language);
        return;
      }
      withTls.secure(socket, (secured) => {
        follow(connection, secured);
        endWithCertificate(connection);
        // In the turn of the handshake Node would lose a refusal that is followed by the end.
        awaitHello(secured, (inside) => setImmediate(speakNow, inside));
      });
    });
  }

  const servers: net.Server[] = [];
  const serve = async (where: string | { host: string; port: number }, withTls: typeof tls) => {
    const server = net.createServer({
      noDelay: true,
      keepAlive: true,
      keepAliveInitialDelay: 30_000,
    });
    server.on("connection", (socket) => accept(socket, withTls));
    await (typeof where === "string"
      ? listenOnPath(server, where)
      : listen(server, where.host, where.port));
    server.on("error", (error) => log.error({ err: error }, "a connection could not be accepted"));
    servers.push(server);
    return server.address();
  };
  let bound: net.AddressInfo | undefined;
  try {
    if (port !== undefined) bound = (await serve({ host, port }, tls)) as net.AddressInfo;
    if (socketPath !== undefined) await serve(socketPath, undefined);
  } catch (error) {
    tls?.stop();
    http1.close();
    for (const server of servers) server.close();
    throw error;
  }
  const unread = watchUnread(() => connections.values(), limits, cuts, log);

  async function closeServers(): Promise<void> {
    // It counts a connection as closed somewhat earlier than the connection's own event.
    await Promise.all(servers.map((server) => new Promise((resolve) => server.close(resolve))));
    const closes = [...connections.keys()].map(
      (socket) => new Promise((resolve) => socket.once("close", resolve)),
    );
    await Promise.all(closes);
    unread.stop();
    tls?.stop();
    http1.close(); // ends the timer that "listening" started
  }

  let closed: Promise<void> | undefined;
  return {
    port: bound?.port ?? 0,
    connections: () => connections.size,
    measures: () => ({
      connections: countSpoken(connections.values()),
      connectionsLimit: most,
      unread: unread.load(),
      unreadBytesLimit: limits.unreadBytesInAll,
      cuts,
    }),
    retire() {
      for (const connection of connections.values()) retire(connection, true);
    },
    async drain(timeoutMs) {
      closed ??= closeServers();
      for (const connection of connections.values()) retire(connection);
      hurry(parting);
      if (!(await settlesWithin(closed, timeoutMs))) {
        log.warn({ connections: connections.size }, "cutting connections that did not finish");
        // Not session.destroy: whatever its code, it resets streams with NO_ERROR, on which a
        // call of connect-node never settles (connectrpc/connect-es#1678).
        for (const socket of connections.keys()) socket.destroy();
      }
      await closed;
    },
  };
}

/** The request line and the headers as they came, but for the one that asks to upgrade. */
function headWithoutUpgrade({
  method,
  url,
  httpVersion,
  rawHeaders,
}: http.IncomingMessage): Buffer {
  let head = `${method} ${url} HTTP/${httpVersion}\r\n`;
  for (let i = 0; i < rawHeaders.length; i += 2) {
    if (rawHeaders[i]?.toLowerCase() === "upgrade") continue;
    head += `${rawHeaders[i]}: ${rawHeaders[i + 1]}\r\n`;
  }
  return Buffer.from(`${head}\r\n`, "latin1");
}

function hasHost(request: NodeRequest): boolean {
  const host = "authority" in request ? request.authority : request.headers.host;
  return host !== undefined && URL.canParse(`http://${host}`);
}

/**
 * Ends the wait of a writer whose reader stalled and then went away. Node 20 tells such a
 * writer nothing but "close" (later ones fail its write), and connectNodeAdapter waits for
 * "drain" or "error": without this, a streaming handler stays suspended for ever, with the
 * message that it holds.
 */
function tellWriter(response: NodeResponse): void {
  if (response.writableEnded) return;
  const error = Object.assign(new Error("the client went away"), { code: "ECONNRESET" });
  // Later than the other listeners for "close", which abort the handler's signal.
  setImmediate(() => response.emit("error", error));
}

function trackResponse(connection: Connection, response: http.ServerResponse): void {
  connection.responses.add(response);
  if (connection.retiring) response.shouldKeepAlive = false;
  response.on("close", () => {
    connection.responses.delete(response);
    if (connection.retiring && connection.responses.size === 0) connection.socket.destroySoon();
  });
}

/**
 * Asks the client to go, and closes the connection when nothing is under way on it. `gently` one of
 * HTTP/1.1 that rests is kept until its next response, which says that it is the last: a request
 * may be on its way.
 */
function retire(connection: Connection, gently = false): void {
  const { socket, session, responses, upgraded } = connection;
  if (upgraded || (connection.retiring && (session || gently))) return;
  connection.retiring = true;
  if (session) {
    // One GOAWAY that names the last stream taken; a client knows that later ones may be
    // retried. Not gRPC's two: with no stream open Node stops reading after the first, so
    // that a request on its way is lost without the client being told.
    session.close();
  } else if (responses.size === 0) {
    if (gently) return;
    // Not http.Server's closeIdleConnections: it also closes a connection whose response
    // has been ended but not yet sent.
    socket.destroySoon();
  } else {
    for (const response of responses) {
      if (!response.headersSent) response.shouldKeepAlive = false;
    }
  }
}

/** Ends a connection that was asked to go as long ago as it was old then, whatever is under way on it. */
function cutOld({ socket, upgraded }: Connection, cuts: { age: number }, log: Log): void {
  // What took it over ends it.
  if (upgraded) return;
  cuts.age++;
  log.info("cut a connection that had been asked to go and stayed");
  socket.destroy();
}

async function settlesWithin(promise: Promise<void>, timeoutMs: number): Promise<boolean> {
  let timer: NodeJS.Timeout | undefined;
  const timeout = new Promise<boolean>((resolve) => {
    timer = setTimeout(() => resolve(false), timeoutMs);
  });
  const settled = await Promise.race([promise.then(() => true), timeout]);
  clearTimeout(timer);
  return settled;
}

/** Listens, or rejects with a sentence for the operator. Port 0 is a free one. */
export function listen(server: net.Server, host: string, port: number): Promise<void> {
  return listenThere(server, `${host} port ${port}`, portErrors, () => server.listen(port, host));
}

/** Listens on a socket of Unix to which only this user may connect, and the group if the umask lets it. */
function listenOnPath(server: net.Server, path: string): Promise<void> {
  return listenThere(server, path, pathErrors, () => {
    // It is made at once; that of a worker by its primary, which has such an umask.
    const before = process.umask();
    process.umask(before | othersMask);
    server.listen(path);
    process.umask(before);
  });
}

function listenThere(
  server: net.Server,
  where: string,
  reasons: Record<string, string>,
  begin: () => void,
): Promise<void> {
  return new Promise((resolve, reject) => {
    const onError = (error: NodeJS.ErrnoException) => {
      const reason = reasons[error.code ?? ""] ?? error.message;
      reject(new Error(`cannot listen on ${where}: ${reason}`, { cause: error }));
    };
    server.once("error", onError);
    server.once("listening", () => {
      server.off("error", onError);
      resolve();
    });
    begin();
  });
}

/** Takes from files and sockets that are made all rights of other users. */
export const othersMask = 0o007;

const portErrors: Record<string, string> = {
  EADDRINUSE: "another process is listening there; stop it or choose another with --port",
  EADDRNOTAVAIL: "this machine has no such address",
  EACCES: "this user may not use that port; choose one above 1023",
  ENOTFOUND: "there is no host of that name",
};
const pathErrors: Record<string, string> = {
  EADDRINUSE: "another process is listening there; stop it or choose another path",
  EACCES: "this user may make no file there",
  ENOENT: "there is no such folder",
};
