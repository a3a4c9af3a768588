/** Why calls do not reach the service, told by its address. */
import { request as requestHttp } from "node:http";
import { request as requestHttps } from "node:https";
import { isIP } from "node:net";
import { connect as connectTls } from "node:tls";
import { Code, ConnectError } from "@connectrpc/connect";
import type { Endpoint } from "./endpoint.js";
import { adviceFor, isPassing } from "./foreign_status.js";
import { HttpVersions } from "./http_versions.js";
import { errorDetail, NotTheService } from "./retry.js";

/** How far any connection came: made; answered, in whatever language; answered in ours. */
export type Stage = "connected" | "answered" | "understood";

const stages: readonly (Stage | undefined)[] = [undefined, "connected", "answered", "understood"];

/** Within which what is at an address has to show what it speaks. */
const lookMs = 1_000;
/** For how long it is not looked at again. */
const lookAgainMs = 5_000;

/** What is known of the way to one address. Shared by all connections of a saver. */
export class Reach {
  readonly #endpoint: Endpoint;
  readonly #url: URL;
  readonly #needsHttp2: boolean;
  /** Whether calls go over HTTP/1.1. */
  readonly versions = new HttpVersions();
  #stage: Stage | undefined;
  #seen: Promise<string | ConnectError | undefined> | undefined;
  #seenAt = 0;

  /** `needsHttp2`: calls go over no other version. */
  constructor(endpoint: Endpoint, needsHttp2 = false) {
    this.#endpoint = endpoint;
    this.#url = new URL(endpoint.baseUrl);
    this.#needsHttp2 = needsHttp2;
  }

  /** The URL as errors have it. */
  get address(): string {
    return this.#endpoint.address;
  }

