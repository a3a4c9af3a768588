/** Messages that are too large, or are no messages at all, on every protocol. */
import { randomBytes } from "node:crypto";
import { gzipSync } from "node:zlib";
import { create, toBinary } from "@bufbuild/protobuf";
import { Code, createClient } from "@connectrpc/connect";
import { compressionGzip, createConnectTransport } from "@connectrpc/connect-node";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import {
  CheckpointService,
  type GetTupleRequest,
  GetTupleRequestSchema,
  ListRequestSchema,
} from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { OpenSessionRequestSchema } from "../../gen/checkpointd/v1/session_service_pb.js";
import {
  type Call,
  envelope,
  failureOf,
  make,
  post,
  postJson,
  secret,
  sessions,
  startEdge,
  ways,
} from "../testing/edge.js";
import { createSessionTransport } from "../testing/session_transport.js";

const MiB = 1024 * 1024;
const limit = 64 * MiB;

let edge: Awaited<ReturnType<typeof startEdge>>;
let before: string;
beforeAll(async () => {
  edge = await startEdge();
  before = await edge.rowCounts();
});
afterAll(async () => {
  expect(await edge.rowCounts()).toBe(before);
  expect(edge.captured.text()).not.toContain(secret);
  // The server answered all of this and is well.
  const { tuple } = await edge.clients.grpc.getTuple({ threadId: `${secret}-seed` });
  expect(tuple?.blobs).toHaveLength(1);
  await edge.stop();
});

const named = { threadId: `${secret}-large`, checkpointId: "1" };

describe("65 MiB", () => {
  const data = new Uint8Array(65 * MiB);
  const value = { type: "bytes", data };
  const padding = " ".repeat(65 * MiB);
  const blobs = [{ channel: "c", version: "1", value }];
  const calls: Record<string, Call> = {
    "a blob": {
      rpc: "put",
      request: { ...named, checkpointJson: "{}", blobs },
    },
    "a checkpoint": { rpc: "put", request: { ...named, checkpointJson: `{${padding}}` } },
    "a write": {
      rpc: "putWrites",
      request: { ...named, taskId: "t", writes: [{ idx: 0, channel: "c", value }] },
    },
    "a filter": { rpc: "list", request: { metadataFilterJson: `{${padding}}` } },
  };

  for (const [name, call] of Object.entries(calls)) {
    for (const way of ways) {
      // The client takes half a minute to turn 65 MiB into base64.
      if (way === "connect-json" && /blob|write/.test(name)) continue;
      test(`${name} over ${way}`, async () => {
        const error = await failureOf(make(edge.clients[way], call));
        expect({ code: Code[error.code], message: error.rawMessage }).toEqual({
          code: "ResourceExhausted",
          message: expect.stringContaining(`${limit}`),
        });
      });
    }
  }

  test("a bomb: small on the wire, large once unpacked", async () => {
    const bomb = new Uint8Array(gzipSync(data));
    expect(bomb.length).toBeLessThan(MiB);
    const unary = await post(edge.server.url, "Put", bomb, {
      "content-type": "application/proto",
      "content-encoding": "gzip",
    });
    expect(unary.error?.code).toBe("resource_exhausted");
    const framed = envelope(bomb);
    framed[0] = 1;
    const stream = await post(edge.server.url, "List", framed, {
      "content-type": "application/connect+proto",
      "connect-content-encoding": "gzip",
    });
    expect(stream.error?.code).toBe("resource_exhausted");
    for (const { error } of [unary, stream]) expect(error?.message).toContain("100 times");
  });

  test("the same on a session", async () => {
    const compressing = createConnectTransport({
      baseUrl: edge.server.url,
      httpVersion: "2",
      sendCompression: compressionGzip,
    });
    const client = createClient(CheckpointService, createSessionTransport(compressing));
    const error = await failureOf(make(client, calls["a blob"] as Call));
    expect(error.code).toBe(Code.ResourceExhausted);
    expect(error.rawMessage).toContain("100 times");
  });

  test("a header that announces 4 GiB", async () => {
    const framed = Uint8Array.from([0, 0xff, 0xff, 0xff, 0xff, 1]);
    const { error } = await post(edge.server.url, "List", framed, {
      "content-type": "application/connect+proto",
    });
    expect(error?.code).toBe("resource_exhausted");
    expect(error?.message).toContain(`${limit}`);
  });
});

test("a message just within the limit is stored and read", { timeout: 120_000 }, async () => {
  const { connect } = edge.clients;
  const data = randomBytes(limit - 1024);
  await connect.put({
    ...named,
    checkpointJson: `{"channel_versions":{"c":"1"}}`,
    blobs: [{ channel: "c", version: "1", value: { type: "bytes", data } }],
  });
  const { tuple } = await connect.getTuple(named);
  expect(Buffer.compare(tuple?.blobs[0]?.value?.data ?? data.subarray(1), data)).toBe(0);
  await connect.deleteThread(named);
});

