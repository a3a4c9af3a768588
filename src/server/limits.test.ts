/** What bounds the memory and the time that clients take of a server. */
import { spawn } from "node:child_process";
import { once } from "node:events";
import * as http2 from "node:http2";
import * as net from "node:net";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";
import { create, fromBinary, toBinary } from "@bufbuild/protobuf";
import { Code, type ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport, createGrpcTransport } from "@connectrpc/connect-node";
import { afterEach, describe, expect, it, onTestFinished } from "vitest";
import { ErrorDetailSchema } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import {
  CheckpointService,
  PutRequestSchema,
} from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import {
  OpenSessionRequestSchema,
  type OpenSessionResponse,
  OpenSessionResponseSchema,
} from "../../gen/checkpointd/v1/session_service_pb.js";
import { createEnvelopeReader, endOfStream, envelope } from "../protocol/envelope.js";
import { sessionPath } from "../protocol/wire.js";
import { captureLog } from "../testing/captured_log.js";
import { type EchoServer, startEchoServer } from "../testing/echo_server.js";
import { openOnHttp2, openUpgraded, type RawStream } from "../testing/raw_session.js";
import type { Limits } from "./limits.js";
import { mostConnections } from "./open_files.js";

const started: EchoServer[] = [];
afterEach(async () => {
  await Promise.all(started.splice(0).map((server) => server.stop()));
});

type Answer = Parameters<typeof startEchoServer>[0];

async function start(limits: Partial<Limits>, answer: Answer = () => ({})) {
  const { log, lines } = captureLog();
  const server = await startEchoServer(answer, limits, log);
  started.push(server);
  return { ...server, lines };
}

/** A promise and the function that fulfils it. */
function gate() {
  let open = () => {};
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { open, opened };
}

const blobOf = (bytes: number) => ({
  channel: "c",
  version: "1",
  value: { type: "bytes", data: new Uint8Array(bytes) },
});
const putOf = (bytes: number) => ({ threadId: "t", blobs: [blobOf(bytes)] });

function clientOf(url: string, protocol: "connect" | "connect over HTTP/1.1" | "gRPC") {
  const common = { baseUrl: url, acceptCompression: [] };
  const transport =
    protocol === "gRPC"
      ? createGrpcTransport(common)
      : createConnectTransport({ ...common, httpVersion: protocol === "connect" ? "2" : "1.1" });
  return createClient(CheckpointService, transport);
}

function expectOverloaded(error: unknown, limit: number): void {
  expect(error).toMatchObject({ code: Code.ResourceExhausted });
  expect((error as ConnectError).findDetails(ErrorDetailSchema)).toMatchObject([
    { reason: "OVERLOADED", limit: BigInt(limit), retryDelay: { seconds: 1n } },
  ]);
}

/** A session by hand. */
function speak({ stream, closed, cut }: RawStream) {
  onTestFinished(cut);
  const answers: OpenSessionResponse[] = [];
  const end: { error?: unknown }[] = [];
  const read = createEnvelopeReader(
    2 ** 31,
    () => new Error(),
    (flags, message) => {
      if (flags === endOfStream) end.push(JSON.parse(Buffer.from(message).toString()));
      else answers.push(fromBinary(OpenSessionResponseSchema, message));
    },
  );
  return {
    stream,
    closed,
    answers,
    end,
    read: () => stream.on("data", read),
    write: (bytes: Uint8Array) => stream.write(bytes),
  };
}

function operation(id: number, bytes: number): Buffer {
  const message = toBinary(
    OpenSessionRequestSchema,
    create(OpenSessionRequestSchema, { id, operation: { case: "put", value: putOf(bytes) } }),
  );
  return Buffer.concat([envelope(0, message.length), message]);
}

function ping(id: number): Buffer {
  const message = toBinary(
    OpenSessionRequestSchema,
    create(OpenSessionRequestSchema, { id, operation: { case: "ping", value: {} } }),
  );
  return Buffer.concat([envelope(0, message.length), message]);
}

