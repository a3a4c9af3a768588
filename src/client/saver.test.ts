/**
 * The saver against a server that breaks on purpose: a real HTTP/2 server whose service keeps
 * tuples in an array and fails as each case says. What the real service does is tested with it.
 */
import { once } from "node:events";
import http2 from "node:http2";
import type { AddressInfo, Socket } from "node:net";
import { create } from "@bufbuild/protobuf";
import { Code, ConnectError, type HandlerContext, type ServiceImpl } from "@connectrpc/connect";
import { connectNodeAdapter } from "@connectrpc/connect-node";
import {
  type BaseCheckpointSaver,
  emptyCheckpoint,
  type CheckpointTuple as Tuple,
} from "@langchain/langgraph-checkpoint";
import { describe, expect, it, onTestFinished } from "vitest";
import {
  type CheckpointTuple,
  CheckpointTupleSchema,
  ErrorDetailSchema,
} from "../../gen/checkpointd/v1/checkpoint_pb.js";
import {
  CheckpointService,
  type ListRequest,
} from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { errorDetail } from "./retry.js";
import { ConnectSaver, type ConnectSaverUrlOptions } from "./saver.js";

const quick = { retry: { initialDelayMs: 1, maxDelayMs: 5 } };
const thread = { configurable: { thread_id: "t" } };
const loop = { source: "loop", step: 0, parents: {} } as const;
const protocols: ConnectSaverUrlOptions[] = [
  { protocol: "connect" },
  { protocol: "connect", json: true },
  { protocol: "connect", compression: true },
  { protocol: "grpc" },
  { protocol: "grpc-web" },
];

type Sessions = Set<http2.ServerHttp2Session>;
type Streams = Set<http2.ServerHttp2Stream>;
type Sockets = Set<Socket>;

type Service = Awaited<ReturnType<typeof startService>>;