test("the limit can be set, and a message as large as it is accepted", async () => {
  const small = await startEdge({ maxMessageSize: 4096 });
  const fill = (bytes: number, sizeOf: (request: GetTupleRequest) => number) => {
    const request = (length: number) =>
      create(GetTupleRequestSchema, { ...named, checkpointNs: "x".repeat(length) });
    const overhead = sizeOf(request(bytes)) - bytes;
    return { rpc: "getTuple", request: request(bytes - overhead) } as const;
  };
  const sizeOfCall = (value: GetTupleRequest) => toBinary(GetTupleRequestSchema, value).length;
  const sizeOfOperation = (value: GetTupleRequest) => {
    const request = { id: 1, operation: { case: "getTuple", value } } as const;
    return toBinary(OpenSessionRequestSchema, create(OpenSessionRequestSchema, request)).length;
  };
  for (const way of ways) {
    if (way === "connect-json") continue;
    const client = small.clients[way];
    const sizeOf = sessions.some((each) => each === way) ? sizeOfOperation : sizeOfCall;
    const over = await failureOf(make(client, fill(4097, sizeOf)));
    expect(over.code).toBe(Code.ResourceExhausted);
    expect(over.rawMessage).toContain("4096");
    await make(client, fill(4096, sizeOf));
  }
  await small.stop();
});

/** JSON that does not fit the messages: what is wrong with it, the RPC, the body. */
const wrongJson: [string, string, string][] = [
  ["no body", "GetTuple", ""],
  ["cut short", "GetTuple", `{"threadId":"${secret}"`],
  ["no JSON", "GetTuple", secret],
  ["an array", "GetTuple", `["${secret}"]`],
  ["a string", "GetTuple", `"${secret}"`],
  ["null", "GetTuple", "null"],
  ["a number for a string", "GetTuple", '{"threadId":5}'],
  ["an object for a string", "Put", '{"checkpointJson":{}}'],
  ["a field twice", "GetTuple", '{"threadId":"a","threadId":"b"}'],
  ["both spellings of a field", "GetTuple", '{"threadId":"a","thread_id":"b"}'],
  ["an object for a list", "Put", '{"blobs":{}}'],
  ["null in a list", "Put", '{"blobs":[null]}'],
  ["a string for a message", "Put", '{"blobs":["x"]}'],
  ["bytes that are not base64", "Put", '{"blobs":[{"value":{"type":"t","data":"!"}}]}'],
  ["an index above 32 bits", "PutWrites", '{"writes":[{"idx":2147483648}]}'],
  ["an index below 32 bits", "PutWrites", '{"writes":[{"idx":-2147483649}]}'],
  ["a fraction for an index", "PutWrites", '{"writes":[{"idx":1.5}]}'],
  ["a word for an index", "PutWrites", '{"writes":[{"idx":"first"}]}'],
  ["a limit above 32 bits", "List", '{"limit":2147483648}'],
  ["a limit without end", "List", '{"limit":1e400}'],
  ["a boolean for a view", "List", '{"view":true}'],
  ["an unknown view by number", "List", '{"view":99}'],
  ["no message in the stream", "List", ""],
  ["an array in the stream", "List", "[]"],
  ["a boolean for a name", "DeleteThread", '{"threadId":true}'],
  ["brackets 100,000 deep", "DeleteThread", `{"x":${"[".repeat(100_000)}${"]".repeat(100_000)}}`],
];

for (const [name, rpc, json] of wrongJson) {
  test(`JSON, ${rpc}: ${name}`, async () => {
    const { error } = await postJson(edge.server.url, rpc, json);
    expect(error?.code).toBe("invalid_argument");
    expect(error?.message).not.toMatch(/insert into|select |\n|\bat \S+:\d+/i);
  });
}

test("what JSON says beyond the contract is passed over, as unknown binary fields are", async () => {
  const threadId = `${secret}-nobody`;
  const unknown = await postJson(
    edge.server.url,
    "GetTuple",
    JSON.stringify({ threadId, later: [1] }),
  );
  expect(unknown).toMatchObject({ status: 200, body: "{}" });
  // An enum's unknown name is an unknown field to the library: the default applies.
  const view = await postJson(
    edge.server.url,
    "List",
    JSON.stringify({ threadId, view: "LIST_VIEW_LATER" }),
  );
  expect(view.status).toBe(200);
  const empty = await postJson(
    edge.server.url,
    "GetTuple",
    JSON.stringify({ thread_id: threadId }),
  );
  expect(empty).toMatchObject({ status: 200, body: "{}" });
});

/** Bytes that are no Protocol Buffers message. */
const garbage: [string, number[]][] = [
  ["an illegal tag", [0xff, 0xff, 0x01]],
  ["a field cut short", [0x0a, 0x7f, 0x61]],
  ["an endless varint", Array<number>(11).fill(0xff)],
  ["a string that is not UTF-8", [0x0a, 0x02, 0xff, 0xfe]],
  ["an encoded surrogate", [0x0a, 0x03, 0xed, 0xa0, 0x80]],
];
const binaryTypes: [string, string, boolean][] = [
  ["GetTuple", "application/proto", false],
  ["GetTuple", "application/grpc-web+proto", true],
  ["List", "application/connect+proto", true],
  ["List", "application/grpc-web+proto", true],
];

