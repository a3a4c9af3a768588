/** Clients that know nothing of our code: grpc-js with the .proto files, and plain fetch. */
import { createRequire } from "node:module";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { fromBinary } from "@bufbuild/protobuf";
import { BinaryReader } from "@bufbuild/protobuf/wire";
import { AnySchema, anyUnpack } from "@bufbuild/protobuf/wkt";
import * as grpc from "@grpc/grpc-js";
import { fromJSON, loadSync, type PackageDefinition } from "@grpc/proto-loader";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { ErrorDetailSchema } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import { block, untilBlocked } from "../testing/blocking.js";
import { envelope, post, startEdge } from "../testing/edge.js";

let edge: Awaited<ReturnType<typeof startEdge>>;
beforeAll(async () => {
  edge = await startEdge();
});
afterAll(() => edge.stop());

const root = fileURLToPath(new URL("../../proto", import.meta.url));
const options = { longs: String, enums: String, defaults: true, oneofs: true };
const ours = loadSync("checkpointd/v1/checkpoint_service.proto", {
  ...options,
  includeDirs: [root],
});
const healthProto = path.join(
  path.dirname(createRequire(import.meta.url).resolve("grpc-health-check/package.json")),
  "proto/health/v1/health.proto",
);

type Answer = Record<string, unknown> & {
  tuple?: { key: object; checkpointJson: string; blobs: { value: { data: Buffer } }[] };
};
type GrpcClient = grpc.Client & Record<string, CallableFunction>;

function connect(definition: PackageDefinition, service: string): GrpcClient {
  const Service = grpc.makeClientConstructor(
    definition[service] as grpc.ServiceDefinition,
    service.slice(service.lastIndexOf(".") + 1),
  );
  return new Service(`127.0.0.1:${edge.server.port}`, grpc.credentials.createInsecure(), {
    "grpc.max_receive_message_length": 64 * 1024 * 1024,
    "grpc.max_send_message_length": 64 * 1024 * 1024,
  }) as unknown as GrpcClient;
}

function unary(client: GrpcClient, rpc: string, request: object, given: grpc.CallOptions = {}) {
  return new Promise<Answer>((resolve, reject) => {
    client[rpc]?.(request, new grpc.Metadata(), given, (error: unknown, answer: Answer) =>
      error ? reject(error) : resolve(answer),
    );
  });
}

async function refusedWith(call: Promise<unknown>): Promise<grpc.ServiceError> {
  const error = await call.then(
    () => undefined,
    (reason: grpc.ServiceError) => reason,
  );
  if (!error) throw new Error("the call succeeded");
  return error;
}

/** The details in google.rpc.Status, whose third field holds them, as grpc-js delivers it. */
function detailsOf(error: grpc.ServiceError) {
  const reader = new BinaryReader(error.metadata.get("grpc-status-details-bin")[0] as Buffer);
  const details = [];
  while (reader.pos < reader.len) {
    const [field, wireType] = reader.tag();
    if (field === 3) details.push(fromBinary(AnySchema, reader.bytes()));
    else reader.skip(wireType);
  }
  return details;
}

/** The first of them, which is ours. */
function detailOf(error: grpc.ServiceError) {
  const [detail] = detailsOf(error);
  return detail && anyUnpack(detail, ErrorDetailSchema);
}

/** The delay in a google.rpc.RetryInfo, as the protobuf library of grpc-js reads it. */
function toDelay(bytes: Uint8Array) {
  const duration = { seconds: { type: "int64", id: 1 }, nanos: { type: "int32", id: 2 } };
  const types = {
    Duration: { fields: duration },
    RetryInfo: { fields: { retryDelay: { type: "Duration", id: 1 } } },
    Any: {
      methods: { Call: { requestType: "RetryInfo", responseType: "RetryInfo", comment: "" } },
    },
  };
  const { Any } = fromJSON({ nested: types }, options) as Record<string, grpc.ServiceDefinition>;
  return Any?.Call?.responseDeserialize(Buffer.from(bytes)).retryDelay;
}

const big = "9007199254740993";
const key = { threadId: "grpc-js", checkpointNs: "", checkpointId: "1" };
const put = {
  ...key,
  checkpointJson: `{"v": 4, "id": ${big}, "channel_versions": {"c": "1"}}`,
  metadataJson: '{"source": "loop"}',
  blobs: [{ channel: "c", version: "1", value: { type: "bytes", data: Buffer.from([0, 255]) } }],
};

