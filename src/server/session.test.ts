/** Sessions on the wire, written by hand. */
import { once } from "node:events";
import { connect as connectHttp2 } from "node:http2";
import { setTimeout as sleep } from "node:timers/promises";
import { create, fromBinary, type MessageInitShape, toBinary } from "@bufbuild/protobuf";
import { Code, createClient } from "@connectrpc/connect";
import { createGrpcTransport } from "@connectrpc/connect-node";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import {
  OpenSessionRequestSchema,
  type OpenSessionResponse,
  OpenSessionResponseSchema,
  SessionService,
} from "../../gen/checkpointd/v1/session_service_pb.js";
import { createEnvelopeReader, endOfStream, envelope } from "../protocol/envelope.js";
import { sessionPath } from "../protocol/wire.js";
import { block, untilBlocked } from "../testing/blocking.js";
import { captureLog } from "../testing/captured_log.js";
import { startEdge } from "../testing/edge.js";
import { openOnHttp2, openUpgraded, type RawStream } from "../testing/raw_session.js";
import { startTestServer } from "../testing/test_server.js";

type Request = MessageInitShape<typeof OpenSessionRequestSchema>;

let edge: Awaited<ReturnType<typeof startEdge>>;
beforeAll(async () => {
  edge = await startEdge();
});
afterAll(() => edge?.stop());

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
    const session = openRaw(edge.server.url);
    const { result } = await session.next();
    expect(result).toMatchObject({ case: "welcome", value: { maxInFlight: 256 } });
    const { operations } = result.value as { operations: string[] };
    expect(operations).toEqual(expect.arrayContaining(["put_extending", "put_extending.offset"]));
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
    const session = openRaw(edge.server.url);
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
      edge.database.url,
      `insert into checkpoints (thread_id, checkpoint_id, checkpoint) values ('${wire}', '1', '{}')`,
    );
    onTestFinished(() => blocker.release());
    const session = openRaw(edge.server.url);
    await session.next();
    session.send(put(1, wire));
    await untilBlocked(edge.sql, 1);
    session.send(put(2, "fast"), get(3, "fast"));
    expect([(await session.next()).id, (await session.next()).id].sort()).toEqual([2, 3]);
    await blocker.release();
    expect(await session.next()).toMatchObject({ id: 1, result: { case: "put" } });
  });

  it("ends an operation at its deadline or when it is cancelled, in Postgres too", async () => {
    const blocker = await block(edge.database.url, "lock table checkpoints");
    onTestFinished(() => blocker.release());
    const session = openRaw(edge.server.url);
    await session.next();
    session.send({ ...put(1, "late"), timeoutMs: 100 });
    expect(await session.next()).toMatchObject({
      id: 1,
      result: { case: "error", value: { code: Code.DeadlineExceeded } },
    });
    session.send(put(2, "late"));
    await untilBlocked(edge.sql, 1);
    session.send({ id: 2, operation: { case: "cancel", value: {} } });
    expect(await session.next()).toMatchObject({
      id: 2,
      result: { case: "error", value: { code: Code.Canceled } },
    });
    await untilBlocked(edge.sql, 0);
  });

  it("cancels what runs when the client goes away", async () => {
    const blocker = await block(edge.database.url, "lock table checkpoints");
    onTestFinished(() => blocker.release());
    const session = openRaw(edge.server.url);
    await session.next();
    session.send(put(1, "gone"));
    await untilBlocked(edge.sql, 1);
    session.cut();
    await untilBlocked(edge.sql, 0);
    const rpc = "checkpointd.v1.SessionService/put";
    await expect
      .poll(() => edge.captured.lines({ rpc }).at(-1))
      .toMatchObject({
        level: 30,
        code: "Canceled",
      });
  });

  it("tells the operations that a drain cannot wait for, before it cuts them", async () => {
    const leaving = await startTestServer(edge.database.url, { drainTimeoutMs: 1000 });
    const blocker = await block(edge.database.url, "lock table checkpoints");
    onTestFinished(() => blocker.release());
    const session = openRaw(leaving.url);
    await session.next();
    session.send(put(1, "cut"));
    await untilBlocked(edge.sql, 1);
    const drained = leaving.drain();
    expect((await session.next()).result.case).toBe("goodbye");
    expect(await session.next()).toMatchObject({
      id: 1,
      result: {
        case: "error",
        value: {
          code: Code.Unavailable,
          message: "the server is shutting down",
          detail: { reason: "DRAINING", retryDelay: { nanos: 100_000_000 } },
        },
      },
    });
    session.half();
    expect(await session.end()).toEqual({});
    await drained;
  });

  it("is ended at a drain when its client is asked to go and stays", async () => {
    const captured = captureLog();
    const leaving = await startTestServer(edge.database.url, {
      drainTimeoutMs: 60_000,
      log: captured.log,
    });
    const session = openRaw(leaving.url);
    await session.next();
    session.send(get(1, "nobody"));
    const drained = leaving.drain();
    const cases = [(await session.next()).result.case, (await session.next()).result.case];
    expect(cases.sort()).toEqual(["getTuple", "goodbye"]);
    expect(await session.end()).toEqual({});
    await drained;
    expect(captured.lines({ level: 40 })).toEqual([]);
  });

  it("answers a wrong request with the same detail as a call, and goes on", async () => {
    const session = openRaw(edge.server.url);
    await session.next();
    session.send(put(1, ""), put(2, "x".repeat(65_537)), { id: 3, operation: { case: undefined } });
    const answers = [await session.next(), await session.next(), await session.next()];
    answers.sort((a, b) => a.id - b.id);
    expect(answers.map(({ id, result }) => ({ id, ...(result.value as object) }))).toMatchObject([
      { id: 1, code: Code.InvalidArgument, detail: { reason: "REQUIRED", field: "thread_id" } },
      { id: 2, code: Code.InvalidArgument, detail: { reason: "TOO_LONG", limit: 65_536n } },
      { id: 3, code: Code.Unimplemented },
    ]);
    session.send(get(4, "nobody"));
    expect((await session.next()).id).toBe(4);
  });

  it("names what is wrong with a page", async () => {
    const session = openRaw(edge.server.url);
    await session.next();
    const page = async (value: object) => {
      session.send({ id: 1, operation: { case: "listPage", value } });
      return (await session.next()).result;
    };
    const list = { threadId: "t", omitUnchanged: true };
    const after = { threadId: "t", checkpointId: "1" };
    expect(await page({})).toMatchObject({
      value: { code: Code.InvalidArgument, detail: { reason: "REQUIRED", field: "list" } },
    });
    session.send(put(1, "t", "0"));
    await session.next();
    expect(await page({ list: { ...list, after }, afterCheckpointJson: "no JSON" })).toMatchObject({
      value: { detail: { reason: "INVALID_JSON", field: "after_checkpoint_json" } },
    });
    // More than a page ever has; what comes after the last.
    expect(await page({ list, maxTuples: 2 ** 32 - 1 })).toMatchObject({
      case: "listPage",
      value: { tuples: [{ key: { checkpointId: "0" } }], nextMaxTuples: 0 },
    });
    expect(await page({ list: { ...list, limit: 0 } })).toMatchObject({
      case: "listPage",
      value: { tuples: [], nextMaxTuples: 0 },
    });
  });

  it("names what is wrong with a put that extends, and stores nothing of it", async () => {
    const small = await startTestServer(edge.database.url, { maxMessageSize: 100_000 });
    onTestFinished(() => small.drain());
    const session = openRaw(small.url);
    await session.next();
    const threadId = `${wire} extends`;
    const blobs = [
      { channel: "a", version: "1", value: { type: "json", data: Buffer.from("1") } },
      { channel: "b", version: "1" },
    ];
    const whole = { threadId, checkpointId: "1", checkpointJson: "{}", blobs };
    const prefix = { version: "1", transactionId: "7", length: 1 };
    const wrong: [object, object][] = [
      [{}, { reason: "REQUIRED", field: "put" }],
      [{ put: { ...whole, threadId: "" } }, { reason: "REQUIRED", field: "thread_id" }],
      [{ put: { ...whole, leaseToken: "x" } }, { reason: "OUT_OF_RANGE", field: "lease_token" }],
      ...(
        [
          [[{ ...prefix, version: "" }], "REQUIRED", "prefixes[0].version"],
          [[{ ...prefix, version: "x".repeat(65_537) }], "TOO_LONG", "prefixes[0].version"],
          [[{ ...prefix, transactionId: "" }], "REQUIRED", "prefixes[0].transaction_id"],
          [[{ ...prefix, transactionId: "-1" }], "OUT_OF_RANGE", "prefixes[0].transaction_id"],
          [
            [{ ...prefix, transactionId: "4294967296" }],
            "OUT_OF_RANGE",
            "prefixes[0].transaction_id",
          ],
          [[{ ...prefix, length: 0 }], "OUT_OF_RANGE", "prefixes[0].length"],
          [[{ ...prefix, blobIndex: 1 }], "OUT_OF_RANGE", "prefixes[0].blob_index"],
          [[{ ...prefix, blobIndex: 2 }], "OUT_OF_RANGE", "prefixes[0].blob_index"],
          [[prefix, prefix], "DUPLICATE", "prefixes[1].blob_index"],
          [[{ ...prefix, length: 2 ** 32 - 1 }], "TOO_LONG", "put"],
          [[{ ...prefix, length: 100_000 }], "TOO_LONG", "put"],
          [Array.from({ length: 301 }, () => prefix), "DUPLICATE", "prefixes[1].blob_index"],
          [[{ ...prefix, offset: 1024 ** 3 + 1 }], "OUT_OF_RANGE", "prefixes[0].offset"],
          [[{ ...prefix, headLength: 2 }], "OUT_OF_RANGE", "prefixes[0].head_length"],
          [[prefix], "NOT_STORED", "prefixes"],
          [[{ ...prefix, offset: 1024 ** 3, headLength: 1 }], "NOT_STORED", "prefixes"],
        ] as [object[], string, string][]
      ).map(([prefixes, reason, field]): [object, object] => [
        { put: whole, prefixes },
        { reason, field },
      ]),
    ];
    for (const [value, detail] of wrong) {
      session.send({ id: 1, operation: { case: "putExtending", value } });
      expect(await session.next()).toMatchObject({ result: { case: "error", value: { detail } } });
    }
    expect(await edge.checkpoints(threadId)).toBe(0);
    session.send({ id: 1, operation: { case: "putExtending", value: { put: whole } } });
    const stored = await session.next();
    expect(stored).toMatchObject({ result: { case: "putExtending" } });
    const { transactionId } = stored.result.value as { transactionId: string };
    // Postgres would take it for an octal number.
    for (const octal of ["08", `0${transactionId}`]) {
      const value = { put: whole, prefixes: [{ ...prefix, transactionId: octal }] };
      session.send({ id: 1, operation: { case: "putExtending", value } });
      const detail = { reason: "OUT_OF_RANGE", field: "prefixes[0].transaction_id" };
      expect(await session.next()).toMatchObject({ result: { case: "error", value: { detail } } });
    }
    const put = { ...whole, checkpointId: "2", blobs: [{ ...blobs[0], version: "2" }] };
    const value = { put, prefixes: [{ ...prefix, transactionId }] };
    session.send({ id: 2, operation: { case: "putExtending", value } });
    expect(await session.next()).toMatchObject({ id: 2, result: { case: "putExtending" } });
    // What is kept stands between what came: "(" of the head, "1" of what is stored, ")" behind it.
    const both = { type: "bytes", data: Buffer.from("()") };
    const third = {
      ...put,
      checkpointId: "3",
      blobs: [{ ...blobs[0], version: "3", value: both }],
    };
    const within = { put: third, prefixes: [{ ...prefix, transactionId, headLength: 1 }] };
    session.send({ id: 3, operation: { case: "putExtending", value: within } });
    expect(await session.next()).toMatchObject({ id: 3, result: { case: "putExtending" } });
    const { rows } = await edge.sql.query(
      "select version, blob from checkpoint_blobs where thread_id = $1 and channel = 'a' order by 1",
      [threadId],
    );
    expect(rows.map(({ version, blob }) => [version, String(blob)])).toEqual([
      ["1", "1"],
      ["2", "11"],
      ["3", "(1)"],
    ]);
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
    const session = openRaw(edge.server.url);
    await session.next();
    session.raw(bytes);
    expect(await session.end()).toMatchObject({ error: { code } });
  });

  it("carries out nothing of what follows an error, and closes in the end", async () => {
    const session = openRaw(edge.server.url);
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
    expect(await edge.checkpoints(`${wire} after`)).toBe(0);
  });

  it("ends with an error at an id that is in use", async () => {
    const blocker = await block(edge.database.url, "lock table checkpoints");
    onTestFinished(() => blocker.release());
    const session = openRaw(edge.server.url);
    await session.next();
    session.send(put(1, "twice"), put(1, "twice"));
    expect(await session.end()).toMatchObject({ error: { code: "invalid_argument" } });
    await untilBlocked(edge.sql, 0);
  });

  it("reads no more of a client than it lets it have under way, and loses nothing", async () => {
    const session = openRaw(edge.server.url);
    await session.next();
    const ids = Array.from({ length: 3000 }, (_, i) => i + 1);
    session.send(...ids.map((id) => get(id, "nobody")));
    const answered = new Set<number>();
    while (answered.size < ids.length) answered.add((await session.next()).id);
    expect(answered.size).toBe(3000);
  });

  it("answers a ping at once, whatever else is under way", async () => {
    const blocker = await block(edge.database.url, "lock table checkpoints");
    onTestFinished(() => blocker.release());
    const session = openRaw(edge.server.url);
    await session.next();
    session.send(put(1, "pinged"), { id: 2, operation: { case: "ping", value: {} } });
    expect(await session.next()).toMatchObject({ id: 2, result: { case: "pong" } });
    await blocker.release();
    expect(await session.next()).toMatchObject({ id: 1, result: { case: "put" } });
  });

  it("logs each operation with a request id and nothing of what it holds", async () => {
    const session = openRaw(edge.server.url);
    await session.next();
    session.send(put(1, "s3cr3t"));
    await session.next();
    await expect
      .poll(() =>
        edge.captured.lines().some(({ rpc }) => rpc === "checkpointd.v1.SessionService/put"),
      )
      .toBe(true);
    expect(
      edge.captured.lines().every(({ rpc, requestId }) => rpc === undefined || requestId),
    ).toBe(true);
    expect(JSON.stringify(edge.captured.lines())).not.toContain("s3cr3t");
  });
});

