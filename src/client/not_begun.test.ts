/** Claims and copies, which are made once: again only where the service did not begin them. */
import { constants, createServer, type ServerHttp2Stream } from "node:http2";
import type { AddressInfo, LookupFunction, Socket } from "node:net";
import { connectNodeAdapter, createConnectTransport } from "@connectrpc/connect-node";
import { describe, expect, it, onTestFinished } from "vitest";
import { SessionService } from "../../gen/checkpointd/v1/session_service_pb.js";
import { ThreadService } from "../../gen/checkpointd/v1/thread_service_pb.js";
import { CheckpointdError, type ErrorCode, type ErrorReason } from "../errors.js";
import { ConnectSaver, type ConnectSaverUrlOptions } from "../index.js";
import { operationFields } from "../protocol/operations.js";
import { sessionPath } from "../protocol/wire.js";
import { startEchoServer } from "../testing/echo_server.js";
import { startRelay } from "../testing/relay.js";

type Way = [name: string, options: ConnectSaverUrlOptions];
const calls: Way[] = [
  ["connect", { session: false }],
  ["JSON", { json: true }],
  ["grpc", { protocol: "grpc" }],
  ["grpc-web", { protocol: "grpc-web" }],
];
const ways: Way[] = [["a session", {}], ...calls];
const wanted = { owner: "worker" };

function open(url: string, options: ConnectSaverUrlOptions): ConnectSaver {
  const saver = ConnectSaver.fromUrl(url, { timeoutMs: 40_000, ...options });
  onTestFinished(() => saver.end());
  return saver;
}

/**
 * Starts a server that does to the stream of each call what `meets` does, if it returns true, and
 * carries out the others. On its sessions one operation may be under way; `onSession` is told of each.
 */
async function startServer(
  meets: (stream: ServerHttp2Stream, call: number) => boolean,
  onSession: (stream: ServerHttp2Stream, operation: number) => void = () => {},
) {
  const seen = { calls: 0, operations: 0, carriedOut: 0 };
  let ofSession: ServerHttp2Stream | undefined;
  const answer = () => {
    seen.carriedOut++;
    return {};
  };
  const adapter = connectNodeAdapter({
    routes: (router) =>
      router
        .service(ThreadService, { claimThreads: answer, copyThread: answer })
        .service(SessionService, {
          async *openSession(requests) {
            const stream = ofSession as ServerHttp2Stream;
            const operations = Object.values(operationFields);
            yield { result: { case: "welcome", value: { maxInFlight: 1, operations } } };
            for await (const { id } of requests) {
              onSession(stream, ++seen.operations);
              if (stream.closed || stream.destroyed) return;
              yield { id, result: { case: "claimThreads", value: answer() } };
            }
          },
        }),
  });
  const server = createServer((request, response) => {
    if (request.url === sessionPath) ofSession = request.stream;
    else if (meets(request.stream, ++seen.calls)) return;
    adapter(request, response);
  });
  const sockets = new Set<Socket>();
  server.on("connection", (socket: Socket) => sockets.add(socket));
  server.on("sessionError", () => {});
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  onTestFinished(() => void server.close());
  const cut = () => {
    for (const socket of sockets) socket.destroy();
  };
  return { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, seen, cut };
}

const closeWith = (stream: ServerHttp2Stream, code: number) => {
  stream.on("error", () => {});
  stream.close(code);
};

describe.each(calls)("over %s", (_, options) => {
  it("a claim and a copy are made again whose stream was refused", async () => {
    const { url, seen } = await startServer((stream, call) => {
      if (call % 2 === 1) closeWith(stream, constants.NGHTTP2_REFUSED_STREAM);
      return call % 2 === 1;
    });
    const { threads } = open(url, options);
    expect(await threads.claim(wanted)).toEqual([]);
    expect(seen).toMatchObject({ calls: 2, carriedOut: 1 });
    await threads.copy("a", "b");
    expect(seen).toMatchObject({ calls: 4, carriedOut: 2 });
  });

  it("a claim is made again that a GOAWAY leaves out", async () => {
    const { url, seen } = await startServer(({ id, session }, call) => {
      if (call === 2) session?.goaway(constants.NGHTTP2_NO_ERROR, (id as number) - 2);
      return call === 2;
    });
    const { threads } = open(url, options);
    await threads.claim(wanted);
    await threads.claim(wanted);
    expect(seen).toMatchObject({ calls: 3, carriedOut: 2 });
  });

  it.each<[string, (stream: ServerHttp2Stream, cut: () => void) => void]>([
    ["reset with INTERNAL_ERROR", (stream) => closeWith(stream, constants.NGHTTP2_INTERNAL_ERROR)],
    ["reset with CANCEL", (stream) => closeWith(stream, constants.NGHTTP2_CANCEL)],
    ["cut with its connection", (_, cut) => cut()],
    [
      "ended by a GOAWAY with an error",
      ({ session }) => session?.destroy(undefined, constants.NGHTTP2_REFUSED_STREAM),
    ],
  ])("a claim is not made again that was %s", async (_, ends) => {
    const server = await startServer((stream) => {
      stream.on("error", () => {});
      ends(stream, server.cut);
      return true;
    });
    await expect(open(server.url, options).threads.claim(wanted)).rejects.toThrow();
    expect(server.seen).toMatchObject({ calls: 1, carriedOut: 0 });
  });
});

