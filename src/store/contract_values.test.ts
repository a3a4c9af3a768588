/**
 * docs/langgraph-contract.md, 2.7 and 2.8: what is stored comes back exactly, and nothing poisons a
 * thread.
 */
import type { MessageInitShape } from "@bufbuild/protobuf";
import { type Client, Code, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import pg from "pg";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type CheckpointTuple, ErrorDetailSchema } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import {
  CheckpointService,
  type ListRequestSchema,
  type PutRequestSchema,
} from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import type { Server } from "../server/server.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { startTestServer } from "../testing/test_server.js";

let database: TestDatabase;
let pool: pg.Pool;
let server: Server;
let service: Client<typeof CheckpointService>;

beforeAll(async () => {
  database = await createDatabase();
  pool = new pg.Pool({ connectionString: database.url, max: 3 });
  server = await startTestServer(database.url);
  service = createClient(
    CheckpointService,
    createConnectTransport({ baseUrl: server.url, httpVersion: "1.1" }),
  );
});
afterAll(async () => {
  await server?.drain();
  await pool?.end();
  await database?.drop();
});

function put(
  threadId: string,
  checkpointId: string,
  more: MessageInitShape<typeof PutRequestSchema> = {},
) {
  return service.put({ threadId, checkpointId, checkpointJson: '{"v": 4}', ...more });
}

const blob = (channel: string, version: string) => ({
  channel,
  version,
  value: { type: "json", data: Buffer.from("1") },
});

async function list(request: MessageInitShape<typeof ListRequestSchema>) {
  const tuples: CheckpointTuple[] = [];
  for await (const { tuple } of service.list(request)) tuples.push(tuple!);
  return tuples;
}

async function rowCounts(): Promise<number[]> {
  const tables = ["checkpoints", "checkpoint_blobs", "checkpoint_writes"];
  const results = await Promise.all(tables.map((table) => pool.query(`SELECT FROM ${table}`)));
  return results.map(({ rowCount }) => rowCount ?? 0);
}

async function refused(call: Promise<unknown>): Promise<{ code: string; field: string }> {
  const error = ConnectError.from(
    await call.then(
      () => "no error",
      (reason: unknown) => reason,
    ),
  );
  return { code: Code[error.code], field: error.findDetails(ErrorDetailSchema)[0]?.field ?? "" };
}

describe("2.7 the server never decodes a value and never rounds a number", () => {
  it("returns numbers of JSON with every digit, and all characters jsonb can hold", async () => {
    const numbers = [
      "9007199254740993",
      "-9223372036854775808",
      "0.1000000000000000055511151231257827",
      "1.10",
      "123456789012345678901234567890",
    ];
    const text = `{"numbers": [${numbers.join(", ")}],
      "text": "é\\n\\u0001\u{1f600}\\ud83d\\ude00\\\\u0000", "v": 4}`;
    await put("exact", "c", { checkpointJson: text, metadataJson: text });
    const { tuple } = await service.getTuple({ threadId: "exact" });
    for (const json of [tuple!.checkpointJson, tuple!.metadataJson]) {
      expect(json).toContain(`"numbers": [${numbers.join(", ")}]`);
      expect(JSON.parse(json)).toEqual(JSON.parse(text));
    }
    expect(await list({ threadId: "exact" })).toEqual([tuple]);
    const filter = (number: string) =>
      list({ threadId: "exact", metadataFilterJson: `{"numbers": [${number}]}` });
    expect(await filter("9007199254740993")).toEqual([tuple]);
    expect(await filter("9007199254740992")).toEqual([]);
  });

  it("returns type and bytes as they came, whatever they are", async () => {
    const values = [
      { type: "json", data: Buffer.from("{ not json") },
      { type: "msgpack", data: Uint8Array.from({ length: 256 }, (_, i) => i) },
      { type: "é\n", data: new Uint8Array(0) },
      { type: "bytes", data: Buffer.from("\\x41\\\\") },
    ];
    await put("bytes", "c", {
      checkpointJson: '{"channel_versions": {"0": 1, "1": 1, "2": 1, "3": 1}}',
      blobs: values.map((value, i) => ({ channel: String(i), version: "1", value })),
    });
    const writes = values.map((value, idx) => ({ idx, channel: "a", value }));
    await service.putWrites({ threadId: "bytes", checkpointId: "c", taskId: "t", writes });
    const { tuple } = await service.getTuple({ threadId: "bytes" });
    const plain = ({ type, data }: { type: string; data: Uint8Array }) => [type, [...data]];
    const blobs = [...tuple!.blobs].sort((a, b) => Number(a.channel) - Number(b.channel));
    expect(blobs.map((stored) => plain(stored.value!))).toEqual(values.map(plain));
    expect(tuple!.pendingWrites.map((stored) => plain(stored.value!))).toEqual(values.map(plain));
  });

  it("returns the names of threads, channels and tasks as they came", async () => {
    const names = [
      "__proto__",
      "constructor",
      "é",
      "e\u0301",
      "\u{1f600}",
      " ",
      "'\"\\;--",
      "%s$1",
      "\n",
    ];
    for (const name of names) {
      await put(name, name, {
        checkpointNs: name,
        parentCheckpointId: name,
        checkpointJson: JSON.stringify({ channel_versions: Object.fromEntries([[name, name]]) }),
        blobs: [blob(name, name)],
      });
      const writes = [{ idx: 0, ...blob(name, name) }].map(({ version: _, ...write }) => write);
      const key = { threadId: name, checkpointNs: name, checkpointId: name };
      await service.putWrites({ ...key, taskId: name, writes });
      expect((await service.getTuple(key)).tuple).toMatchObject({
        key,
        parentCheckpointId: name,
        blobs: [{ channel: name, version: name }],
        pendingWrites: [{ taskId: name, channel: name }],
      });
      expect(await list({ threadId: name, checkpointNs: name, checkpointId: name })).toHaveLength(
        1,
      );
    }
  });
});