describe("garbage as Protocol Buffers", () => {
  for (const [name, bytes] of garbage) {
    for (const [rpc, type, framed] of binaryTypes) {
      test(`${name}, ${rpc} as ${type}`, async () => {
        const message = Uint8Array.from(bytes);
        const body = framed ? envelope(message) : message;
        const answer = await post(edge.server.url, rpc, body, { "content-type": type });
        if (type.startsWith("application/grpc")) {
          expect(answer.body + answer.headers.get("grpc-status")).toMatch(/grpc-status: 3|3$/);
        } else {
          expect(answer.error?.code).toBe("invalid_argument");
        }
        expect(answer.body).not.toMatch(/\bat \S+:\d+/);
      });
    }
  }

  test("random bytes never succeed in storing anything, nor stop the server", async () => {
    for (let i = 0; i < 60; i++) {
      const bytes = new Uint8Array(randomBytes(i));
      for (const rpc of ["Put", "PutWrites"]) {
        const answer = await post(edge.server.url, rpc, bytes, {
          "content-type": "application/proto",
        });
        expect([400, 500]).toContain(answer.status);
      }
      await post(edge.server.url, "List", bytes, { "content-type": "application/connect+proto" });
    }
  });
});

describe("wrong envelopes and headers", () => {
  const type = (name: string) => ({ "content-type": name });
  const cases: [string, string, string, Record<string, string>, number, string?][] = [
    ["a content type nobody knows", "GetTuple", "{}", type("text/plain"), 415],
    ["no content type", "GetTuple", "{}", type(""), 415],
    ["a codec nobody knows", "GetTuple", "{}", type("application/grpc+thrift"), 415],
    ["a unary content type for a stream", "List", "{}", type("application/json"), 415],
    ["a stream's content type for unary", "Put", "{}", type("application/connect+json"), 415],
    [
      "half an envelope",
      "List",
      "\0\0",
      type("application/connect+proto"),
      200,
      "invalid_argument",
    ],
    [
      "a deadline that is no number",
      "GetTuple",
      "{}",
      { ...type("application/json"), "connect-timeout-ms": "soon" },
      400,
      "invalid_argument",
    ],
    [
      "a deadline before now",
      "GetTuple",
      "{}",
      { ...type("application/json"), "connect-timeout-ms": "-1" },
      400,
      "invalid_argument",
    ],
    [
      "a compression nobody knows",
      "GetTuple",
      "{}",
      { ...type("application/json"), "content-encoding": "zstd" },
      501,
      "unimplemented",
    ],
    [
      "gzip that is none",
      "GetTuple",
      "{}",
      { ...type("application/json"), "content-encoding": "gzip" },
      400,
      "invalid_argument",
    ],
    ["an RPC that is not there", "Nope", "{}", type("application/json"), 404],
  ];
  for (const [name, rpc, body, headers, status, code] of cases) {
    test(name, async () => {
      const answer = await post(edge.server.url, rpc, body, headers);
      expect(answer.status).toBe(status);
      expect(answer.error?.code).toBe(code);
    });
  }

  for (const carrier of ["connect", "grpc-web"]) {
    // Connect's conformance suite has it refused, and be INTERNAL: conformance.test.ts.
    test(`a message that is compressed where none is announced, over ${carrier}`, async () => {
      const framed = envelope(
        gzipSync(
          toBinary(ListRequestSchema, create(ListRequestSchema, { threadId: `${secret}-seed` })),
        ),
      );
      framed[0] = 1;
      const requestId = `compressed-${carrier}`;
      const answer = await post(edge.server.url, "List", framed, {
        ...type(`application/${carrier === "connect" ? "connect" : "grpc-web"}+proto`),
        "x-request-id": requestId,
      });
      const told = `${answer.error?.code} ${answer.headers.get("grpc-status")} ${answer.body}`;
      expect(told).toMatch(/^internal|grpc-status: 13|^undefined 13/);
      expect(told).toMatch(/does( |%20)not( |%20)say( |%20)that( |%20)it( |%20)is( |%20)with/);
      // The client's fault, all the same.
      await expect
        .poll(() => edge.captured.lines({ requestId }))
        .toMatchObject([{ level: 30, msg: "call refused", code: "Internal" }]);
    });
  }

  test("a GET for an RPC that writes", async () => {
    const url = `${edge.server.url}/checkpointd.v1.CheckpointService/DeleteThread`;
    const query = new URLSearchParams({ encoding: "json", message: `{"threadId":"${secret}"}` });
    const response = await fetch(`${url}?${query}`);
    expect(response.status).toBe(405);
    expect(await response.text()).toBe("");
  });
});
