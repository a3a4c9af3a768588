import type { ConnectRouter, ConnectRouterOptions } from "@connectrpc/connect";
import { Code, ConnectError, createConnectRouter, createContextValues } from "@connectrpc/connect";
import type { UniversalHandler } from "@connectrpc/connect/protocol";
import type { connectNodeAdapter } from "@connectrpc/connect-node";
import {
  universalRequestFromNodeRequest,
  universalResponseToNodeResponse,
} from "@connectrpc/connect-node";
import { Health } from "../../gen/health/v1/health_pb.js";
import type { Principal } from "../auth/principal.js";
import type { Log } from "../log.js";
import { requestIdHeader, sessionPath } from "../protocol/wire.js";
import { type Call, type CallCarrier, type Calls, callKey } from "./call.js";
import { enter, type Gate } from "./gate.js";
import { Arrival } from "./intake.js";
import { toRequestId } from "./interceptors.js";
import { longestMs } from "./limits.js";
import { checkedBody } from "./request_body.js";

/** A listener of Node's http and http2 servers. */
export type NodeHandler = ReturnType<typeof connectNodeAdapter>;
type NodeRequest = Parameters<NodeHandler>[0];
type NodeResponse = Parameters<NodeHandler>[1];

/** The streams that connect-es carries, kept count of by who opens them. */
export interface OpenStreams {
  all: number;
  /** Those of them that stream the answers of List and the like. */
  answers: number;
  /** How many were refused because there were too many. */
  refused: number;
}

/**
 * Answers the RPCs of the routes; everything else goes to `fallback`. `carrySession` may take a
 * session over before the routes see it.
 *
 * Stands in for connectNodeAdapter, which prints a stack to the console for every reader that
 * goes away, and answers an unknown gRPC method with a plain 404 that gRPC clients report as a
 * broken stream.
 */
export function createHandler(
  routes: (router: ConnectRouter) => void,
  options: ConnectRouterOptions,
  maxMessageSize: number,
  mostStreams: number,
  open: OpenStreams,
  calls: Calls,
  log: Log,
  gate: Gate | undefined,
  carrySession: (request: NodeRequest, response: NodeResponse, principal?: Principal) => boolean,
  fallback: NodeHandler,
): NodeHandler {
  const router = createConnectRouter(options);
  routes(router);
  const handlers = new Map(router.handlers.map((handler) => [handler.requestPath, handler]));
  return (request, response) => {
    const path = request.url?.split("?", 1)[0] ?? "";
    const handler = handlers.get(path);
    if (handler === undefined) {
      if (!request.headers["content-type"]?.startsWith("application/grpc")) {
        fallback(request, response);
        return;
      }
      response.writeHead(200, {
        "content-type": request.headers["content-type"],
        "grpc-status": Code.Unimplemented,
        "grpc-message": "unknown service or method",
      });
      response.end();
      return;
    }
    // Who calls is asked before anything of the body is read.
    const take = (principal: Principal | undefined, refusal?: unknown) => {
      // While a token was verified: what waits for the end of this from now on would wait for ever.
      if (("stream" in request ? request.stream : request.socket).destroyed) return;
      let reason = refusal;
      try {
        const isSession = path === sessionPath && refusal === undefined;
        if (isSession && carrySession(request, response, principal)) return;
      } catch (error) {
        reason = error;
      }
      carry(handler, request, response, principal, reason);
    };
    // What it throws, also later, is answered by who listens.
    return gate && !openPaths.has(path) ? enter(gate, request, take) : take(undefined);
  };

  function carry(
    handler: UniversalHandler,
    request: NodeRequest,
    response: NodeResponse,
    principal: Principal | undefined,
    refusal: unknown,
  ): void {
    const { headers } = request;
    const isUnary = handler.method.methodKind === "unary";
    // To refuse it in its own words would cost as much as to carry it. Clients take it for UNAVAILABLE.
    if (!isUnary && refusal === undefined && open.all >= mostStreams) {
      open.refused++;
      response.writeHead(429, { "content-type": "text/plain; charset=utf-8", "retry-after": "1" });
      response.end(`${mostStreams} streams are open, as many as may be; try again\n`);
      return;
    }
    // Before anything is counted: it throws for a Host that makes no URL, and for none (HTTP/1.0).
    const values = createContextValues();
    const asked = universalRequestFromNodeRequest(request, response, undefined, values);
    // nginx would keep what is streamed until it has a buffer full of it, or all.
    if (!isUnary) response.setHeader("x-accel-buffering", "no");
    const call = calls.begin(
      toRequestId(headers[requestIdHeader]),
      handler.requestPath.slice(1),
      carrierOf(headers["content-type"]),
    );
    // The socket of HTTP/2 is another object for each request.
    call.source = "stream" in request ? request.stream.session : request.socket;
    call.principal = principal;
    call.peer = request.socket.remoteAddress;
    call.refusal = refusal;
    let leave = () => {};
    try {
      if (gate && principal) {
        gate.usage.begin(call);
        if (!isUnary) leave = gate.usage.open(principal, "streams");
      }
    } catch (error) {
      call.refusal = error;
    }
    // One that is refused is no stream: who does not read the refusal is to keep nobody else out.
    const isStream = !isUnary && call.refusal === undefined;
    if (isStream) open.all++;
    values.set(callKey, call);
    if (!isUnary && principal) asked.signal = endsWith(principal, asked.signal, response);
    boundTimeout(asked.header);
    const refuse = (error: unknown) => call.conclude(0, error);
    const arrival = new Arrival(calls.intake);
    // A session's messages come when they come.
    const isSession = handler.method.methodKind === "bidi_streaming";
    if (isSession) call.messageBytes = [];
    else arrival.begin();
    const body = asked.body as AsyncIterable<Uint8Array>;
    asked.body =
      call.refusal === undefined
        ? receive(body, call, arrival, refuse)
        : unread(body, refuse(call.refusal));
    const most = openPaths.has(handler.requestPath) ? mostOpenBytes : maxMessageSize;
    asked.body = checkedBody(asked, handler.method.input, most, refuse, call, arrival);
    handler(asked)
      .then(({ body, ...answer }) => {
        // What is no message reaches no interceptor.
        if (!call.isConcluded && answer.status !== 200) call.conclude(0, malformed(answer.status));
        const watched = body instanceof Uint8Array ? [body] : (body ?? []);
        return universalResponseToNodeResponse({ ...answer, body: watch(watched, call) }, response);
      })
      .catch((error) => {
        // Mostly a client that went away; the call itself is in the log already.
        log.debug(
          { rpc: handler.requestPath, error: ConnectError.from(error).rawMessage },
          "answer not delivered",
        );
      })
      .finally(() => call.end());
    // Not in what is chained above: universalResponseToNodeResponse resolves never, since it waits for
    // an event that only what is read has.
    response.on("close", () => {
      arrival.close();
      leave();
      if (isStream) open.all--;
    });
  }
}

