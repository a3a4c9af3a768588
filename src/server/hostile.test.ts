/** What a hostile client sends is refused, and costs the server and its neighbours little. */
import { type IncomingMessage, request } from "node:http";
import { gzipSync } from "node:zlib";
import { Code } from "@connectrpc/connect";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { CheckpointService } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { sessionPath, sessionUpgrade } from "../protocol/wire.js";
import { envelope, post, startEdge } from "../testing/edge.js";
import { mostParts } from "./message_size.js";
import { createWebGuard } from "./web_guard.js";

let edge: Awaited<ReturnType<typeof startEdge>>;
const warnings: string[] = [];
const onWarning = (warning: Error) => warnings.push(warning.message);
beforeAll(async () => {
  process.on("warning", onWarning);
  edge = await startEdge();
});
afterAll(async () => {
  process.off("warning", onWarning);
  await edge.stop();
});

/** A field of a message: its number, and its bytes. */
const field = (number: number, bytes: Uint8Array) =>
  Buffer.concat([Uint8Array.of(number * 8 + 2, bytes.length), bytes]);
const thread = field(1, Buffer.from("t"));
const emptyBlob = field(7, new Uint8Array(0));

/** Each too much in few bytes: more than a million objects in three megabytes. */
const bombs: [string, string, Uint8Array, string?][] = [
  ["unknown fields", "GetTuple", Buffer.alloc(3_000_000, Buffer.from([15 * 8, 0]))],
  ["empty blobs", "Put", Buffer.alloc(3_000_000, emptyBlob), "blobs"],
  ["empty names", "Put", Buffer.concat([thread, Buffer.alloc(3_000_000, field(1, Buffer.of()))])],
];

const carriers: [string, (message: Uint8Array) => [Record<string, string>, Uint8Array]][] = [
  ["connect", (message) => [{ "content-type": "application/proto" }, message]],
  [
    "connect, compressed",
    (message) => [
      { "content-type": "application/proto", "content-encoding": "gzip" },
      gzipSync(message),
    ],
  ],
  ["gRPC-Web", (message) => [{ "content-type": "application/grpc-web+proto" }, envelope(message)]],
];

describe("more objects than bytes", () => {
  for (const [name, rpc, message, list] of bombs) {
    for (const [carrier, wrap] of carriers) {
      test(`${name} over ${carrier}`, async () => {
        const [headers, body] = wrap(message);
        const answer = await post(edge.server.url, rpc, body as Uint8Array<ArrayBuffer>, headers);
        const told = decodeURIComponent(answer.body);
        if (carrier.endsWith("compressed")) {
          expect(told).toContain("more than 100 times as large");
          return;
        }
        expect(told).toContain(`more than ${mostParts} fields, elements and values`);
        if (list) expect(told).toContain(list);
      });
    }
  }

  test("as JSON", async () => {
    const json = `{"threadId":"t","blobs":[${Array(mostParts).fill("{}").join()}]}`;
    const headers = { "content-type": "application/json" };
    const answer = await post(edge.server.url, "Put", json, headers);
    expect(answer.error?.code).toBe("invalid_argument");
    expect(answer.error?.message).toContain(`more than ${mostParts}`);
  });

  test("a long text of JSON is one value, whatever stands in it", async () => {
    const text = '{[,"\\\\'.repeat(mostParts);
    const json = JSON.stringify({ threadId: "t", checkpointId: "1", checkpointJson: text });
    const headers = { "content-type": "application/json" };
    const answer = await post(edge.server.url, "Put", json, headers);
    expect(answer.error?.message).toContain("checkpoint_json");
  });

  test("what is nested, or is no message at all", async () => {
    const headers = { "content-type": "application/proto" };
    const groups = Buffer.alloc(100_000, 0x0b);
    const answer = await post(edge.server.url, "GetTuple", groups, headers);
    expect(answer.error?.code).toBe("invalid_argument");
  });
});