describe("@grpc/grpc-js with the .proto files", () => {
  let client: GrpcClient;
  beforeAll(() => {
    client = connect(ours, "checkpointd.v1.CheckpointService");
  });
  afterAll(() => client.close());

  const list = async (request: object, given: grpc.CallOptions = {}): Promise<Answer[]> =>
    (
      client.List!(request, new grpc.Metadata(), given) as grpc.ClientReadableStream<Answer>
    ).toArray();

  test("all five RPCs", async () => {
    expect(await unary(client, "Put", put)).toEqual({});
    const writes = [
      { idx: -1, channel: "__error__", value: { type: "json", data: Buffer.from("1") } },
    ];
    expect(await unary(client, "PutWrites", { ...key, taskId: "t", writes })).toEqual({});
    await unary(client, "Put", { ...put, checkpointId: "2", parentCheckpointId: "1", blobs: [] });

    const { tuple } = await unary(client, "GetTuple", key);
    expect(tuple).toMatchObject({
      key,
      blobs: put.blobs,
      pendingWrites: [{ taskId: "t", idx: -1, channel: "__error__" }],
    });
    expect(tuple?.checkpointJson).toContain(big);

    const threadId = key.threadId;
    const ids = (answers: Answer[]) => answers.map(({ tuple }) => tuple?.key);
    expect(ids(await list({ threadId }))).toEqual([{ ...key, checkpointId: "2" }, key]);
    expect(ids(await list({ threadId, limit: 1 }))).toEqual([{ ...key, checkpointId: "2" }]);
    expect(ids(await list({ threadId, after: { ...key, checkpointId: "2" } }))).toEqual([key]);
    const [headers] = await list({ threadId, view: "LIST_VIEW_METADATA" });
    expect(headers?.tuple).toMatchObject({
      checkpointJson: "",
      parentCheckpointId: "1",
      blobs: [],
    });

    expect(await unary(client, "DeleteThread", { threadId })).toEqual({});
    expect((await unary(client, "GetTuple", key)).tuple).toBeNull();
    expect(await list({ threadId })).toEqual([]);
  });

  test("a list of many messages, read slowly", async () => {
    const threadId = "grpc-js-many";
    for (let i = 0; i < 300; i++) {
      await unary(client, "Put", { ...put, threadId, checkpointId: String(i).padStart(3, "0") });
    }
    const stream = client.List?.({ threadId }) as AsyncIterable<{ tuple: { key: typeof key } }>;
    const seen: string[] = [];
    for await (const { tuple } of stream) {
      seen.push(tuple.key.checkpointId);
      if (seen.length % 50 === 0) await new Promise((resolve) => setTimeout(resolve, 20));
    }
    expect(seen).toHaveLength(300);
    expect(seen).toEqual(seen.toSorted().reverse());
  });

  test("an error's detail is in the trailers, of unary calls and of streams", async () => {
    const long = { threadId: "x".repeat(65_537) };
    const errors = [
      await refusedWith(unary(client, "GetTuple", long)),
      await refusedWith(list(long)),
    ];
    for (const error of errors) {
      expect(error.code).toBe(grpc.status.INVALID_ARGUMENT);
      // connect-es escapes more than gRPC asks for and grpc-js undoes less: `%3A` for a colon.
      expect(decodeURIComponent(error.details)).toBe("thread_id: must be at most 65536 bytes");
      expect(detailOf(error)).toMatchObject({
        reason: "TOO_LONG",
        field: "thread_id",
        limit: 65_536n,
      });
      expect(error.metadata.get("x-request-id")).not.toEqual([]);
    }
  });

  test("when to try again is in the detail, in RetryInfo and in retry-after", async () => {
    await edge.sql.query("alter table checkpoints rename to elsewhere");
    const errors = [
      await refusedWith(unary(client, "GetTuple", key)),
      await refusedWith(list({ threadId: "x" })),
    ];
    const { headers, error } = await post(
      edge.server.url,
      "GetTuple",
      JSON.stringify({ threadId: "x" }),
      { "content-type": "application/json" },
    );
    await edge.sql.query("alter table elsewhere rename to checkpoints");
    for (const error of errors) {
      expect(error.code).toBe(grpc.status.UNAVAILABLE);
      expect(detailOf(error)).toMatchObject({ reason: "SCHEMA_OLD", retryDelay: { seconds: 1n } });
      const [, info] = detailsOf(error);
      expect(info?.typeUrl).toBe("type.googleapis.com/google.rpc.RetryInfo");
      expect(toDelay(info?.value as Uint8Array)).toEqual({ seconds: "1", nanos: 0 });
      expect(error.metadata.get("retry-after")).toEqual(["1"]);
    }
    expect(headers.get("retry-after")).toBe("1");
    expect(error?.details).toMatchObject([
      { type: "checkpointd.v1.ErrorDetail", debug: { reason: "SCHEMA_OLD", retryDelay: "1s" } },
      { type: "google.rpc.RetryInfo" },
    ]);
    const info = error?.details?.[1] as { value?: string } | undefined;
    expect(toDelay(Buffer.from(info?.value ?? "", "base64"))).toEqual({ seconds: "1", nanos: 0 });
  });

  test("64 MiB and more: RESOURCE_EXHAUSTED", async () => {
    const value = { type: "bytes", data: Buffer.alloc(64 * 1024 * 1024 - 512) };
    const blobs = [{ channel: "c".repeat(512), version: "1", value }];
    const error = await refusedWith(unary(client, "Put", { ...put, blobs }));
    expect(error.code).toBe(grpc.status.RESOURCE_EXHAUSTED);
  });

  test("a deadline ends the statement", async () => {
    await unary(client, "Put", put);
    const lock = await block(edge.database.url, "lock table checkpoints");
    const deadline = () => ({ deadline: Date.now() + 300 });
    const error = await refusedWith(unary(client, "Put", put, deadline()));
    expect(error.code).toBe(grpc.status.DEADLINE_EXCEEDED);
    expect((await refusedWith(list({}, deadline()))).code).toBe(grpc.status.DEADLINE_EXCEEDED);
    await untilBlocked(edge.sql, 0);
    await lock.release();
  });

  test("cancelling ends the statement", async () => {
    const lock = await block(edge.database.url, "lock table checkpoints");
    const stream = client.List?.({}) as grpc.ClientReadableStream<Answer>;
    const failure = refusedWith(stream.toArray());
    await untilBlocked(edge.sql, 1);
    stream.cancel();
    expect((await failure).code).toBe(grpc.status.CANCELLED);
    await untilBlocked(edge.sql, 0);
    await lock.release();
  });

  test("health: Check and Watch, until the server drains", async () => {
    const draining = await startEdge();
    const definition = loadSync(healthProto, options);
    const Service = grpc.makeClientConstructor(
      definition["grpc.health.v1.Health"] as grpc.ServiceDefinition,
      "Health",
    );
    const health = new Service(
      `127.0.0.1:${draining.server.port}`,
      grpc.credentials.createInsecure(),
    ) as unknown as GrpcClient;
    for (const service of ["", "checkpointd.v1.CheckpointService"]) {
      expect(await unary(health, "Check", { service })).toEqual({ status: "SERVING" });
    }
    const unknown = await refusedWith(unary(health, "Check", { service: "nobody" }));
    expect(unknown.code).toBe(grpc.status.NOT_FOUND);
    const seen: unknown[] = [];
    const watch = health.Watch?.({ service: "" }) as AsyncIterable<{ status: string }>;
    for await (const { status } of watch) {
      seen.push(status);
      if (status === "SERVING") void draining.server.drain();
    }
    expect(seen).toEqual(["SERVING", "NOT_SERVING"]);
    health.close();
    await draining.stop();
  });
});