  /** To be told of each connection. */
  came(stage: Stage): void {
    if (stages.indexOf(stage) > stages.indexOf(this.#stage)) this.#stage = stage;
  }

  /**
   * The error of a call, with the address and the likely cause if it is one of the connection, and
   * a {@link NotTheService} if no other try can help; else the error itself. Settles by the deadline,
   * or a second later. As long as nothing at the address has spoken our language, it may be asked
   * what it speaks: no headers of the caller are sent.
   */
  async explain(error: unknown, deadline: number): Promise<unknown> {
    if (!(error instanceof ConnectError) || error instanceof NotTheService) return error;
    // What the service said itself.
    if (errorDetail(error)) return error;
    if (error.code === Code.DeadlineExceeded) return this.#silence(error) ?? error;
    if (error.code === Code.Unimplemented) {
      const what = `${error.rawMessage}: there is no checkpointd service at ${this.address}`;
      const text = `${what}, or an older one; is the URL's path right?`;
      return new NotTheService(text, error.code, error.metadata, undefined, error);
    }
    const cause = nodeError(error);
    if (
      !cause &&
      !/^(protocol error: |http\/2 |the session |PING timed out)/.test(error.rawMessage)
    ) {
      return error;
    }
    const { address } = this;
    const said = cause ? wordsOf(cause) : error.rawMessage;
    const tls = tlsTrouble(address, cause, said);
    if (tls) return new NotTheService(tls, Code.FailedPrecondition, undefined, undefined, error);
    const told = unreached[cause?.code ?? ""];
    if (told) return unavailable(`cannot reach ${address}: ${told} (${said})`, error);
    if (this.#stage === "understood") return unavailable(`${said} (${address})`, error);
    const silence = /PING timed out|no answer|no connection/.test(said) && this.#silence(error);
    if (silence) return silence;
    const seen = await this.#look(cause, deadline);
    if (seen instanceof ConnectError) return seen;
    const how = seen ?? "it closes connections; is the service behind it started, the port right?";
    return unavailable(`cannot reach ${address}: ${how} (${said})`, error);
  }

  /** What a call is told that waited in vain, while nothing was heard of the address ever. */
  #silence(error: ConnectError): ConnectError | undefined {
    if (this.#stage !== undefined && this.#stage !== "connected") return undefined;
    const how = this.#stage
      ? "it accepts connections and says nothing; is it the right port, and does that process live?"
      : this.#url.protocol === "https:"
        ? "no connection was made in time; is it the right host and port, and does it speak TLS?"
        : unreached.ETIMEDOUT;
    return new ConnectError(
      `${error.rawMessage}: nothing was heard from ${this.address}: ${how}`,
      error.code,
      error.metadata,
      undefined,
      error,
    );
  }

  #look(
    cause: NodeError | undefined,
    deadline: number,
  ): Promise<string | ConnectError | undefined> {
    const now = performance.now();
    const ms = Math.min(lookMs, deadline - now);
    if (ms >= 50 && (!this.#seen || now > this.#seenAt + lookAgainMs)) {
      this.#seenAt = now;
      // Deno before 2.5 can do neither.
      this.#seen = this.#lookNow(cause, ms).catch(() => undefined);
    }
    return this.#seen ?? Promise.resolve(undefined);
  }

  async #lookNow(cause: NodeError | undefined, ms: number) {
    const { address } = this;
    const isCleartext = this.#url.protocol === "http:" && this.#endpoint.socketPath === undefined;
    const [isTls, status] = await Promise.all([
      isCleartext && speaksTls(this.#url, this.#endpoint, ms),
      statusOfHttp1(this.#url, this.#endpoint, ms),
    ]);
    if (isTls) return new NotTheService(wantsTls(address), Code.FailedPrecondition);
    if (status === undefined) return undefined;
    if (status === "no HTTP") {
      const text = `${address} is not a checkpointd service: it speaks no HTTP; is the port right?`;
      return new NotTheService(text, Code.Unimplemented);
    }
    const how = `it answers in HTTP/1.1, with status ${status}`;
    // Over HTTP/1.1 the next try is told what this is. Else it may be a server that has just begun to
    // listen, or a proxy without one for the moment.
    if (!this.#needsHttp2 || isPassing(status)) return how;
    if (status === 200 && cause?.code !== "ERR_HTTP2_ERROR") return how;
    return new NotTheService(
      `${address} is not a checkpointd service, or is behind a proxy that passes no HTTP/2: ${how}. ` +
        forGrpc,
      Code.Unimplemented,
    );
  }

  /** Makes a call over HTTP/1.1, and tells its errors as those over HTTP/2 are told. */
  async overHttp1<Answer>(call: () => Promise<Answer>): Promise<Answer> {
    try {
      const answer = await call();
      this.came("understood");
      return answer;
    } catch (error) {
      throw this.#ofHttp1(error);
    }
  }

  /** The messages of a stream over HTTP/1.1. */
  async *readHttp1<Message>(messages: AsyncIterable<Message>): AsyncGenerator<Message> {
    try {
      yield* messages;
    } catch (error) {
      throw this.#ofHttp1(error);
    }
  }

  #ofHttp1(error: unknown): unknown {
    if (!(error instanceof ConnectError)) return error;
    if (nodeError(error)) {
      this.came("connected");
      this.versions.http1Missing();
    }
    const [, status] = /^HTTP (\d{3})$/.exec(error.rawMessage) ?? [];
    const type = error.metadata.get("content-type") ?? undefined;
    const otherwise = type === undefined ? undefined : 200;
    return this.ofAnswer(error, status ? Number(status) : otherwise, type);
  }

  /** In the place of an answer that was none of the service its own error. */
  ofAnswer(error: unknown, status: number | undefined, contentType: string | undefined): unknown {
    if (!(error instanceof ConnectError) || status === undefined) return error;
    const { rawMessage } = error;
    const isForeign =
      rawMessage === `HTTP ${status}` ||
      rawMessage.startsWith("unsupported content type") ||
      // At which gRPC-Web does not look.
      !/^application\/(connect\+|grpc|proto|json)/.test(contentType ?? "");
    return isForeign ? this.#foreignAnswer(error, status, contentType) : error;
  }

  /** The error of an answer that is no answer of the service, by its status and content type. */
  #foreignAnswer(
    error: ConnectError,
    status: number,
    contentType: string | undefined,
  ): ConnectError {
    const { address } = this;
    const [advice, code = error.code] = adviceFor(status, this.#url.hostname) ?? [];
    const from = `HTTP ${status} from ${address}`;
    if (isPassing(status)) return unavailable(advice ? `${from}: ${advice}` : from, error, code);
    if (advice) return new NotTheService(`${from}: ${advice}`, code, undefined, undefined, error);
    const path = this.#url.pathname;
    const where =
      status === 404 && path !== "/"
        ? `is the path ${path} right?`
        : "is it another server's port, or does the URL lack a path?";
    const type = contentType ? `, ${contentType.split(";", 1)[0]}` : "";
    return new NotTheService(
      `there is no checkpointd service at ${address} (HTTP ${status}${type}): ${where}`,
      Code.Unimplemented,
      undefined,
      undefined,
      error,
    );
  }
}

const forGrpc =
  'gRPC needs HTTP/2 all the way (nginx: "listen … http2" with grpc_pass; haproxy: "proto h2" and, ' +
  'with TLS, "alpn h2"); the protocol "connect" does not';

interface NodeError extends Error {
  code: string;
  errors?: readonly Error[];
  reason?: string;
}

const ofConnection = /^(ERR_(HTTP2|STREAM|SSL|TLS)_|HPE_|EAI_|E[A-Z]+$)/;
const ofCertificate =
  /^(CERT_|ERR_TLS_CERT|UNABLE_TO_|DEPTH_ZERO_|SELF_SIGNED_|HOSTNAME_|INVALID_(CA|PURPOSE)$)/;

/** The error of Node's connections that is behind it. */
function nodeError(error: ConnectError): NodeError | undefined {
  let found: NodeError | undefined;
  for (let cause: unknown = error.cause; cause instanceof Error; cause = cause.cause) {
    const code = "code" in cause ? cause.code : undefined;
    if (typeof code === "string" && (ofConnection.test(code) || ofCertificate.test(code))) {
      found = cause as NodeError;
    }
  }
  return found;
}

/** Of several addresses of a name Node tells all errors and no message; of TLS a line of a log. */
function wordsOf(error: NodeError): string {
  if (error.reason) return error.reason;
  return error.message || error.errors?.map(({ message }) => message).join(", ") || error.code;
}

function unavailable(message: string, cause: ConnectError, code = Code.Unavailable): ConnectError {
  // Of a proxy's answer they say when to come again.
  return new ConnectError(message, code, cause.metadata, undefined, cause);
}

const unreached: Record<string, string> = {
  ECONNREFUSED: "nothing listens there; is the service started, and the port right?",
  ENOENT: "there is no such socket; is the service started, and the path right?",
  EACCES: "this user may not connect to it",
  ENOTFOUND: "there is no host of that name",
  EAI_AGAIN: "the host's name cannot be resolved now",
  EHOSTUNREACH: "there is no way to that host",
  ENETUNREACH: "there is no way to that network",
  ETIMEDOUT: "nothing answers there; is it the right host, and does a firewall let it through?",
};

const wantsTls = (address: string) => `${address} speaks TLS: begin the URL with https://`;

/** What is wrong with TLS, if that is what is wrong for good. */
function tlsTrouble(address: string, cause: NodeError | undefined, said: string) {
  const code = cause?.code ?? "";
  // What our server ends a connection without TLS with: INADEQUATE_SECURITY.
  if (code === "ERR_HTTP2_SESSION_ERROR" && /\bcode (12|NGHTTP2_INADEQUATE_SECURITY)$/.test(said)) {
    return wantsTls(address);
  }
  if (/certificate.required/i.test(said)) {
    return `${address} wants a certificate of its client: the options tls.cert and tls.key (${said})`;
  }
  if (/wrong.version.number|packet.length.too.long|http.request/i.test(said)) {
    return `${address} does not speak TLS: begin the URL with http://`;
  }
  if (/no.application.protocol|h2 is not supported/i.test(said)) {
    return `${address} speaks TLS and no HTTP/2 (${said}): ${forGrpc}`;
  }
  if (ofCertificate.test(code)) {
    const more = "the option tls.ca, or NODE_EXTRA_CA_CERTS, names a file of authorities to trust";
    return `the certificate of ${address} is not trusted (${said}); ${more}`;
  }
  return undefined;
}

function speaksTls(url: URL, endpoint: Endpoint, ms: number): Promise<boolean> {
  const host = url.hostname.replace(/^\[|\]$/g, "");
  return new Promise((resolve) => {
    const socket = connectTls({
      host,
      port: Number(url.port || 80),
      ...endpoint.connecting(),
      ...(isIP(host) ? {} : { servername: host }),
      // Nothing is told to it.
      rejectUnauthorized: false,
    });
    const end = (isTls: boolean) => {
      clearTimeout(timer);
      socket.destroy();
      resolve(isTls);
    };
    const timer = setTimeout(() => end(false), ms);
    socket.once("secureConnect", () => end(true));
    socket.on("error", (error) => end(/\balert\b/i.test(error.message)));
    socket.once("close", () => end(false));
  });
}

/** The status of the answer to a plain GET; undefined if there is none. */
function statusOfHttp1(
  url: URL,
  endpoint: Endpoint,
  ms: number,
): Promise<number | "no HTTP" | undefined> {
  const request = url.protocol === "https:" ? requestHttps : requestHttp;
  const health = new URL(url);
  health.pathname = `${url.pathname.replace(/\/$/, "")}/healthz`;
  return new Promise((resolve) => {
    const asking = request(health, { agent: false, ...endpoint.connecting() });
    const end = (status?: number | "no HTTP") => {
      clearTimeout(timer);
      asking.destroy();
      resolve(status);
    };
    const timer = setTimeout(() => end(), ms);
    asking.once("response", ({ statusCode }) => end(statusCode));
    asking.on("error", (error: NodeJS.ErrnoException) =>
      end(error.code?.startsWith("HPE_") ? "no HTTP" : undefined),
    );
    asking.end();
  });
}