const opened = { "an HTTP/2 stream": openOnHttp2, "an upgraded connection": openUpgraded };
const wires = ["an HTTP/2 stream", "an upgraded connection"] as const;
const protocols = ["connect", "connect over HTTP/1.1", "gRPC"] as const;

describe("the bytes of requests", () => {
  const requestBytes = 1_000_000;

  it.each(protocols)("are refused when too many are in work, over %s", async (protocol) => {
    const { open, opened } = gate();
    const { url } = await start({ requestBytes }, () => opened.then(() => ({})));
    const client = clientOf(url, protocol);
    const puts = [1, 2].map(() => client.put(putOf(700_000)));
    // One is answered at once. The other waits.
    expectOverloaded(await Promise.race(puts).catch((error) => error), requestBytes);
    open();
    const settled = await Promise.allSettled(puts);
    expect(settled.map(({ status }) => status).sort()).toEqual(["fulfilled", "rejected"]);
    // What they held is free again.
    for (let i = 0; i < 5; i++) await client.put(putOf(900_000));
  });

  it("are counted as they are when inflated", async () => {
    const { url } = await start({ requestBytes });
    const message = gzipSync(
      toBinary(PutRequestSchema, create(PutRequestSchema, putOf(1_020_000))),
    );
    expect(message.length).toBeLessThan(requestBytes / 100);
    const post = () =>
      fetch(`${url}/checkpointd.v1.CheckpointService/Put`, {
        method: "POST",
        headers: { "content-type": "application/proto", "content-encoding": "gzip" },
        body: message,
      });
    const answer = await post();
    expect([answer.status, answer.headers.get("retry-after")]).toEqual([429, "1"]);
    expect(await answer.json()).toMatchObject({ code: "resource_exhausted" });
    for (let i = 0; i < 5; i++) await clientOf(url, "connect").put(putOf(900_000));
  });

  it("are none again after a thousand that were cut off in the middle, on every carrier", async () => {
    const { url } = await start({ requestBytes });
    const { port } = new URL(url);
    const put = toBinary(PutRequestSchema, create(PutRequestSchema, putOf(20_000)));
    for (let round = 0; round < 50; round++) {
      const over2 = http2.connect(url);
      over2.on("error", () => {});
      const types = ["application/proto", "application/grpc+proto", "application/connect+proto"];
      const streams = types.flatMap((type, i) =>
        [0, 1, 2, 3].map((n) => {
          const isSession = i === 2 || n === 3;
          const stream = over2.request({
            ":method": "POST",
            ":path": isSession ? sessionPath : "/checkpointd.v1.CheckpointService/Put",
            "content-type": isSession && i < 2 ? "application/grpc+proto" : type,
          });
          stream.on("error", () => {}).resume();
          stream.write(
            isSession ? operation(1, 20_000).subarray(0, 10_000) : put.subarray(0, 10_000),
          );
          return stream;
        }),
      );
      const sockets = [0, 1, 2, 3, 4, 5, 6, 7].map((n) => {
        const socket = net.connect(Number(port), "127.0.0.1");
        socket.on("error", () => {}).resume();
        if (n < 4) {
          socket.write(
            "POST /checkpointd.v1.CheckpointService/Put HTTP/1.1\r\nhost: 127.0.0.1\r\n" +
              "content-type: application/proto\r\ncontent-length: 20000\r\n\r\n",
          );
          socket.write(put.subarray(0, 10_000));
        }
        return socket;
      });
      const upgraded = sockets.slice(4).map(() => speak(openUpgraded(url)));
      for (const each of upgraded) {
        each.read();
        each.write(operation(1, 20_000).subarray(0, 10_000));
      }
      await sleep(20);
      for (const [i, stream] of streams.entries()) if (i % 2 === 0) stream.close(8);
      await sleep(5);
      over2.destroy();
      for (const socket of sockets) socket.destroy();
      for (const [i, { stream }] of upgraded.entries()) {
        if (i % 2 === 0) stream.end();
        else stream.destroy();
      }
    }
    // Almost all that there may be.
    await expect
      .poll(
        () =>
          clientOf(url, "gRPC")
            .put(putOf(990_000))
            .then(
              () => "stored",
              (error) => error.message,
            ),
        { timeout: 20_000 },
      )
      .toBe("stored");
  });

  it.each(wires)("are those of unfinished messages too, on %s", async (wire) => {
    const { url } = await start({ requestBytes });
    const whole = operation(1, 700_000);
    const first = speak(opened[wire](url));
    first.read();
    first.write(whole.subarray(0, 600_000));
    const second = speak(opened[wire](url));
    second.read();
    await expect.poll(() => second.answers.length).toBe(1);
    second.write(whole.subarray(0, 600_000));
    await expect.poll(() => first.end.length + second.end.length).toBe(1);
    const [ended, other] = first.end.length > 0 ? [first, second] : [second, first];
    expect(ended.end).toMatchObject([{ error: { code: "resource_exhausted" } }]);
    other.write(whole.subarray(600_000));
    await expect.poll(() => other.answers.at(-1)?.result.case).toBe("put");
    for (let id = 2; id < 6; id++) other.write(operation(id, 900_000));
    await expect.poll(() => other.answers.length, { timeout: 10_000 }).toBe(6);
  });

  it("are those of a session that connect-es carries", async () => {
    const { url } = await start({ requestBytes, arrivalPatienceMs: 1_000, arrivalBytesPerMs: 1e6 });
    const streams = [1, 2].map(() => {
      const stream = connect2(url).request({
        ":method": "POST",
        ":path": sessionPath,
        "content-type": "application/grpc+proto",
        te: "trailers",
      });
      stream.resume().write(operation(1, 700_000).subarray(0, 600_000));
      return once(stream, "trailers");
    });
    const trailers = (await Promise.all(streams)).map(([each]) => each["grpc-status"]);
    // The other one's message never comes whole.
    expect(trailers.sort()).toEqual([`${Code.DeadlineExceeded}`, `${Code.ResourceExhausted}`]);
  });

  it.each(wires)("are taken from the largest that is on its way, on %s", async (wire) => {
    const { url } = await start({ requestBytes });
    const session = speak(opened[wire](url));
    session.read();
    session.write(operation(1, 950_000).subarray(0, 900_000));
    await expect.poll(() => session.answers.length).toBe(1);
    const client = clientOf(url, "connect");
    await expect
      .poll(() =>
        client.put(putOf(500_000)).then(
          () => session.end.length,
          () => -1,
        ),
      )
      .toBe(1);
    expect(session.end).toMatchObject([{ error: { code: "resource_exhausted" } }]);
    // All of it is free again.
    await client.put(putOf(900_000));
  });

  it.each(wires)("are those of a session's operations in work, on %s", async (wire) => {
    const { open, opened: answered } = gate();
    const { url } = await start({ requestBytes: 2_500 }, () => answered.then(() => ({})));
    const session = speak(opened[wire](url));
    session.read();
    session.write(Buffer.concat([1, 2, 3].map((id) => operation(id, 1_000))));
    await expect.poll(() => session.answers.length).toBe(2);
    expect(session.answers.at(-1)).toMatchObject({
      id: 3,
      result: {
        case: "error",
        value: { code: Code.ResourceExhausted, detail: { reason: "OVERLOADED", limit: 2_500n } },
      },
    });
    open();
    await expect.poll(() => session.answers.length).toBe(4);
    session.write(operation(4, 1_000));
    await expect.poll(() => session.answers.at(-1)).toMatchObject({ id: 4 });
  });
});