describe.each(ways)("over %s", (_, options) => {
  it.each<[string, (found: Parameters<LookupFunction>[2]) => void]>([
    [
      "whose host was not found",
      (found) => found(Object.assign(new Error("no host"), { code: "ENOTFOUND" }), []),
    ],
    // Where nothing listens.
    ["whose connection was refused", (found) => found(null, [{ address: "127.0.0.2", family: 4 }])],
  ])("a claim is made again %s", async (_, first) => {
    let asked = 0;
    const server = await startEchoServer(() => ({ threads: [] }));
    onTestFinished(() => server.stop());
    const lookup: LookupFunction = (_host, _options, found) =>
      asked++ === 0 ? first(found) : found(null, [{ address: "127.0.0.1", family: 4 }]);
    const url = server.url.replace("127.0.0.1", "localhost");
    expect(await open(url, { ...options, lookup }).threads.claim(wanted)).toEqual([]);
    expect(asked).toBeGreaterThan(1);
    expect(server.finished.filter(({ rpc }) => /claim/i.test(rpc))).toHaveLength(1);
  });

  it.each<[string, () => boolean]>([
    ["too old for the tables", () => throws("unavailable", "SCHEMA_NEW")],
    ["not ready", () => false],
  ])("a claim is made again that a server refused which was %s", async (_, first) => {
    let asked = 0;
    let carriedOut = 0;
    const server = await startEchoServer(
      () => {
        carriedOut++;
        return { threads: [] };
      },
      {},
      undefined,
      { isReady: () => asked++ > 0 || first() },
    );
    onTestFinished(() => server.stop());
    expect(await open(server.url, options).threads.claim(wanted)).toEqual([]);
    expect([asked, carriedOut]).toEqual([2, 1]);
  });

  it.each<[ErrorCode, ErrorReason, string, boolean]>([
    ["resource_exhausted", "LIMIT_REACHED", "calls", true],
    ["resource_exhausted", "LIMIT_REACHED", "leases", false],
    ["resource_exhausted", "QUEUE_FULL", "", false],
    ["resource_exhausted", "OVERLOADED", "", false],
    ["unavailable", "DRAINING", "", false],
    ["unavailable", "DATABASE_UNAVAILABLE", "", false],
    ["unavailable", "SCHEMA_OLD", "", false],
  ])("a claim that is told %s %s %s is made again: %s", async (code, reason, field, isAgain) => {
    let asked = 0;
    const server = await startEchoServer(() => {
      if (asked++ === 0) throws(code, reason, field);
      return { threads: [] };
    });
    onTestFinished(() => server.stop());
    const claim = open(server.url, options).threads.claim(wanted);
    if (isAgain) await claim;
    else await expect(claim).rejects.toThrow(reason);
    expect(asked).toBe(isAgain ? 2 : 1);
  });
});

function throws(code: ErrorCode, reason: ErrorReason, field = ""): never {
  throw new CheckpointdError(code, `as asked: ${reason}`, { reason, field });
}

it("over HTTP/1.1 a claim is made again whose connection was refused", async () => {
  let asked = 0;
  const server = await startEchoServer(() => ({ threads: [] }));
  onTestFinished(() => server.stop());
  const lookup: LookupFunction = (_host, _options, found) =>
    found(null, asked++ === 0 ? "127.0.0.2" : "127.0.0.1", 4);
  const baseUrl = server.url.replace("127.0.0.1", "localhost");
  const nodeOptions = { lookup, autoSelectFamily: false };
  const transport = createConnectTransport({ baseUrl, httpVersion: "1.1", nodeOptions });
  const saver = new ConnectSaver(transport);
  onTestFinished(() => saver.end());
  expect(await saver.threads.claim(wanted)).toEqual([]);
  expect(asked).toBe(2);
});

describe("on a session", () => {
  it("a claim is made again that waited for one that could not be opened", async () => {
    const server = await startEchoServer(() => ({ threads: [] }));
    const relay = await startRelay(() => Number(new URL(server.url).port));
    onTestFinished(async () => {
      relay.close();
      await server.stop();
    });
    relay.door = "refuses";
    const claim = open(relay.url, {}).threads.claim(wanted);
    while (relay.accepted() < 3) await new Promise((resolve) => setTimeout(resolve, 5));
    relay.door = "open";
    expect(await claim).toEqual([]);
    expect(server.finished.filter(({ rpc }) => /claim/i.test(rpc))).toHaveLength(1);
  });

  it.each<[string, (stream: ServerHttp2Stream, cut: () => void) => void]>([
    ["is reset", (stream) => closeWith(stream, constants.NGHTTP2_REFUSED_STREAM)],
    ["is cut", (_, cut) => cut()],
  ])("that %s, a claim is made again that waited, and none that was sent", async (_, ends) => {
    const server = await startServer(
      () => false,
      (stream, operation) => {
        if (operation === 1) ends(stream, server.cut);
      },
    );
    const { threads } = open(server.url, {});
    const [sent, waited] = await Promise.allSettled([threads.claim(wanted), threads.claim(wanted)]);
    expect([sent.status, waited.status]).toEqual(["rejected", "fulfilled"]);
    expect(server.seen.operations).toBe(2);
  });
});