describe("2.8 what cannot be stored is refused by name, with nothing stored", () => {
  it.each<[string, string, string]>([
    ["checkpoint_json", "NUL", '{"a": "\\u0000"}'],
    ["checkpoint_json", "a lone surrogate", '{"a": {"\\ud800": 1}}'],
    ["checkpoint_json", "a lone surrogate after an escaped backslash", '{"a": "\\\\\\udc00"}'],
    ["metadata_json", "NUL", '{"a\\u0000": 1}'],
    ["metadata_json", "two surrogates in the wrong order", '{"a": "\\udc00\\ud83d"}'],
    ["metadata_json", "no JSON", '{"a": '],
  ])("%s with %s", async (field, _, json) => {
    const before = await rowCounts();
    const key = field === "checkpoint_json" ? "checkpointJson" : "metadataJson";
    const call = put("poison", "c", { [key]: json, blobs: [blob("a", "1")] });
    expect(await refused(call)).toEqual({ code: "InvalidArgument", field });
    expect(await rowCounts()).toEqual(before);
  });

  it.each<[string, () => Promise<unknown>]>([
    ["thread_id", () => put("a\0", "c")],
    ["checkpoint_ns", () => put("a", "c", { checkpointNs: "\0" })],
    ["checkpoint_id", () => put("a", "c\0")],
    ["parent_checkpoint_id", () => put("a", "c", { parentCheckpointId: "\0" })],
    ["blobs[0].channel", () => put("a", "c", { blobs: [blob("a\0", "1")] })],
    ["blobs[0].version", () => put("a", "c", { blobs: [blob("a", "1\0")] })],
    ["task_id", () => service.putWrites({ threadId: "a", checkpointId: "c", taskId: "t\0" })],
    ["thread_id", () => service.getTuple({ threadId: "\0" })],
    ["thread_id", () => service.deleteThread({ threadId: "\0" })],
    ["before_checkpoint_id", () => list({ beforeCheckpointId: "a\0" })],
    ["metadata_filter_json", () => list({ metadataFilterJson: '{"a": "\\u0000"}' })],
  ])("NUL in %s", async (field, call) => {
    const before = await rowCounts();
    expect(await refused(call())).toEqual({ code: "InvalidArgument", field });
    expect(await rowCounts()).toEqual(before);
  });
});

describe("2.8 what is stored stays readable", () => {
  it.each([
    "{}",
    '{"v": 4}',
    '{"v": null, "channel_versions": null}',
    '{"v": 1, "channel_versions": []}',
    '{"v": "1", "channel_versions": "a"}',
    '{"v": true, "channel_versions": 7}',
    '{"v": [1], "channel_versions": [{"a": 1}]}',
    '{"v": -1e300, "channel_versions": {"a": null, "b": {"c": 1}, "c": [1], "d": true, "": 1}}',
    '{"v": 1e300, "channel_versions": {"a": 1e300}}',
    '{"channel_values": [], "versions_seen": "x"}',
  ])("a checkpoint %s, and its thread", async (checkpointJson) => {
    const thread = `odd ${checkpointJson}`;
    await put(thread, "c1");
    const blobs = [blob("a", "1"), blob("b", '{"c": 1}'), blob("d", "true")];
    await put(thread, "c2", { parentCheckpointId: "c1", checkpointJson, blobs });
    const send = { idx: 0, channel: "__pregel_tasks", value: blob("a", "1").value };
    await service.putWrites({ threadId: thread, checkpointId: "c1", taskId: "t", writes: [send] });
    await put(thread, "c3", { parentCheckpointId: "c2" });
    const tuples = await list({ threadId: thread });
    expect(tuples.map(({ key }) => key?.checkpointId)).toEqual(["c3", "c2", "c1"]);
    expect(JSON.parse(tuples[1]!.checkpointJson)).toEqual(JSON.parse(checkpointJson));
    for (const tuple of tuples) {
      const { checkpointId = "" } = tuple.key!;
      expect((await service.getTuple({ threadId: thread, checkpointId })).tuple).toEqual(tuple);
    }
  });

  it.each(["null", "[]", '"text"', "7"])("a row that another writer stored as %s", async (json) => {
    const thread = `foreign ${json}`;
    await pool.query("INSERT INTO checkpoints VALUES ($1, '', 'c', '', NULL, $2, $2)", [
      thread,
      json,
    ]);
    await pool.query("INSERT INTO checkpoint_writes VALUES ($1, '', 'c', 't', 0, 'a', NULL, '')", [
      thread,
    ]);
    const { tuple } = await service.getTuple({ threadId: thread });
    expect(tuple).toMatchObject({ checkpointJson: json, metadataJson: json });
    expect(tuple?.parentCheckpointId).toBeUndefined();
    expect(tuple?.pendingWrites).toMatchObject([{ taskId: "t", value: { type: "" } }]);
    expect(await list({ threadId: thread })).toEqual([tuple]);
  });

  it("a checkpoint that names a blob which is not there", async () => {
    const checkpointJson = '{"channel_versions": {"here": 1, "gone": 1}}';
    await put("gone", "c", { checkpointJson, blobs: [blob("here", "1"), blob("gone", "2")] });
    const { tuple } = await service.getTuple({ threadId: "gone" });
    expect(tuple?.blobs.map(({ channel }) => channel)).toEqual(["here"]);
    expect(await list({ threadId: "gone" })).toEqual([tuple]);
  });
});