describe("what is sent and not read", () => {
  it("cuts its connection, as the memory that its frames take counts", async () => {
    const backlogBytes = 200_000;
    const { url, lines } = await start({ backlogBytes }, () => new Promise(() => {}));
    const session = speak(openOnHttp2(url));
    session.read();
    // Of a session with so many under way no more is read.
    session.write(Buffer.concat(Array.from({ length: 300 }, (_, i) => operation(i + 1, 10))));
    let frames = 0;
    while (!session.stream.destroyed && frames < 100_000) {
      session.write(Buffer.from([0]));
      frames++;
      await new Promise(setImmediate);
    }
    await session.closed;
    const msg = "cut a connection that sends more than is read";
    expect(lines({ msg })).toMatchObject([{ level: 40, limit: backlogBytes }]);
    expect(frames).toBeLessThan(20_000);
  });

  it("cuts the connection of which most waits, and not who sends when there is too much", async () => {
    const limits = { backlogBytesInAll: 1_000_000 };
    const { url, lines } = await start(limits, () => new Promise(() => {}));
    // Of a session with so many under way no more is read.
    const full = Buffer.concat(Array.from({ length: 300 }, (_, i) => operation(i + 1, 10)));
    const [small, large, last] = [1, 2, 3].map(() => speak(openOnHttp2(url))) as [
      ReturnType<typeof speak>,
      ReturnType<typeof speak>,
      ReturnType<typeof speak>,
    ];
    for (const [session, bytes] of [
      [small, 200_000],
      [large, 600_000],
    ] as const) {
      session.read();
      session.write(full);
      await sleep(200);
      session.write(operation(301, bytes));
      await sleep(200);
    }
    last.read();
    last.write(full);
    await sleep(200);
    last.write(operation(301, 300_000));
    await large.closed;
    const msg = "cut a connection that sends more than is read";
    expect(lines({ msg })).toMatchObject([{ level: 40, limit: limits.backlogBytesInAll }]);
    expect([small, last].map(({ stream }) => stream.destroyed)).toEqual([false, false]);
  });

  it("does not count what was read since", async () => {
    const { open, opened: answered } = gate();
    let calls = 0;
    const { url, lines } = await start({ backlogBytesInAll: 1_000_000 }, () =>
      ++calls <= 301 ? answered.then(() => ({})) : new Promise(() => {}),
    );
    const full = Buffer.concat(Array.from({ length: 300 }, (_, i) => operation(i + 1, 10)));
    const first = speak(openOnHttp2(url));
    first.read();
    first.write(full);
    await sleep(200);
    first.write(operation(301, 800_000));
    await sleep(200);
    open();
    await expect.poll(() => first.answers.length).toBe(302);
    const second = speak(openOnHttp2(url));
    second.read();
    second.write(full);
    await sleep(200);
    // With what waited of the first it would be too much, if that still waited.
    second.write(operation(301, 800_000));
    await sleep(500);
    expect(lines({ msg: "cut a connection that sends more than is read" })).toEqual([]);
    expect(second.stream.destroyed).toBe(false);
  });

  it("cuts a connection of HTTP/1.1 that asks on and on without waiting for answers", async () => {
    let asked = 0;
    const { url, lines } = await start({}, () => {
      asked++;
      return new Promise(() => {});
    });
    const body = '{"threadId":"t"}';
    const request =
      "POST /checkpointd.v1.CheckpointService/GetTuple HTTP/1.1\r\nhost: 127.0.0.1\r\n" +
      `content-type: application/json\r\ncontent-length: ${body.length}\r\n\r\n${body}`;
    const socket = net.connect(Number(new URL(url).port), "127.0.0.1");
    socket.on("error", () => {}).resume();
    const closed = new Promise((resolve) => socket.on("close", resolve));
    socket.write(request.repeat(10_000));
    await closed;
    const msg = "cut a connection that does not wait for its answers";
    expect(lines({ msg })).toMatchObject([{ level: 40, limit: 256 }]);
    expect(asked).toBeLessThanOrEqual(256);
  });

  it("cuts its connection when it comes in a flood of small frames", async () => {
    const { url, lines } = await start({});
    const socket = net.connect(Number(new URL(url).port), "127.0.0.1");
    socket.on("error", () => {}).resume();
    const closed = new Promise((resolve) => socket.on("close", resolve));
    const frame = (type: number, flags: number, id: number, payload: Uint8Array) => {
      const head = Buffer.alloc(9);
      head.writeUIntBE(payload.length, 0, 3);
      head[3] = type;
      head[4] = flags;
      head.writeUInt32BE(id, 5);
      return Buffer.concat([head, payload]);
    };
    const literal = (name: string, value: string) =>
      Buffer.concat([
        Buffer.from([0, name.length]),
        Buffer.from(name),
        Buffer.from([value.length]),
        Buffer.from(value),
      ]);
    const headers = Buffer.concat([
      literal(":method", "POST"),
      literal(":scheme", "http"),
      literal(":path", sessionPath),
      literal(":authority", "127.0.0.1"),
      literal("content-type", "application/connect+proto"),
    ]);
    socket.write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    socket.write(Buffer.concat([frame(4, 0, 0, Buffer.alloc(0)), frame(1, 4, 1, headers)]));
    // One large message, a byte at a time.
    socket.write(frame(0, 0, 1, Buffer.from([0, 3, 0, 0, 0])));
    const many = Buffer.concat(
      Array.from({ length: 1_000 }, () => frame(0, 0, 1, Buffer.from("a"))),
    );
    for (let i = 0; i < 200 && !socket.destroyed; i++) {
      await new Promise((resolve) => socket.write(many, resolve));
    }
    await closed;
    const msg = "cut a connection that floods the server with small frames";
    expect(lines({ msg })).toMatchObject([{ level: 40, limit: 20_000 }]);
  });

  it("waits, of one session, while others have their turn", async () => {
    const { url } = await start({});
    const flood = speak(openUpgraded(url));
    const other = speak(openUpgraded(url));
    flood.read();
    other.read();
    await expect.poll(() => [flood, other].map(({ answers }) => answers.length)).toEqual([1, 1]);
    const ids = Array.from({ length: 50_000 }, (_, i) => ping(i + 1));
    flood.write(Buffer.concat(ids));
    let turns = 0;
    while (flood.answers.length <= 50_000) {
      turns++;
      await new Promise(setImmediate);
    }
    // In one of ours it takes 256.
    expect(turns).toBeGreaterThan(50_000 / 256 / 2);
  });
});