/** Serves `routes`; `sessions` and `streams` are what is open, for a case to break. */
async function startService(routes: Partial<ServiceImpl<typeof CheckpointService>>) {
  const sessions: Sessions = new Set();
  const streams: Streams = new Set();
  const sockets: Sockets = new Set();
  const server = http2.createServer(
    connectNodeAdapter({ routes: (router) => router.service(CheckpointService, routes) }),
  );
  server.on("connection", (socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
  });
  server.on("session", (session) => {
    sessions.add(session);
    session.on("close", () => sessions.delete(session));
    session.on("error", () => {});
  });
  server.on("stream", (stream) => {
    streams.add(stream);
    stream.on("close", () => streams.delete(stream));
    stream.on("error", () => {});
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  onTestFinished(() => {
    for (const session of sessions) session.destroy();
    server.close();
  });
  const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const connect = (options: ConnectSaverUrlOptions = {}) => {
    const saver = ConnectSaver.fromUrl(url, { ...quick, ...options });
    onTestFinished(() => saver.end());
    return saver;
  };
  return { url, connect, sessions, streams, sockets };
}

function stored(id: string, more: { parent?: string; writes?: [string, string][] } = {}) {
  const json = (value: unknown) => ({ type: "json", data: Buffer.from(JSON.stringify(value)) });
  return create(CheckpointTupleSchema, {
    key: { threadId: "t", checkpointId: id },
    ...(more.parent === undefined ? {} : { parentCheckpointId: more.parent }),
    checkpointJson: JSON.stringify({ ...emptyCheckpoint(), id, channel_values: undefined }),
    metadataJson: "{}",
    pendingWrites: (more.writes ?? []).map(([taskId, value], idx) => ({
      taskId,
      idx,
      channel: "ch",
      value: json(value),
    })),
  });
}

/** The service's List as the contract has it, over `tuples` of one thread and namespace. */
function* listed(tuples: CheckpointTuple[], request: ListRequest) {
  const { checkpointId, beforeCheckpointId, after, limit } = request;
  const bytes = (id: string) => Buffer.from(id);
  const below = (id: string, bound: string) => Buffer.compare(bytes(id), bytes(bound)) < 0;
  const matching = tuples
    .filter(({ key }) => {
      const id = key!.checkpointId;
      if (checkpointId !== undefined && id !== checkpointId) return false;
      if (beforeCheckpointId !== undefined && !below(id, beforeCheckpointId)) return false;
      return after === undefined || below(id, after.checkpointId);
    })
    .sort((a, b) => Buffer.compare(bytes(b.key!.checkpointId), bytes(a.key!.checkpointId)));
  yield* matching.slice(0, limit ?? matching.length);
}

async function ids(tuples: AsyncIterable<Tuple>): Promise<string[]> {
  const seen: string[] = [];
  for await (const tuple of tuples) seen.push(tuple.config.configurable?.checkpoint_id);
  return seen;
}

const numbered = (count: number) =>
  Array.from({ length: count }, (_, i) => `c${String(count - i).padStart(4, "0")}`);

type Broken = Pick<Service, "sessions" | "streams" | "sockets"> & { fail(): void };
const breaks: Record<string, (server: Broken) => void> = {
  "the server says it is draining": ({ fail }) => fail(),
  "the session is destroyed": ({ sessions }) => {
    for (const session of sessions) session.destroy();
  },
  "the session ends with an error": ({ sessions }) => {
    for (const session of sessions) session.destroy(new Error("broken"), 2);
  },
  "the socket is closed": ({ sockets }) => {
    for (const socket of sockets) socket.destroy();
  },
  "the socket is reset": ({ sockets }) => {
    for (const socket of sockets) socket.resetAndDestroy();
  },
  "the stream is cancelled": ({ streams }) => {
    for (const stream of streams) stream.close(http2.constants.NGHTTP2_CANCEL);
  },
  "the stream is refused": ({ streams }) => {
    for (const stream of streams) stream.close(http2.constants.NGHTTP2_REFUSED_STREAM);
  },
  "the stream just ends": ({ streams }) => {
    for (const stream of streams) stream.close(http2.constants.NGHTTP2_NO_ERROR);
  },
};

describe.each(protocols)("over $protocol, json: $json", (options) => {
  describe("a list resumes where the stream broke", () => {
    const wanted = numbered(40);
    it.each(Object.entries(breaks))("%s", async (_, breakIt) => {
      const requests: ListRequest[] = [];
      let fail = () => {};
      const service = await startService({
        async *list(request) {
          requests.push(request);
          let sent = 0;
          for (const tuple of listed(
            wanted.map((id) => stored(id)),
            request,
          )) {
            yield { tuple };
            if (++sent < 3) continue;
            // The reader breaks the stream when it has the third.
            await new Promise((_, reject) => {
              fail = () => reject(new ConnectError("draining", Code.Unavailable));
            });
          }
        },
      });
      const saver = service.connect(options);
      const read = async (limit?: number) => {
        const seen: string[] = [];
        for await (const { checkpoint } of saver.list(thread, limit ? { limit } : {})) {
          seen.push(checkpoint.id);
          if (seen.length % 3 === 0) breakIt({ ...service, fail });
        }
        return seen;
      };
      expect(await read()).toEqual(wanted);
      // More breaks than one wait has tries: each arrival starts the count anew.
      expect(requests.length).toBeGreaterThanOrEqual(14);
      requests.length = 0;
      expect(await read(10)).toEqual(wanted.slice(0, 10));
      expect(requests[0]?.limit).toBe(10);
      for (const { after, limit } of requests.slice(1)) {
        expect(limit).toBe(10 - (wanted.indexOf(after!.checkpointId) + 1));
      }
    });
  });

  // Not after a reset without error: nobody notices that one before the deadline (connect-es
  // #1678).
  it.each(Object.entries(breaks).slice(0, -1))("a put is repeated when %s", async (_, breakIt) => {
    const puts: string[] = [];
    const service = await startService({
      async put({ checkpointId }) {
        puts.push(checkpointId);
        if (puts.length > 1) return {};
        return new Promise((_, reject) => {
          const fail = () => reject(new ConnectError("draining", Code.Unavailable));
          breakIt({ ...service, fail });
        });
      },
    });
    const checkpoint = emptyCheckpoint();
    await service.connect(options).put(thread, checkpoint, loop, {});
    expect(puts).toEqual([checkpoint.id, checkpoint.id]);
  });

  it("cancels the call when the reader leaves early", async () => {
    const stopped: unknown[] = [];
    const { connect, streams } = await startService({
      async *list(_request, context: HandlerContext) {
        context.signal.addEventListener("abort", () => stopped.push("aborted"));
        while (!context.signal.aborted) yield { tuple: stored("c1") };
      },
    });
    const saver = connect(options);
    for await (const _ of saver.list(thread)) break;
    await expect.poll(() => stopped).toEqual(["aborted"]);
    await expect.poll(() => streams.size).toBe(0);
  });

  it("repeats a call while the server is unavailable, and no other failure", async () => {
    const failures: ConnectError[] = [];
    let calls = 0;
    const { connect } = await startService({
      getTuple() {
        calls++;
        const failure = failures.shift();
        if (failure !== undefined) throw failure;
        return { tuple: stored("c1") };
      },
    });
    const saver = connect(options);
    failures.push(...Array.from({ length: 7 }, () => new ConnectError("no", Code.Unavailable)));
    expect((await saver.getTuple(thread))?.checkpoint.id).toBe("c1");
    expect(calls).toBe(8);

    const brief = connect({ ...options, retry: { attempts: 8 } });
    failures.push(...Array.from({ length: 8 }, () => new ConnectError("no", Code.Unavailable)));
    await expect(brief.getTuple(thread)).rejects.toMatchObject({
      code: Code.Unavailable,
      rawMessage: expect.stringMatching(/^no; gave up after 8 tries in \d+\.\d s$/),
    });
    expect(calls).toBe(16);

    const detail = { reason: "TOO_LONG", field: "thread_id", limit: 512n };
    failures.push(
      new ConnectError("thread_id: too long", Code.InvalidArgument, undefined, [
        { desc: ErrorDetailSchema, value: detail },
      ]),
    );
    const error = await saver.getTuple(thread).catch((reason: unknown) => reason);
    expect(error).toMatchObject({ code: Code.InvalidArgument });
    expect(errorDetail(error)).toMatchObject(detail);
    expect(calls).toBe(17);
  });

  it("tries until its deadline, and then tells the last failure and the tries", async () => {
    let calls = 0;
    const reason = { reason: "DISK_FULL", retryDelay: { nanos: 20_000_000 } };
    const { connect } = await startService({
      async getTuple() {
        calls++;
        // The last try is cut by the deadline, which says less than those before it.
        if (calls > 9) await new Promise(() => {});
        throw new ConnectError("the disk is full", Code.ResourceExhausted, undefined, [
          { desc: ErrorDetailSchema, value: reason },
        ]);
      },
    });
    const retry = { initialDelayMs: 1, maxDelayMs: 5 };
    const saver = connect({ ...options, timeoutMs: 2_000, retry });
    const began = performance.now();
    const error = await saver.getTuple(thread).catch((failure: unknown) => failure);
    expect(error).toMatchObject({
      code: Code.ResourceExhausted,
      rawMessage: expect.stringMatching(/^the disk is full; gave up after 10 tries in \d+\.\d s$/),
    });
    expect(errorDetail(error)?.reason).toBe("DISK_FULL");
    // Nine pauses of at least what the server asked for.
    expect(performance.now() - began).toBeGreaterThan(9 * 20);
    expect(calls).toBe(10);
  });

  it("settles by the deadline when the server answers nothing, or resets without error", async () => {
    const { connect, streams } = await startService({
      async put() {
        for (const stream of streams) stream.close(http2.constants.NGHTTP2_NO_ERROR);
        return {};
      },
      getTuple: () => new Promise(() => {}),
      async *list() {
        yield { tuple: stored("c1") };
        await new Promise(() => {});
      },
    });
    const saver = connect({ ...options, timeoutMs: 200 });
    await expect(saver.getTuple(thread)).rejects.toMatchObject({ code: Code.DeadlineExceeded });
    await expect(ids(saver.list(thread))).rejects.toMatchObject({ code: Code.DeadlineExceeded });
    // Which error it is depends on what is noticed first.
    await expect(saver.put(thread, emptyCheckpoint(), loop, {})).rejects.toThrow(ConnectError);
  });

  it("does not send a request above its limit, and goes on", async () => {
    const puts: string[] = [];
    const { connect } = await startService({
      put({ checkpointId }) {
        puts.push(checkpointId);
        return {};
      },
    });
    const saver = connect({ ...options, maxRequestBytes: 10_000 });
    const put = (id: string, size: number) => {
      const checkpoint = { ...emptyCheckpoint(), id, channel_values: { a: "x".repeat(size) } };
      return saver.put(thread, checkpoint, loop, { a: 1 });
    };
    await put("small", 5_000);
    await expect(put("large", 15_000)).rejects.toMatchObject({ code: Code.ResourceExhausted });
    await put("after", 5_000);
    expect(puts).toEqual(["small", "after"]);
  });

  it("sends the headers with every call", async () => {
    const seen: (string | null)[] = [];
    const { connect } = await startService({
      getTuple(_request, { requestHeader }) {
        seen.push(requestHeader.get("authorization"));
        return {};
      },
      async *list(_request, { requestHeader }) {
        seen.push(requestHeader.get("authorization"));
        yield { tuple: stored("c1") };
      },
    });
    const saver = connect({ ...options, headers: { authorization: "Bearer x" } });
    expect(await saver.getTuple(thread)).toBeUndefined();
    expect(await ids(saver.list({}))).toEqual(["c1"]);
    expect(seen).toEqual(["Bearer x", "Bearer x"]);
  });
});

describe("end", () => {
  it("lets a put finish, fails lists and new calls, and closes the connection", async () => {
    let arrive = () => {};
    const arrived = new Promise<void>((resolve) => (arrive = resolve));
    let release = () => {};
    const released = new Promise<void>((resolve) => (release = resolve));
    const { connect, sessions } = await startService({
      async put() {
        arrive();
        await released;
        return {};
      },
      async *list() {
        yield { tuple: stored("c2") };
        await new Promise(() => {});
      },
    });
    const saver = connect();
    const list = saver.list(thread);
    await list.next();
    const put = saver.put(thread, emptyCheckpoint(), loop, {});
    await arrived;
    const waiting = list.next();
    const ended = Promise.all([saver.end(), saver.end()]);
    await expect(waiting).rejects.toThrow("end() was called");
    await expect(saver.getTuple(thread)).rejects.toThrow("end() was called");
    await expect(saver.list(thread).next()).rejects.toThrow("end() was called");
    release();
    await expect(put).resolves.toBeDefined();
    await ended;
    await expect.poll(() => sessions.size).toBe(0);
    await saver.end();
  });

  it("stops the tries of a call that finds no server", async () => {
    const retry = { attempts: 100, initialDelayMs: 60_000, maxDelayMs: 60_000 };
    const saver = ConnectSaver.fromUrl("http://127.0.0.1:1", { retry, timeoutMs: 2 ** 31 - 1 });
    const call = saver.getTuple(thread);
    await new Promise((resolve) => setTimeout(resolve, 50));
    await Promise.all([
      expect(call).rejects.toMatchObject({ code: Code.Unavailable }),
      saver.end(),
    ]);
  });
});

describe("options and arguments", () => {
  const fromUrl = (url: string, options: object = {}) => ConnectSaver.fromUrl(url, options);

  it.each<[string, object, string]>([
    ["localhost:8080", {}, "http://, https:// or unix:"],
    ["nonsense", {}, "not a URL"],
    ["grpc://h:1", {}, "http://, https:// or unix:"],
    ["http://u:p@h:1", {}, "headers"],
    ["http://h:1?a=b", {}, "query"],
    ["http://h:1", { protocol: "http" }, "protocol must be"],
    ["http://h:1", { protocol: "grpc", json: true }, "json needs"],
    ["http://h:1", { json: "yes" }, "json must be"],
    ["http://h:1", { compression: "gzip" }, "compression must be"],
    ["http://h:1", { maxRequestBytes: 0 }, "maxRequestBytes must be"],
    ["http://h:1", { timeoutMs: 0 }, "timeoutMs must be"],
    ["http://h:1", { timeoutMs: 1.5 }, "timeoutMs must be"],
    ["http://h:1", { retry: { attempts: 0 } }, "retry.attempts must be"],
    ["http://h:1", { valueCacheBytes: -1 }, "valueCacheBytes must be"],
    ["http://h:1", { valueCacheBytes: 0.5, session: false }, "valueCacheBytes must be"],
    ["http://h:1", { retry: { maxDelayMs: -1 } }, "retry.maxDelayMs must be"],
  ])("refuses %s with %j", (url, options, message) => {
    expect(() => fromUrl(url, options)).toThrow(message);
  });

  it("is what compile() takes", async () => {
    const checkpointer: BaseCheckpointSaver = await fromUrl("http://127.0.0.1:1");
    expect(checkpointer.getNextVersion(3)).toBeGreaterThanOrEqual(4);
    expect(JSON.stringify({ checkpointer })).toBe('{"checkpointer":"[ConnectSaver]"}');
  });

  it("names the key that is missing or cannot be stored", async () => {
    const saver = fromUrl("http://127.0.0.1:1");
    const checkpoint = emptyCheckpoint();
    const put = (configurable?: object) =>
      saver.put(configurable === undefined ? {} : { configurable }, checkpoint, loop, {});
    await expect(put()).rejects.toThrow('"configurable"');
    await expect(put({})).rejects.toThrow('"thread_id"');
    await expect(put({ thread_id: "a\0" })).rejects.toThrow("thread_id");
    await expect(put({ thread_id: {} })).rejects.toThrow("thread_id");
    await expect(put({ thread_id: "a", checkpoint_ns: "\ud800" })).rejects.toThrow("checkpoint_ns");
    await expect(put({ thread_id: "a", checkpoint_id: "\0" })).rejects.toThrow("checkpoint_id");
    const write = (configurable: object, taskId = "task") =>
      saver.putWrites({ configurable }, [["a", 1]], taskId);
    await expect(write({ checkpoint_id: "c" })).rejects.toThrow('"thread_id"');
    await expect(write({ thread_id: "t" })).rejects.toThrow('"checkpoint_id"');
    await expect(write({ thread_id: "t", checkpoint_id: "c" }, "\0")).rejects.toThrow("taskId");
    await expect(saver.deleteThread("\udc00")).rejects.toThrow("threadId");
    await expect(saver.list({}, { limit: -1 }).next()).rejects.toThrow("limit");
    await expect(saver.list({}, { limit: 1.5 }).next()).rejects.toThrow("limit");
    expect(await saver.getTuple({})).toBeUndefined();
    expect(await saver.list({}, { limit: 0 }).next()).toEqual({ done: true, value: undefined });
    await saver.putWrites({ configurable: { thread_id: "t", checkpoint_id: "c" } }, [], "task");
    await saver.end();
  });
});