describe("plain fetch over the Connect protocol", () => {
  const url = (rpc: string) => `${edge.server.url}/checkpointd.v1.CheckpointService/${rpc}`;
  const json = { "content-type": "application/json" };
  const named = { threadId: "fetch", checkpointId: "1" };

  test("unary JSON, in either spelling of a field", async () => {
    const request = {
      thread_id: "fetch",
      checkpointId: "1",
      checkpoint_json: `{"channel_versions": {"c": 1}}`,
      blobs: [{ channel: "c", version: "1", value: { type: "json", data: "MQ==" } }],
    };
    const stored = await post(edge.server.url, "Put", JSON.stringify(request), json);
    expect(stored).toMatchObject({ status: 200, body: "{}" });
    const { body } = await post(edge.server.url, "GetTuple", JSON.stringify(named), json);
    expect(JSON.parse(body)).toEqual({
      tuple: {
        key: named,
        checkpointJson: `{"channel_versions": {"c": 1}}`,
        metadataJson: "{}",
        blobs: request.blobs,
      },
    });
  });

  test("a stream's JSON", async () => {
    const body = envelope(Buffer.from(JSON.stringify({ threadId: "fetch" })));
    const answer = await fetch(url("List"), {
      method: "POST",
      headers: { "content-type": "application/connect+json" },
      body,
    });
    const bytes = Buffer.from(await answer.arrayBuffer());
    const messages = [];
    for (let at = 0; at < bytes.length; ) {
      const end = at + 5 + bytes.readUInt32BE(at + 1);
      messages.push([bytes[at], JSON.parse(bytes.toString("utf8", at + 5, end))]);
      at = end;
    }
    expect(messages).toMatchObject([
      [0, { tuple: { key: named } }],
      [2, {}],
    ]);
  });

  test("an error: the HTTP status, the code, and the detail to be read by people", async () => {
    const answer = await post(edge.server.url, "GetTuple", "{}", json);
    expect(answer.status).toBe(400);
    expect(answer.headers.get("content-type")).toBe("application/json");
    expect(answer.error).toMatchObject({
      code: "invalid_argument",
      message: "thread_id: must not be empty",
      details: [
        { type: "checkpointd.v1.ErrorDetail", debug: { reason: "REQUIRED", field: "thread_id" } },
      ],
    });
  });

  test("GET for the RPC without side effects, as text and as base64", async () => {
    const message = JSON.stringify(named);
    const encoded = Buffer.from(message).toString("base64url");
    for (const query of [
      { connect: "v1", encoding: "json", message },
      { connect: "v1", encoding: "json", base64: "1", message: encoded },
    ]) {
      const answer = await fetch(`${url("GetTuple")}?${new URLSearchParams(query)}`);
      expect(answer.status).toBe(200);
      expect(await answer.json()).toMatchObject({ tuple: { key: named } });
    }
    const refused = await fetch(`${url("GetTuple")}?encoding=json&message={}`);
    expect(refused.status).toBe(400);
    const writes = await fetch(`${url("DeleteThread")}?encoding=json&message=${message}`);
    expect(writes.status).toBe(405);
  });
});