const numbers = (count: number, each: string) => `{"n":[${Array(count).fill(each).join()}]}`;
test.each([
  ["numbers that are short and write out long", numbers(20, "1e131071")],
  ["the same below one", numbers(10_000, "-1.5E-10000")],
  [
    "the same after what looks like a string's end",
    `{"\\"\\\\":"1e9", "n": [${Array(20).fill("1e131071").join()}]}`,
  ],
])("is refused as metadata: %s", async (_, metadataJson) => {
  for (const field of ["metadataJson", "checkpointJson"]) {
    const request = {
      threadId: "t",
      checkpointId: "1",
      checkpointJson: "{}",
      [field]: metadataJson,
    };
    await edge.expectRefused(
      { rpc: "put", request },
      {
        code: Code.InvalidArgument,
        reason: "OUT_OF_RANGE",
        field: field === "metadataJson" ? "metadata_json" : "checkpoint_json",
        limit: 1024 * 1024,
      },
    );
  }
});

test("a text of JSON without an end is looked at once", async () => {
  // A start that has to be looked at, and half a million beginnings of a string.
  const text = `{"a":1e10,"${'\\"'.repeat(500_000)}`;
  const began = performance.now();
  for (const field of ["metadataJson", "checkpointJson"]) {
    await edge.expectRefused(
      {
        rpc: "put",
        request: { threadId: "t", checkpointId: "1", checkpointJson: "{}", [field]: text },
      },
      {
        code: Code.InvalidArgument,
        reason: "INVALID_JSON",
        field: field === "metadataJson" ? "metadata_json" : "checkpoint_json",
      },
    );
  }
  // It took an hour.
  expect(performance.now() - began).toBeLessThan(20_000);
});

test("a filter of many elements is refused, which Postgres would compare with all there are", async () => {
  const filter = (count: number) => JSON.stringify({ a: { b: Array(count).fill(1) } });
  const refused = {
    code: Code.InvalidArgument,
    reason: "TOO_MANY",
    field: "metadata_filter_json",
    limit: 32,
  } as const;
  await edge.expectRefused({ rpc: "list", request: { metadataFilterJson: filter(34) } }, refused);
  await edge.expectRefused(
    { rpc: "list", request: { metadataFilterJson: JSON.stringify({ a: "a".repeat(65_536) }) } },
    { ...refused, reason: "TOO_LONG", limit: 65_536 },
  );
  const found = edge.clients.connect.list({ metadataFilterJson: filter(33), threadId: "t" });
  for await (const _ of found) expect.unreachable();
});

test("a checkpoint of more channels than there may be is refused", async () => {
  const versions = (count: number) =>
    JSON.stringify({
      channel_versions: Object.fromEntries(Array.from({ length: count }, (_, i) => [`c${i}`, 1])),
      versions_seen: { a: 1 },
    });
  const request = { threadId: "channels", checkpointId: "1", checkpointJson: versions(100_001) };
  await edge.expectRefused(
    { rpc: "put", request },
    { code: Code.InvalidArgument, reason: "TOO_MANY", field: "checkpoint_json", limit: 100_000 },
  );
  await edge.clients.connect.put({ ...request, checkpointJson: versions(100_000) });
  await edge.clients.connect.deleteThread({ threadId: "channels" });
});

test.each([
  ["numbers as they are", numbers(10_000, "1e-10")],
  ["numbers of doubles at their ends", numbers(1_000, "1.7976931348623157e308")],
  ["texts of numbers", JSON.stringify({ n: Array(100).fill("1e131071, 1e131071") })],
])("is stored as metadata: %s", async (name, metadataJson) => {
  const request = { threadId: name, checkpointId: "1", checkpointJson: "{}", metadataJson };
  await edge.clients.connect.put(request);
  const { tuple } = await edge.clients.connect.getTuple({ threadId: name });
  expect(tuple?.metadataJson.length).toBeGreaterThan(metadataJson.length / 2);
});

test.each([
  ["connect-timeout-ms", "9999999999", "application/json"],
  ["grpc-timeout", "99999999H", "application/grpc-web+json"],
  ["grpc-timeout", "99999999M", "application/grpc-web+json"],
])("a deadline in the far future: %s %s", async (header, value, type) => {
  const text = Buffer.from('{"threadId":"t"}');
  const body = type === "application/json" ? text : envelope(text);
  const headers = { "content-type": type, [header]: value };
  const answer = await post(edge.server.url, "GetTuple", body as Uint8Array<ArrayBuffer>, headers);
  expect(answer.status).toBe(200);
  if (type !== "application/json") expect(answer.body).toContain("grpc-status: 0");
  expect(warnings).toEqual([]);
});

