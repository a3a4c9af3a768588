/** Sessions end to end: the wire format by hand, the client, and what breaks between them. */
import { connect as connectHttp2, createServer } from "node:http2";
import {
  type AddressInfo,
  createServer as createRelay,
  connect as dial,
  type Socket,
} from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { create, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import pg from "pg";
import { afterAll, afterEach, beforeAll, describe, expect, it } from "vitest";
import {
  OpenSessionRequestSchema,
  type OpenSessionResponse,
  OpenSessionResponseSchema,
  SessionService,
} from "../../gen/checkpointd/v1/session_service_pb.js";
import { createEnvelopeReader, endOfStream, envelope, sessionPath } from "../envelope.js";
import { ConnectSaver, errorDetail } from "../index.js";
import { block, untilBlocked } from "../testing/blocking.js";
import { captureLog } from "../testing/captured_log.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { openOnHttp2, openUpgraded, type RawStream } from "../testing/raw_session.js";
import { startTestServer } from "../testing/server.js";
import type { Server } from "./main.js";

type Request = MessageInitShape<typeof OpenSessionRequestSchema>;

let database: TestDatabase;
let server: Server;
let sql: pg.Client;
const log = captureLog();
beforeAll(async () => {
  database = await createDatabase();
  server = await startTestServer(database.url, { log: log.log });
  sql = new pg.Client({ connectionString: database.url });
  await sql.connect();
});
afterAll(async () => {
  await sql?.end();
  await server?.drain();
  await database?.drop();
});
const cleanups: (() => unknown)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

const put = (id: number, threadId: string, checkpointId = "1"): Request => ({
  id,
  operation: { case: "put", value: { threadId, checkpointId, checkpointJson: '{"v": 4}' } },
});
const get = (id: number, threadId: string): Request => ({
  id,
  operation: { case: "getTuple", value: { threadId } },
});

describe.each(["an HTTP/2 stream", "an upgraded connection"] as const)("on %s", (wire) => {
  const openRaw = (url: string) =>
    speak(wire === "an HTTP/2 stream" ? openOnHttp2(url) : openUpgraded(url));

  it("greets, then answers each operation under its id", async () => {
    const session = openRaw(server.url);
    expect((await session.next()).result).toMatchObject({
      case: "welcome",
      value: { maxInFlight: 256 },
    });
    session.send(put(7, "wire"), get(9, "nobody"));
    const answers = [await session.next(), await session.next()];
    expect(answers.map(({ id, result }) => [id, result.case]).sort()).toEqual([
      [7, "put"],
      [9, "getTuple"],
    ]);
    session.half();
    expect(await session.end()).toEqual({});
  });

  it("understands envelopes that arrive a byte at a time", async () => {
    const session = openRaw(server.url);
    await session.next();
    for (const byte of encode(get(1, "wire"))) {
      session.raw(Buffer.from([byte]));
      await sleep(0);
    }
    expect((await session.next()).result).toMatchObject({
      case: "getTuple",
      value: { tuple: { key: { threadId: "wire" } } },
    });
  });

  it("does not let a slow operation hold up the others", async () => {
    const blocker = await block(
      database.url,
      `insert into checkpoints (thread_id, checkpoint_id, checkpoint) values ('${wire}', '1', '{}')`,
    );
    cleanups.push(() => blocker.release());
    const session = openRaw(server.url);
    await session.next();
    session.send(put(1, wire));
    await untilBlocked(sql, 1);
    session.send(put(2, "fast"), get(3, "fast"));
    expect([(await session.next()).id, (await session.next()).id].sort()).toEqual([2, 3]);
    await blocker.release();
    expect(await session.next()).toMatchObject({ id: 1, result: { case: "put" } });
  });

  it("ends an operation at its deadline or when it is cancelled, in Postgres too", async () => {
    const blocker = await block(database.url, "lock table checkpoints");
    cleanups.push(() => blocker.release());
    const session = openRaw(server.url);
    await session.next();
    session.send({ ...put(1, "late"), timeoutMs: 100 });
    expect(await session.next()).toMatchObject({
      id: 1,
      result: { case: "error", value: { code: Code.DeadlineExceeded } },
    });
    session.send(put(2, "late"));
    await untilBlocked(sql, 1);
    session.send({ id: 2, operation: { case: "cancel", value: {} } });
    expect(await session.next()).toMatchObject({
      id: 2,
      result: { case: "error", value: { code: Code.Canceled } },
    });
    await untilBlocked(sql, 0);
  });

  it("cancels what runs when the client goes away", async () => {
    const blocker = await block(database.url, "lock table checkpoints");
    cleanups.push(() => blocker.release());
    const session = openRaw(server.url);
    await session.next();
    session.send(put(1, "gone"));
    await untilBlocked(sql, 1);
    session.cut();
    await untilBlocked(sql, 0);
    const rpc = "checkpointd.v1.SessionService/put";
    await expect
      .poll(() => log.lines({ rpc }).at(-1))
      .toMatchObject({
        level: 30,
        code: "Canceled",
      });
  });

  it("tells the operations that a drain cannot wait for, before it cuts them", async () => {
    const leaving = await startTestServer(database.url, { drainTimeoutMs: 1000 });
    const blocker = await block(database.url, "lock table checkpoints");
    cleanups.push(() => blocker.release());
    const session = openRaw(leaving.url);
    await session.next();
    session.send(put(1, "cut"));
    await untilBlocked(sql, 1);
    const drained = leaving.drain();
    expect((await session.next()).result.case).toBe("goodbye");
    expect(await session.next()).toMatchObject({
      id: 1,
      result: {
        case: "error",
        value: { code: Code.Unavailable, message: "the server is shutting down" },
      },
    });
    session.half();
    expect(await session.end()).toEqual({});
    await drained;
  });

  it("answers a wrong request with the same detail as a call, and goes on", async () => {
    const session = openRaw(server.url);
    await session.next();
    session.send(put(1, ""), put(2, "x".repeat(513)), { id: 3, operation: { case: undefined } });
    const answers = [await session.next(), await session.next(), await session.next()];
    answers.sort((a, b) => a.id - b.id);
    expect(answers.map(({ id, result }) => ({ id, ...(result.value as object) }))).toMatchObject([
      { id: 1, code: Code.InvalidArgument, detail: { reason: "REQUIRED", field: "thread_id" } },
      { id: 2, code: Code.InvalidArgument, detail: { reason: "TOO_LONG", limit: 512n } },
      { id: 3, code: Code.Unimplemented },
    ]);
    session.send(get(4, "nobody"));
    expect((await session.next()).id).toBe(4);
  });

  it.each([
    ["an id of zero", encode(get(0, "x")), "invalid_argument"],
    ["flags it does not know", Buffer.concat([envelope(1, 0)]), "invalid_argument"],
    [
      "bytes that are no message",
      Buffer.concat([envelope(0, 3), Buffer.from("???")]),
      "invalid_argument",
    ],
    ["a message above the limit", envelope(0, 2 ** 31), "resource_exhausted"],
  ])("ends with an error at %s", async (_, bytes, code) => {
    const session = openRaw(server.url);
    await session.next();
    session.raw(bytes);
    expect(await session.end()).toMatchObject({ error: { code } });
  });

  it("carries out nothing of what follows an error, and closes in the end", async () => {
    const session = openRaw(server.url);
    await session.next();
    session.raw(Buffer.concat([encode(put(1, `${wire} before`)), envelope(0, 2 ** 31)]));
    for (let i = 0; i < 10; i++) {
      session.raw(encode(put(2, `${wire} after`)));
      await sleep(1);
    }
    expect(await session.end()).toMatchObject({ error: { code: "resource_exhausted" } });
    // It hears of the end by and by.
    const sending = setInterval(() => session.raw(encode(put(3, `${wire} after`))), 100);
    await session.closed;
    clearInterval(sending);
    expect(await count(`${wire} after`)).toBe(0);
  });

  it("ends with an error at an id that is in use", async () => {
    const blocker = await block(database.url, "lock table checkpoints");
    cleanups.push(() => blocker.release());
    const session = openRaw(server.url);
    await session.next();
    session.send(put(1, "twice"), put(1, "twice"));
    expect(await session.end()).toMatchObject({ error: { code: "invalid_argument" } });
    await untilBlocked(sql, 0);
  });

  it("reads no more of a client than it lets it have under way, and loses nothing", async () => {
    const session = openRaw(server.url);
    await session.next();
    const ids = Array.from({ length: 3000 }, (_, i) => i + 1);
    session.send(...ids.map((id) => get(id, "nobody")));
    const answered = new Set<number>();
    while (answered.size < ids.length) answered.add((await session.next()).id);
    expect(answered.size).toBe(3000);
  });

  it("answers a ping at once, whatever else is under way", async () => {
    const blocker = await block(database.url, "lock table checkpoints");
    cleanups.push(() => blocker.release());
    const session = openRaw(server.url);
    await session.next();
    session.send(put(1, "pinged"), { id: 2, operation: { case: "ping", value: {} } });
    expect(await session.next()).toMatchObject({ id: 2, result: { case: "pong" } });
    await blocker.release();
    expect(await session.next()).toMatchObject({ id: 1, result: { case: "put" } });
  });

  it("logs each operation with a request id and nothing of what it holds", async () => {
    const session = openRaw(server.url);
    await session.next();
    session.send(put(1, "s3cr3t"));
    await session.next();
    await expect
      .poll(() => log.lines().some(({ rpc }) => rpc === "checkpointd.v1.SessionService/put"))
      .toBe(true);
    expect(log.lines().every(({ rpc, requestId }) => rpc === undefined || requestId)).toBe(true);
    expect(JSON.stringify(log.lines())).not.toContain("s3cr3t");
  });
});

describe("over gRPC", () => {
  it("works the same, as connect-es carries it", async () => {
    const client = createClient(SessionService, createGrpcTransport({ baseUrl: server.url }));
    const seen: [number, string | undefined][] = [];
    const requests = [put(1, "grpc"), get(2, "nobody"), put(3, "")];
    async function* send() {
      yield* requests;
    }
    for await (const { id, result } of client.openSession(send())) seen.push([id, result.case]);
    expect(seen[0]).toEqual([0, "welcome"]);
    expect(seen.slice(1).sort()).toEqual([
      [1, "put"],
      [2, "getTuple"],
      [3, "error"],
    ]);
  });
});

describe("through ConnectSaver", () => {
  it("moves to a new session when the old one is of age, and loses nothing", async () => {
    const short = await startTestServer(database.url, { sessionAgeMs: 50 });
    cleanups.push(() => short.drain());
    const saver = ConnectSaver.fromUrl(short.url);
    for (let i = 0; i < 60; i++) {
      await Promise.all([write(saver, `age-${i}`), write(saver, `age-${i}b`), sleep(5)]);
    }
    await saver.end();
    expect(await count("age-%")).toBe(120);
  });

  it("hands over at a drain: what is under way finishes, what comes next goes elsewhere", async () => {
    const first = await startTestServer(database.url, { drainTimeoutMs: 20_000 });
    const second = await startTestServer(database.url);
    cleanups.push(() => second.drain());
    let target = first;
    const relay = await startRelay(() => Number(target.port));
    cleanups.push(() => relay.close());
    const saver = ConnectSaver.fromUrl(relay.url);
    await write(saver, "drain-0");
    const blocker = await block(database.url, "lock table checkpoints in exclusive mode");
    const slow = write(saver, "drain-slow");
    await untilBlocked(sql, 1);
    target = second;
    const drained = first.drain();
    const later = write(saver, "drain-later");
    await blocker.release();
    await Promise.all([slow, later, drained]);
    await saver.end();
    expect(await count("drain-%")).toBe(3);
  });

  it("survives connections that are cut under load", async () => {
    const relay = await startRelay(() => Number(server.port));
    cleanups.push(() => relay.close());
    const saver = ConnectSaver.fromUrl(relay.url);
    const cutting = setInterval(() => relay.cut(), 40);
    cleanups.push(() => clearInterval(cutting));
    for (let round = 0; round < 20; round++) {
      await Promise.all(Array.from({ length: 16 }, (_, i) => write(saver, `cut-${round}-${i}`)));
    }
    clearInterval(cutting);
    await saver.end();
    expect(await count("cut-%")).toBe(320);
  });

  it("runs more operations than the server lets it have under way", async () => {
    const saver = ConnectSaver.fromUrl(server.url);
    await Promise.all(Array.from({ length: 700 }, (_, i) => write(saver, `many-${i}`)));
    await saver.end();
    expect(await count("many-%")).toBe(700);
  });

  it("carries large values", async () => {
    const saver = ConnectSaver.fromUrl(server.url);
    for (const size of [200_000, 2_000_000]) {
      const bytes = new Uint8Array(size).map((_, i) => i % 251);
      const config = await write(saver, `large-${size}`, bytes);
      const tuple = await saver.getTuple(config);
      expect(Buffer.compare(tuple?.checkpoint.channel_values.a as Uint8Array, bytes)).toBe(0);
    }
    await saver.end();
  });

  it("tells the same errors as unary calls", async () => {
    for (const session of [true, false]) {
      const headers = { "x-request-id": `agent-${session}` };
      const saver = ConnectSaver.fromUrl(server.url, { session, headers });
      const error = await write(saver, "x".repeat(513)).catch((refused) => refused);
      expect(error).toBeInstanceOf(ConnectError);
      expect(error.code).toBe(Code.InvalidArgument);
      expect(errorDetail(error)).toMatchObject({
        reason: "TOO_LONG",
        field: "thread_id",
        limit: 512n,
      });
      // The one that the server's log has it by.
      const requestId = error.metadata.get("x-request-id");
      expect(requestId).toMatch(session ? /^agent-true\/\d+$/ : /^agent-false$/);
      expect(log.lines({ requestId })).toHaveLength(1);
      await saver.end();
    }
  });

  it("sends nothing above its own limit", async () => {
    const saver = ConnectSaver.fromUrl(server.url, { maxRequestBytes: 10_000 });
    const large = write(saver, "above-own-limit", "x".repeat(10_000)).catch((error) => error);
    await write(saver, "above-own-limit-not", "x".repeat(9_000));
    expect(await large).toMatchObject({ code: Code.ResourceExhausted });
    expect((await large).rawMessage).toContain("writeMaxBytes");
    await saver.end();
    expect(await count("above-own-limit%")).toBe(1);
  });

  it("fails only the operation that is too large for the server, as a unary call would", async () => {
    const small = await startTestServer(database.url, { maxMessageSize: 16_384 });
    cleanups.push(() => small.drain());
    const saver = ConnectSaver.fromUrl(small.url);
    const large = write(saver, "too-large", "x".repeat(20_000)).catch((error) => error);
    await Promise.all(Array.from({ length: 20 }, (_, i) => write(saver, `beside-large-${i}`)));
    expect(await large).toMatchObject({ code: Code.ResourceExhausted });
    expect((await large).rawMessage).toContain("16384");
    await write(saver, "beside-large-after");
    await saver.end();
    expect(await count("beside-large-%")).toBe(21);
  });

  it.each([404, 415, 501, "silence"] as const)(
    "makes unary calls where a session is answered with %s",
    async (answer) => {
      const proxy = await startProxy(server.url, answer);
      cleanups.push(() => proxy.close());
      const saver = ConnectSaver.fromUrl(proxy.url);
      await write(saver, `without-${answer}`);
      await write(saver, `without-${answer}-2`);
      await saver.end();
      expect(await count(`without-${answer}%`)).toBe(2);
      expect(proxy.sessions()).toBe(1);
    },
  );

  it.each(["refuses them", "cuts them", "says nothing to them"] as const)(
    "takes a stream of HTTP/2 where something %s that ask to upgrade",
    async (does) => {
      const gate = await startHttp2Gate(() => Number(server.port), does);
      cleanups.push(() => gate.close());
      const requestId = `gated-${does.replaceAll(" ", "-")}`;
      const saver = ConnectSaver.fromUrl(gate.url, { headers: { "x-request-id": requestId } });
      await write(saver, requestId);
      await saver.end();
      await expect
        .poll(() => log.lines({ rpc: "checkpointd.v1.SessionService/put" }).at(-1))
        .toMatchObject({ requestId: `${requestId}/1` });
      expect(gate.upgrades()).toBe(1);
    },
  );

  it("fails what is under way when it is sent what is no message", async () => {
    const gate = await startHttp2Gate(() => Number(server.port), "answers them with noise");
    cleanups.push(() => gate.close());
    const saver = ConnectSaver.fromUrl(gate.url, { retry: { attempts: 2, initialDelayMs: 1 } });
    await expect(write(saver, "noise")).rejects.toMatchObject({ code: Code.Unavailable });
    expect(gate.upgrades()).toBe(2);
    await saver.end();
  });

  it("upgrades where nothing is in the way", async () => {
    const gate = await startHttp2Gate(() => Number(server.port), "lets them through");
    cleanups.push(() => gate.close());
    const saver = ConnectSaver.fromUrl(`${gate.url}/`);
    await write(saver, "upgraded");
    await saver.end();
    expect([gate.upgrades(), gate.http2()]).toEqual([1, 0]);
  });

  it("fails at its deadline, and everything after end()", async () => {
    const blocker = await block(database.url, "lock table checkpoints");
    cleanups.push(() => blocker.release());
    const saver = ConnectSaver.fromUrl(server.url, { timeoutMs: 200 });
    await expect(write(saver, "late")).rejects.toMatchObject({ code: Code.DeadlineExceeded });
    await blocker.release();
    await write(saver, "in-time");
    await saver.end();
    await expect(write(saver, "after")).rejects.toThrow("end() was called");
  });
});

function write(saver: ConnectSaver, thread: string, value: unknown = "value") {
  return saver.put(
    { configurable: { thread_id: thread } },
    {
      v: 4,
      id: "1",
      ts: "",
      channel_values: { a: value },
      channel_versions: { a: 1 },
      versions_seen: {},
    },
    { source: "input", step: -1, parents: {} },
    { a: 1 },
  );
}

async function count(threads: string): Promise<number> {
  const { rows } = await sql.query(
    "select count(*)::int as n from checkpoints where thread_id like $1",
    [threads],
  );
  return rows[0].n;
}

function encode(request: Request): Buffer {
  const bytes = toBinary(OpenSessionRequestSchema, create(OpenSessionRequestSchema, request));
  return Buffer.concat([envelope(0, bytes.length), bytes]);
}

/** A session without our client: what is written goes out as it is. */
function speak({ stream, closed, cut }: RawStream) {
  cleanups.push(cut);
  const messages: OpenSessionResponse[] = [];
  let last: unknown;
  let wake = () => {};
  stream.on(
    "data",
    createEnvelopeReader(
      Number.POSITIVE_INFINITY,
      () => new Error(),
      (flags, bytes) => {
        if (flags === endOfStream) last = JSON.parse(Buffer.from(bytes).toString());
        else messages.push(fromBinary(OpenSessionResponseSchema, bytes));
        wake();
      },
    ),
  );
  const until = async (ready: () => boolean) => {
    while (!ready()) {
      await new Promise<void>((resolve) => {
        wake = resolve;
      });
    }
  };
  return {
    send: (...requests: Request[]) => stream.write(Buffer.concat(requests.map(encode))),
    raw: (bytes: Buffer) => stream.write(bytes),
    half: () => stream.end(),
    cut,
    closed,
    async next() {
      await until(() => messages.length > 0);
      return messages.shift() as OpenSessionResponse;
    },
    async end() {
      await until(() => last !== undefined);
      return last;
    },
  };
}

/** Passes TCP on to a port that may change, and can cut all connections. */
async function startRelay(port: () => number) {
  const sockets = new Set<Socket>();
  const relay = createRelay((socket) => {
    const there = dial(port(), "127.0.0.1");
    for (const [one, other] of [
      [socket, there],
      [there, socket],
    ] as const) {
      sockets.add(one);
      one
        .on("error", () => {})
        .on("close", () => {
          sockets.delete(one);
          other.destroy();
        });
      one.pipe(other);
    }
  });
  await new Promise<void>((resolve) => relay.listen(0, "127.0.0.1", resolve));
  const cut = () => {
    for (const socket of sockets) socket.destroy();
  };
  return {
    url: `http://127.0.0.1:${(relay.address() as AddressInfo).port}`,
    cut,
    close() {
      cut();
      relay.close();
    },
  };
}

/** Passes HTTP/2 on, and does something else to connections that begin with HTTP/1.1. */
async function startHttp2Gate(
  port: () => number,
  does:
    | "refuses them"
    | "cuts them"
    | "says nothing to them"
    | "answers them with noise"
    | "lets them through",
) {
  const sockets = new Set<Socket>();
  let upgrades = 0;
  let http2 = 0;
  const gate = createRelay((socket) => {
    sockets.add(socket);
    socket.on("error", () => {});
    socket.once("data", (hello) => {
      if (hello.toString("latin1").startsWith("PRI")) http2++;
      else {
        upgrades++;
        if (does === "refuses them") {
          socket.end("HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        } else if (does === "answers them with noise") {
          const upgrade = "connection: upgrade\r\nupgrade: checkpointd-session\r\n";
          socket.write(`HTTP/1.1 101 Switching Protocols\r\n${upgrade}\r\n\0\0\0\0\x03???`);
        } else if (does === "cuts them") socket.destroy();
        if (does !== "lets them through") return;
      }
      const there = dial(port(), "127.0.0.1");
      sockets.add(there);
      there.on("error", () => {});
      there.write(hello);
      socket.pipe(there).pipe(socket);
    });
  });
  await new Promise<void>((resolve) => gate.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${(gate.address() as AddressInfo).port}`,
    upgrades: () => upgrades,
    http2: () => http2,
    close() {
      for (const socket of sockets) socket.destroy();
      gate.close();
    },
  };
}

/** Passes calls on, but knows no sessions. */
async function startProxy(url: string, answer: number | "silence") {
  let sessions = 0;
  const upstream = connectHttp2(url);
  const proxy = createServer();
  proxy.on("stream", (stream, headers) => {
    stream.on("error", () => {});
    if (headers[":path"] === sessionPath) {
      sessions++;
      if (answer !== "silence") stream.respond({ ":status": answer }, { endStream: true });
      return;
    }
    const onward = upstream.request({ ...headers, ":authority": new URL(url).host });
    stream.pipe(onward);
    onward.on("response", (response) => {
      stream.respond(response);
      onward.pipe(stream);
    });
  });
  await new Promise<void>((resolve) => proxy.listen(0, "127.0.0.1", resolve));
  return {
    url: `http://127.0.0.1:${(proxy.address() as AddressInfo).port}`,
    sessions: () => sessions,
    close() {
      proxy.close();
      upstream.destroy();
    },
  };
}