describe("what comes too slowly", () => {
  const limits = { arrivalPatienceMs: 500 };
  const message = "the request came too slowly";

  it("is given up over HTTP/1.1, and its connection ended", async () => {
    const { url } = await start(limits);
    const socket = ask1(url, getHeaders[":path"], "application/json", 1_000, Buffer.from("{"));
    let answer = "";
    socket.on("data", (chunk) => {
      answer += chunk;
    });
    await isClosed(socket);
    expect(answer).toMatch(/^HTTP\/1.1 504 /);
    expect(answer).toContain(message);
  });

  it("is given up when it stands still, however much of it came before", async () => {
    const { url } = await start(limits);
    // As it comes on average, it might take 100 s.
    const head = Buffer.alloc(1_000_000);
    const socket = ask1(
      url,
      "/checkpointd.v1.CheckpointService/Put",
      "application/proto",
      2e6,
      head,
    );
    let answer = "";
    socket.on("data", (chunk) => {
      answer += chunk;
    });
    await isClosed(socket);
    expect(answer).toMatch(/^HTTP\/1.1 504 /);
    expect(answer).toContain(message);
  });

  it("is given up on an HTTP/2 stream, all the same if nothing comes", async () => {
    const { url } = await start(limits);
    const session = http2.connect(url);
    onTestFinished(() => session.destroy());
    for (const type of ["application/json", "application/grpc+proto"]) {
      const stream = session.request({
        ":method": "POST",
        ":path": "/checkpointd.v1.CheckpointService/Put",
        "content-type": type,
      });
      stream.on("error", () => {});
      const trailers = once(stream, "trailers").catch(() => []);
      const [headers] = (await once(stream, "response")) as [http2.IncomingHttpHeaders];
      if (type === "application/json") expect(headers[":status"]).toBe(504);
      stream.resume();
      if (type !== "application/json") {
        const told = (await trailers)[0]["grpc-message"];
        expect(decodeURIComponent(told)).toBe(message);
      }
      await once(stream, "close");
    }
  });

  it.each(wires)("is given up on a session: %s", async (wire) => {
    const { url } = await start(limits);
    const session = speak(opened[wire](url));
    session.read();
    session.write(operation(1, 10));
    await expect.poll(() => session.answers.length).toBe(2);
    // It may be silent between its messages.
    await sleep(1_500);
    session.write(operation(2, 10));
    await expect.poll(() => session.answers.length).toBe(3);
    session.write(operation(3, 1_000).subarray(0, 500));
    await expect.poll(() => session.end, { timeout: 10_000 }).toHaveLength(1);
    expect(session.end).toMatchObject([{ error: { code: "deadline_exceeded", message } }]);
  });

  it.each(wires)(
    "is given up once no more comes, however much came before, on %s",
    async (wire) => {
      const { url } = await start({ ...limits, arrivalBytesPerMs: 0.1 });
      const session = speak(opened[wire](url));
      session.read();
      session.write(operation(1, 200_000).subarray(0, 100_000));
      await expect.poll(() => session.end, { timeout: 20_000 }).toHaveLength(1);
      expect(session.end).toMatchObject([{ error: { code: "deadline_exceeded", message } }]);
    },
  );

  it("is not what comes slowly and steadily", async () => {
    const { url } = await start({ ...limits, arrivalBytesPerMs: 0.1 });
    const session = speak(openUpgraded(url));
    session.read();
    const bytes = operation(1, 20_000);
    for (let at = 0; at < bytes.length; at += 2_000) {
      session.write(bytes.subarray(at, at + 2_000));
      await sleep(150);
    }
    await expect.poll(() => session.answers.length).toBe(2);
    expect(session.end).toEqual([]);
  });
});