/** A signal that aborts with the request's, and when the principal's credential ends, with that reason. */
function endsWith({ ends }: Principal, signal: AbortSignal, response: NodeResponse): AbortSignal {
  const either = new AbortController();
  const onEnd = () => either.abort(ends.reason);
  // Not AbortSignal.any: Node keeps what it returns for as long as the credential lives.
  ends.addEventListener("abort", onEnd);
  response.on("close", () => ends.removeEventListener("abort", onEnd));
  signal.addEventListener("abort", () => either.abort(signal.reason));
  if (ends.aborted) onEnd();
  return either.signal;
}

/** The body of a request that is refused whatever it says. */
function unread(body: AsyncIterable<Uint8Array>, error: unknown): AsyncIterable<Uint8Array> {
  void forget(body[Symbol.asyncIterator]());
  return { [Symbol.asyncIterator]: () => ({ next: () => Promise.reject(error) }) };
}

/** What balancers and orchestrators ask, who have no credential. */
const openPaths = new Set([`/${Health.typeName}/${Health.method.check.name}`]);
/** The largest request that one of them has: the name of a service. */
const mostOpenBytes = 4 * 1024;

const unitMs: Record<string, number> = { H: 3_600_000, M: 60_000, S: 1_000 };

/** A deadline beyond what Node's timers take passes at once. It is taken for 24 days. */
function boundTimeout(header: Headers): void {
  if (Number(header.get("connect-timeout-ms")) > longestMs) {
    header.set("connect-timeout-ms", `${longestMs}`);
  }
  const [, number = "", unit = ""] =
    /^(\d{1,8})([HMS])$/.exec(header.get("grpc-timeout") ?? "") ?? [];
  if (Number(number) * (unitMs[unit] ?? 0) > longestMs) {
    header.set("grpc-timeout", `${Math.floor(longestMs / 1000)}S`);
  }
}

/** A request's bytes as they come, until they come too slowly. */
async function* receive(
  body: AsyncIterable<Uint8Array>,
  call: Call,
  arrival: Arrival,
  refuse: (error: unknown) => unknown,
) {
  const chunks = body[Symbol.asyncIterator]();
  let ended = false;
  try {
    while (true) {
      const next = await new Promise<IteratorResult<Uint8Array>>((resolve, reject) => {
        arrival.giveUp = (error) => reject(refuse(error));
        chunks.next().then(resolve, reject);
      });
      if (next.done) {
        ended = true;
        return;
      }
      call.requestBytes += next.value.length;
      if (!call.messageBytes) {
        arrival.bytes += next.value.length;
        arrival.held += next.value.length;
        takeOr(refuse, call, next.value.length, arrival);
      }
      yield next.value;
    }
  } finally {
    if (!call.messageBytes) arrival.end();
    if (!ended) void forget(chunks);
  }
}

function takeOr(
  refuse: (error: unknown) => unknown,
  call: Call,
  bytes: number,
  arrival: Arrival,
): void {
  try {
    call.take(bytes, arrival);
  } catch (error) {
    throw refuse(error);
  }
}

/**
 * Reads what is left of a body that nobody wants. Returning its iterator would destroy an HTTP/1.1
 * connection before the answer is sent that says why. The listener ends what goes on for long.
 */
async function forget(chunks: AsyncIterator<Uint8Array>): Promise<void> {
  try {
    while (!(await chunks.next()).done);
  } catch {
    // The client went away.
  }
}

/** An answer's bytes as they are handed on, after which the call is over. */
async function* watch(body: AsyncIterable<Uint8Array> | Iterable<Uint8Array>, call: Call) {
  try {
    for await (const chunk of body) {
      call.answerBytes += chunk.length;
      yield chunk;
    }
  } finally {
    call.end();
  }
}

function carrierOf(contentType = ""): CallCarrier {
  if (!contentType.startsWith("application/grpc")) return "connect";
  return contentType.startsWith("application/grpc-web") ? "grpc-web" : "grpc";
}

function malformed(status: number): ConnectError {
  const code = status === 429 ? Code.ResourceExhausted : Code.InvalidArgument;
  return new ConnectError("the request could not be read", code);
}