describe("a page that was loaded from elsewhere", () => {
  const body = '{"threadId":"t"}';
  /** As node:http lets one say what a browser would; fetch does not. */
  const ask = (headers: Record<string, string>, method = "POST", path = "GetTuple") =>
    new Promise<IncomingMessage>((resolve, reject) => {
      const url = `${edge.server.url}/${CheckpointService.typeName}/${path}`;
      const sent = { "content-type": "application/json", ...headers };
      const asking = request(url, { method, headers: sent }, (answer) => resolve(answer.resume()));
      asking.on("error", reject).on("upgrade", resolve);
      asking.end(method === "POST" ? body : undefined);
    });
  const here = () => new URL(edge.server.url).port;

  test.each([
    "evil.example",
    "127.0.0.1.nip.io",
    "localhost.evil.example",
    "[::2]",
    "128.0.0.1",
    "0x7f000001.example",
  ])("is refused under the name %s, and what it asks is not carried out", async (name) => {
    const host = `${name}:${here()}`;
    const { statusCode } = await ask({ host, origin: `http://${host}` }, "POST", "DeleteThread");
    expect(statusCode).toBe(403);
  });

  test.each(["localhost", "127.0.0.1", "127.1.2.3", "[::1]", "app.localhost", "LOCALHOST."])(
    "is answered under loopback's name %s",
    async (name) => {
      const host = `${name}:${here()}`;
      const { statusCode, headers } = await ask({ host, origin: `http://${host}` });
      expect(statusCode).toBe(200);
      expect(headers).toMatchObject({
        "x-content-type-options": "nosniff",
        "cache-control": "no-store",
        "cross-origin-resource-policy": "same-origin",
      });
    },
  );

  test.each(["http://evil.example", "null", "file://", "http://localhost:1"])(
    "is refused as of origin %s, to open a session too",
    async (origin) => {
      expect((await ask({ origin })).statusCode).toBe(403);
      const upgrade = { origin, connection: "upgrade", upgrade: sessionUpgrade };
      const url = `${edge.server.url}${sessionPath}`;
      const answer = await new Promise<IncomingMessage>((resolve, reject) =>
        request(url, { headers: upgrade }, resolve)
          .on("upgrade", resolve)
          .on("error", reject)
          .end(),
      );
      expect(answer.resume().statusCode).toBe(403);
    },
  );

  test.each(["POST", "DELETE", "PUT"])("opens no session by %s", async (method) => {
    const headers = { connection: "upgrade", upgrade: sessionUpgrade };
    const url = `${edge.server.url}${sessionPath}`;
    const answer = await new Promise<IncomingMessage>((resolve, reject) =>
      request(url, { method, headers }, resolve).on("upgrade", resolve).on("error", reject).end(),
    );
    expect(answer.resume().statusCode).toBeGreaterThanOrEqual(400);
  });

  test.each([
    ["127.0.0.1", [], "any.example", true],
    ["127.0.0.1", ["any.example"], "any.example", false],
    ["0.0.0.0", [], "any.example", false],
    ["0.0.0.0", ["other.example"], "any.example", true],
    ["0.0.0.0", ["other.example"], "localhost", false],
  ])(
    "listening on %s, allowed %s, asked as %s: refused %s",
    (listensOn, allowed, name, refused) => {
      const guard = createWebGuard(listensOn, allowed, []);
      const asked = (url: string) => guard({ url, headers: { host: name } } as IncomingMessage);
      expect(asked("/") !== undefined).toBe(refused);
      expect(asked("/healthz")).toBeUndefined();
    },
  );
});

test("the log has each of them, as the client's fault", () => {
  expect(edge.captured.text()).toContain("TOO_MANY");
  expect(edge.captured.text()).not.toContain('"level":"error"');
});