/** A List without end, of messages of so many bytes. */
async function* endless(bytes: number) {
  while (true) yield { tuple: { blobs: [blobOf(bytes)] } };
}

const listHeaders = {
  ":method": "POST",
  ":path": "/checkpointd.v1.CheckpointService/List",
  "content-type": "application/connect+json",
};
const getHeaders = {
  ":method": "POST",
  ":path": "/checkpointd.v1.CheckpointService/GetTuple",
  "content-type": "application/proto",
};
const body = Buffer.from("{}");

/** Asks over HTTP/2 and reads nothing of the answer. */
function ask(session: http2.ClientHttp2Session, headers: http2.OutgoingHttpHeaders) {
  const isStream = headers === listHeaders;
  const stream = session.request(headers);
  stream.on("error", () => {});
  stream.end(isStream ? Buffer.concat([envelope(0, body.length), body]) : undefined);
  return stream;
}

function connect2(url: string) {
  const session = http2.connect(url);
  session.on("error", () => {});
  onTestFinished(() => session.destroy());
  return session;
}

/** Asks over HTTP/1.1 and reads nothing. */
function ask1(url: string, path: string, type: string, length: number, sent: Buffer): net.Socket {
  const { port } = new URL(url);
  const socket = net.connect({ port: Number(port), host: "127.0.0.1" });
  onTestFinished(() => void socket.destroy());
  socket.on("error", () => {});
  socket.write(
    `POST ${path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: ${type}\r\ncontent-length: ${length}\r\n\r\n`,
  );
  socket.write(sent);
  return socket;
}

