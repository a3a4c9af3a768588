/** Connections of HTTP/2, and one call on them. */
import { type ClientHttp2Session, type ClientHttp2Stream, constants } from "node:http2";
import { Http2SessionManager } from "@connectrpc/connect-node";
import { isNoHttp2 } from "./http_versions.js";
import type { Reach } from "./reach.js";
import { notSent } from "./retry.js";
import { startTimer } from "./session_socket.js";

/** Within which a server of HTTP/2 shows itself; it sends its settings before anything else. */
const settingsMs = 2_500;

/**
 * A GOAWAY that meets an idle connection as its socket closes raises an error on it after the last
 * listener went, which ended the agent's process (connectrpc/connect-es#1768). One listener stays.
 */
export class Http2Connections extends Http2SessionManager {
  readonly #seen = new WeakSet<ClientHttp2Session>();
  readonly #spoke = new WeakSet<ClientHttp2Session>();
  readonly #reach: Reach;

  constructor(
    url: string,
    pings: ConstructorParameters<typeof Http2SessionManager>[1],
    connecting: ConstructorParameters<typeof Http2SessionManager>[2],
    reach: Reach,
  ) {
    super(url, pings, connecting);
    this.#reach = reach;
  }

  override async request(
    ...parameters: Parameters<Http2SessionManager["request"]>
  ): Promise<ClientHttp2Stream> {
    // It fails where no stream could be opened: on a connection that was not made, or answers no ping.
    const stream = await super.request(...parameters).catch((error) => {
      throw notSent(error);
    });
    const connection = stream.session as ClientHttp2Session | undefined;
    if (connection && !this.#seen.has(connection)) {
      this.#seen.add(connection);
      connection.on("error", () => {});
      this.#reach.came("connected");
      const cancel = startTimer(settingsMs, () => {
        // Whose call this was may have given up before.
        this.#reach.versions.http2Missing();
        connection.destroy(new NoSettings());
      });
      connection.once("close", cancel);
      connection.once("remoteSettings", () => {
        cancel();
        this.#spoke.add(connection);
        this.#reach.came("understood");
        this.#reach.versions.http2Came();
      });
    }
    return stream;
  }

  /** Whether a server of HTTP/2 showed itself on this connection. */
  spoke(connection: ClientHttp2Session): boolean {
    return this.#spoke.has(connection);
  }
}

/** Told as an error of Node's own, which another try may not meet. */
class NoSettings extends Error {
  readonly code = "ERR_HTTP2_NO_SETTINGS";

  constructor() {
    super("no answer in HTTP/2");
  }
}

/**
 * One call on the connections. connect-node never ends a stream of HTTP/2 whose answer has arrived and
 * was not read to its last byte, as when a reader has enough, or of a refusal. Node keeps such a
 * stream with all that it holds, and the connection with it, which a server then waited for when it
 * was to stop. connect-node tells nobody which stream is whose, so each call has its own.
 */
export class Exchange {
  readonly authority: string;
  readonly #connections: Http2Connections;
  readonly #reach: Reach;
  #stream: ClientHttp2Stream | undefined;
  #connection: ClientHttp2Session | undefined;
  #status: number | undefined;
  #contentType: string | undefined;
  #isOver = false;

  constructor(connections: Http2Connections, reach: Reach) {
    this.authority = connections.authority;
    this.#connections = connections;
    this.#reach = reach;
  }

  async request(
    ...parameters: Parameters<Http2Connections["request"]>
  ): Promise<ClientHttp2Stream> {
    const stream = await this.#connections.request(...parameters);
    this.#stream = stream;
    this.#connection = stream.session as ClientHttp2Session | undefined;
    stream.on("response", (headers) => {
      this.#status = headers[":status"];
      this.#contentType = headers["content-type"];
    });
    // Later than connect-node, which has yet to be given it.
    if (this.#isOver) setImmediate(() => this.end());
    return stream;
  }

  notifyResponseByteRead(stream: ClientHttp2Stream): void {
    this.#connections.notifyResponseByteRead(stream);
  }

  /** The messages, whose stream is over when the last one is read. */
  async *read<Message>(messages: AsyncIterable<Message>): AsyncGenerator<Message> {
    try {
      yield* messages;
    } catch (error) {
      throw this.toError(error);
    } finally {
      this.end();
    }
  }

  /** To be called when nobody reads the answer any more. Idempotent. */
  end(): void {
    this.#isOver = true;
    const stream = this.#stream;
    if (!stream || stream.destroyed) return;
    // The reset of one that is open ends it; it has to be sent.
    if (stream.closed) stream.destroy();
    else stream.close(constants.NGHTTP2_CANCEL);
  }

  /**
   * To be told of the call's error: whether the call can be made over HTTP/1.1 at once, because
   * nothing came of it. Where that is not certain, the next one is.
   */
  foundNoHttp2(error: unknown): boolean {
    const connection = this.#connection;
    if (connection && this.#connections.spoke(connection)) return false;
    if (isNoHttp2(error)) {
      this.#reach.versions.http2Refused();
      return true;
    }
    if (connection?.destroyed) this.#reach.versions.http2Missing();
    return false;
  }

  /** In the place of an answer that was none of the service its own error. */
  toError(error: unknown): unknown {
    return this.#reach.ofAnswer(error, this.#status, this.#contentType);
  }
}
