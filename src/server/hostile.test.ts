/** What a hostile client sends is refused, and costs the server and its neighbours little. */
import { gzipSync } from "node:zlib";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { envelope, post, startEdge } from "../testing/edge.js";
import { mostParts } from "./message_size.js";

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

/** Each too much in few bytes: half a million objects in a megabyte. */
const bombs: [string, string, Uint8Array, string?][] = [
  ["unknown fields", "GetTuple", Buffer.alloc(1_000_000, Buffer.from([15 * 8, 0]))],
  ["empty blobs", "Put", Buffer.alloc(1_000_000, emptyBlob), "blobs"],
  ["empty names", "Put", Buffer.concat([thread, Buffer.alloc(1_000_000, field(1, Buffer.of()))])],
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

test("the log has each of them, as the client's fault", () => {
  expect(edge.captured.text()).toContain("TOO_MANY");
  expect(edge.captured.text()).not.toContain('"level":"error"');
});