const isClosed = (socket: net.Socket) =>
  new Promise<void>((resolve) => socket.once("close", () => resolve()));

describe("answers that are not read", () => {
  it("are ended on HTTP/2, and others of the connection go on", async () => {
    const { url, lines } = await start({ unreadMs: 1_000 }, (name) =>
      name === "list" ? endless(64 * 1024) : { tuple: { blobs: [blobOf(300_000)] } },
    );
    const session = connect2(url);
    const closes = [listHeaders, getHeaders].map((headers) => once(ask(session, headers), "close"));
    const slow = ask(session, listHeaders);
    let read = 0;
    slow.on("data", (chunk: Buffer) => {
      read += chunk.length;
      slow.pause();
      setTimeout(() => slow.resume(), 5);
    });
    await Promise.all(closes);
    await sleep(1_500);
    expect(slow.closed).toBe(false);
    expect(read).toBeGreaterThan(100_000);
    const ended = lines({ msg: "ended an answer that its client does not read" });
    expect(ended.length).toBe(2);
  });

  it("are ended on HTTP/1.1", async () => {
    const { url, finished } = await start({ unreadMs: 500 }, () => endless(64 * 1024));
    const sent = Buffer.concat([envelope(0, body.length), body]);
    const socket = ask1(url, listHeaders[":path"], "application/connect+json", sent.length, sent);
    await expect.poll(() => finished.length, { timeout: 10_000 }).toBe(1);
    socket.resume();
    await isClosed(socket);
  });

  it("of a call that is worked on for longer are waited for", async () => {
    const { url } = await start({ unreadMs: 300 }, () => sleep(1_200, {}));
    await clientOf(url, "connect over HTTP/1.1").getTuple({ threadId: "t" });
    await clientOf(url, "connect").getTuple({ threadId: "t" });
  });

  it.each(wires)("are ended on a session: %s", async (wire) => {
    const { url } = await start({ unreadMs: 1_000 }, () => ({ copied: 1n }));
    const { stream, closed, write } = speak(opened[wire](url));
    stream.pause();
    const pings = Buffer.concat(
      Array.from({ length: 5_000 }, (_, i) => {
        const ping = toBinary(
          OpenSessionRequestSchema,
          create(OpenSessionRequestSchema, { id: i + 1, operation: { case: "ping", value: {} } }),
        );
        return Buffer.concat([envelope(0, ping.length), ping]);
      }),
    );
    // Until the answers have filled what the system holds for a reader.
    let isOver = false;
    void closed.then(() => {
      isOver = true;
    });
    for (let i = 0; i < 1_000 && !isOver; i++) {
      if (!write(pings)) await Promise.race([once(stream, "drain"), closed]).catch(() => {});
    }
    await closed;
  });

  const unary = (bytes: number) => () => ({ tuple: { blobs: [blobOf(bytes)] } });

  it("are cut where a connection has too many for a second", async () => {
    const { url, lines } = await start({ unreadBytes: 10_000_000 }, unary(4_000_000));
    const session = connect2(url);
    for (let i = 0; i < 8; i++) ask(session, getHeaders);
    await once(session, "close");
    const msg = "cut a connection whose client does not read its answers";
    expect(lines({ msg })).toMatchObject([{ level: 40, limit: 10_000_000 }]);
    await clientOf(url, "connect").getTuple({ threadId: "t" });
  });

  it("are cut where all connections have too many, the one with most first", async () => {
    const { url, lines } = await start({ unreadBytesInAll: 40_000_000 }, unary(8_000_000));
    const little = connect2(url);
    const kept = ask(little, getHeaders);
    await once(kept, "response");
    const much = connect2(url);
    for (let i = 0; i < 8; i++) ask(much, getHeaders);
    await once(much, "close");
    expect(little.closed).toBe(false);
    const msg = "cut a connection whose client does not read its answers";
    expect(lines({ msg })).toMatchObject([{ limit: 40_000_000 }]);
    let read = 0;
    for await (const chunk of kept) read += chunk.length;
    expect(read).toBeGreaterThan(8_000_000);
  });

  it.each(protocols)("are at the most so many of every kind, over %s", async (protocol) => {
    const { url } = await start({ streamsInAll: 2 }, () => endless(64 * 1024));
    const client = clientOf(url, protocol);
    const stop = new AbortController();
    const list = (signal = new AbortController().signal) =>
      client.list({}, { signal })[Symbol.asyncIterator]();
    const streams = [1, 2].map(() => list(stop.signal));
    await Promise.all(streams.map((stream) => stream.next()));
    const third = await list()
      .next()
      .catch((error) => error);
    expect(third).toMatchObject({ code: Code.Unavailable });
    // Calls are not streams.
    await client.getTuple({ threadId: "t" });
    stop.abort();
    await Promise.allSettled(streams.map((stream) => stream.next()));
    const later = new AbortController();
    await expect
      .poll(() =>
        list(later.signal)
          .next()
          .then(() => "open", String),
      )
      .toBe("open");
    later.abort();
  });

  it("are at the most so many streams at a time", async () => {
    const { url } = await start({ streamedAnswers: 2 }, () => endless(64 * 1024));
    for (const protocol of protocols) {
      const client = clientOf(url, protocol);
      const stop = new AbortController();
      const streams = [1, 2].map(() =>
        client.list({}, { signal: stop.signal })[Symbol.asyncIterator](),
      );
      await Promise.all(streams.map((stream) => stream.next()));
      const third = client.list({})[Symbol.asyncIterator]();
      expectOverloaded(await third.next().catch((error) => error), 2);
      stop.abort();
      await Promise.allSettled(streams.map((stream) => stream.next()));
      await expect
        .poll(async () => {
          const later = new AbortController();
          const next = client.list({}, { signal: later.signal })[Symbol.asyncIterator]().next();
          return next.then(
            () => later.abort(),
            (error) => error,
          );
        })
        .toBeUndefined();
      // Before the next ones: that last stream ends too.
      await sleep(200);
    }
  });
});