describe("over gRPC", () => {
  it("works the same, as connect-es carries it", async () => {
    const client = createClient(SessionService, createGrpcTransport({ baseUrl: edge.server.url }));
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

  it("are ended at a drain when their client is asked to go and stays", async () => {
    const captured = captureLog();
    const options = { drainTimeoutMs: 60_000, log: captured.log };
    const leaving = await startTestServer(edge.database.url, options);
    const http2 = connectHttp2(leaving.url);
    onTestFinished(() => http2.destroy());
    const headers = { ":method": "POST", ":path": sessionPath, "content-type": "application/grpc" };
    const stream = http2.request({ ...headers, te: "trailers" });
    const trailers = once(stream, "trailers");
    const [welcome] = await once(stream, "data");
    expect(welcome.length).toBeGreaterThan(5);
    stream.resume();
    await leaving.drain();
    expect((await trailers)[0]).toMatchObject({ "grpc-status": "0" });
    expect(captured.lines({ level: 40 })).toEqual([]);
  });
});

function encode(request: Request): Buffer {
  const bytes = toBinary(OpenSessionRequestSchema, create(OpenSessionRequestSchema, request));
  return Buffer.concat([envelope(0, bytes.length), bytes]);
}

/** A session without our client: what is written goes out as it is. */
function speak({ stream, closed, cut }: RawStream) {
  onTestFinished(cut);
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