describe("the end of a connection", () => {
  it("comes at twice its age, whatever is under way on it", async () => {
    const { url, lines } = await start({ ageMs: 300 }, async function* () {
      for (;;) yield* [{}, await sleep(50, {})];
    });
    const session = connect2(url);
    const reader = ask(session, listHeaders).resume();
    const sent = Buffer.concat([envelope(0, body.length), body]);
    const socket = ask1(
      url,
      listHeaders[":path"],
      "application/connect+json",
      sent.length,
      sent,
    ).resume();
    await Promise.all([once(reader, "close"), once(session, "close"), isClosed(socket)]);
    expect(lines({ msg: "cut a connection that had been asked to go and stayed" })).toHaveLength(2);
  });

  it("comes to a session too", async () => {
    const { url } = await start({ ageMs: 300 }, () => new Promise(() => {}));
    const onHttp2 = speak(openOnHttp2(url));
    onHttp2.write(operation(1, 10));
    await onHttp2.closed;

    const upgraded = speak(openUpgraded(url));
    upgraded.read();
    upgraded.write(operation(1, 10));
    await expect.poll(() => upgraded.end, { timeout: 10_000 }).toEqual([{}]);
    let isOver = false;
    void upgraded.closed.then(() => {
      isOver = true;
    });
    // Its client does not close it.
    const goOn = () => {
      upgraded.write(operation(2, 10));
      return isOver;
    };
    await expect.poll(goOn, { timeout: 30_000 }).toBe(true);
  });
});

describe("the limit of open files", () => {
  const limits = (files: string) =>
    `Max processes             1     1     processes\nMax open files            ${files}     524288     files\n`;

  it("leaves room for what is not a client's", () => {
    expect(mostConnections(10_000, limits("1024"))).toBe(824);
    expect(mostConnections(10_000, limits("524288"))).toBe(10_000);
    expect(mostConnections(10_000, limits("unlimited"))).toBe(10_000);
    expect(mostConnections(10_000, limits("100"))).toBe(1);
    expect(mostConnections(10_000, "")).toBe(10_000);
  });

  it.runIf(process.platform === "linux")("is not reached by connections", async () => {
    const http = fileURLToPath(new URL("../../dist/src/server/http.js", import.meta.url));
    const program = `
      const { startListener } = await import(process.argv[1]);
      const log = { debug() {}, info() {}, error() {}, warn: (...line) => console.log(...line) };
      const { port } = await startListener({ host: "127.0.0.1", port: 0, handler() {}, log });
      console.log(port);`;
    const node = '"$0" --input-type=module -e "$1" "$2"';
    const child = spawn(
      "sh",
      ["-c", `ulimit -n 230 && exec ${node}`, process.execPath, program, http],
      {
        stdio: ["ignore", "pipe", "inherit"],
      },
    );
    onTestFinished(() => void child.kill());
    let output = "";
    child.stdout.setEncoding("utf8").on("data", (text) => {
      output += text;
    });
    await expect.poll(() => output, { timeout: 30_000 }).toMatch(/^\d+\n/);
    const port = Number.parseInt(output, 10);
    const sockets = Array.from({ length: 40 }, () => {
      const socket = net
        .connect({ port, host: "127.0.0.1" })
        .on("error", () => {})
        .resume();
      onTestFinished(() => void socket.destroy());
      return socket;
    });
    await expect.poll(() => sockets.filter((each) => each.closed).length).toBe(10);
    expect(output).toContain("{ limit: 30 } too many connections");
  });
});
