/**
 * Rows as LangGraph's Python saver (3.1) writes them, inserted by hand: primitives inlined in
 * the checkpoint, string versions, msgpack blobs, task_path. Read as messages and by the saver.
 */
import { type Client, createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { TASKS } from "@langchain/langgraph-checkpoint";
import pg from "pg";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { CheckpointTuple } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import { CheckpointService } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import type { Server } from "../server/server.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { startTestServer } from "../testing/test_server.js";
import { ConnectSaver } from "./saver.js";

const version = (step: number) => `${String(step).padStart(32, "0")}.0.692114${step}8509813${step}`;
const ids = [1, 2, 3].map((n) => `1f1e5456-67b2-66f9-bfff-00000000000${n}`);
const [firstId = "", secondId = "", thirdId = ""] = ids;

/** msgpack by hand: ["in"], ["in", "plan"], Python's DeltaSnapshot([1, 2]) and the sends. */
const msgpack = {
  in: "91a2696e",
  plan: "92a2696ea4706c616e",
  snapshot: "c70307920102",
  text: (text: string) =>
    `${(0xa0 + text.length).toString(16)}${Buffer.from(text).toString("hex")}`,
};

let database: TestDatabase;
let client: pg.Client;
let server: Server;
let service: Client<typeof CheckpointService>;
let saver: ConnectSaver;

async function insertCheckpoint(
  thread: string,
  id: string,
  parent: string | null,
  checkpoint: string,
  metadata = '{"step": 1, "source": "loop", "parents": {}}',
) {
  await client.query(
    `INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
     VALUES ($1, '', $2, $3, $4, $5)`,
    [thread, id, parent, checkpoint, metadata],
  );
}

async function insertBlob(
  thread: string,
  channel: string,
  step: number,
  type: string,
  hex: string | null,
) {
  await client.query(
    "INSERT INTO checkpoint_blobs VALUES ($1, '', $2, $3, $4, decode($5, 'hex'))",
    [thread, channel, version(step), type, hex],
  );
}

async function insertWrite(
  thread: string,
  id: string,
  [path, task, idx, channel]: [string, string, number, string],
  [type, hex]: [string, string],
) {
  await client.query(
    `INSERT INTO checkpoint_writes
       (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
     VALUES ($1, '', $2, $3, $4, $5, $6, $7, decode($8, 'hex'))`,
    [thread, id, task, path, idx, channel, type, hex],
  );
}

async function listed(threadId: string): Promise<CheckpointTuple[]> {
  const tuples: CheckpointTuple[] = [];
  for await (const { tuple } of service.list({ threadId })) tuples.push(tuple!);
  return tuples;
}

const asText = (tuple: CheckpointTuple) => ({
  blobs: tuple.blobs
    .map(({ channel, version, value }) => [channel, version, value?.type, hexOf(value?.data)])
    .sort(),
  writes: tuple.pendingWrites.map(({ taskId, idx, channel, value }) => [
    taskId,
    idx,
    channel,
    value?.type,
    hexOf(value?.data),
  ]),
  sends: tuple.pendingSends.map(({ type, data }) => [type, hexOf(data)]),
});
const hexOf = (data: Uint8Array | undefined) => data && Buffer.from(data).toString("hex");

/** The little of Python's serializer that these rows need. */
const serde = {
  dumpsTyped: (): never => {
    throw new Error("these rows are only read");
  },
  async loadsTyped(type: string, data: Uint8Array | string): Promise<unknown> {
    const bytes = Buffer.from(data as Uint8Array);
    if (type === "null") return null;
    if (type === "bytes") return new Uint8Array(bytes);
    if (type !== "msgpack") throw new Error(`type ${type}`);
    let at = 0;
    const next = (): unknown => {
      const head = bytes[at++] ?? 0;
      if (head < 0x80) return head;
      if (head === 0xc7) {
        at += 2;
        return { snapshot: next() };
      }
      if (head >> 4 === 0x9) return Array.from({ length: head & 15 }, next);
      if (head === 0xc0) return null;
      if (head >> 5 !== 0b101) throw new Error(`byte ${head}`);
      at += head & 31;
      return bytes.toString("utf8", at - (head & 31), at);
    };
    return next();
  },
};

beforeAll(async () => {
  database = await createDatabase();
  client = new pg.Client({ connectionString: database.url });
  await client.connect();
  server = await startTestServer(database.url);
  service = createClient(
    CheckpointService,
    createConnectTransport({ baseUrl: server.url, httpVersion: "1.1" }),
  );
  saver = ConnectSaver.fromUrl(server.url, { serde });
});
afterAll(async () => {
  await saver?.end();
  await server?.drain();
  await client?.end();
  await database?.drop();
});

describe("a thread with inlined primitives", () => {
  const inlined =
    '{"b": true, "f": 0.1000000000000000055, "n": 9007199254740993, "s": "é", "none": null, "branch:to:approve": null}';
  const second = `{"v": 4, "id": "${secondId}", "ts": "2026-01-02T03:04:05.006007+00:00",
    "versions_seen": {"__input__": {}, "plan": {"branch:to:plan": "${version(1)}"}},
    "channel_values": ${inlined},
    "channel_versions": {"b": "${version(2)}", "f": "${version(2)}", "n": "${version(2)}",
      "s": "${version(2)}", "log": "${version(2)}", "blob": "${version(2)}", "none": "${version(2)}",
      "gone": "${version(2)}", "branch:to:plan": "${version(2)}", "branch:to:approve": "${version(2)}"},
    "updated_channels": ["b", "log"]}`;
  beforeAll(async () => {
    await insertCheckpoint(
      "py",
      firstId,
      null,
      `{"v": 4, "id": "${firstId}", "ts": "", "versions_seen": {}, "channel_values": {},
        "channel_versions": {"log": "${version(1)}"}, "updated_channels": null}`,
      '{"step": -1, "source": "input", "parents": {}}',
    );
    await insertCheckpoint("py", secondId, firstId, second);
    await insertBlob("py", "log", 1, "msgpack", msgpack.in);
    await insertBlob("py", "log", 2, "msgpack", msgpack.plan);
    await insertBlob("py", "blob", 2, "bytes", "00ff");
    await insertBlob("py", "gone", 2, "empty", null);
    const approve = "~__pregel_pull, approve";
    await insertWrite(
      "py",
      secondId,
      [approve, "38287463", -3, "__interrupt__"],
      ["msgpack", "91c0"],
    );
    await insertWrite("py", secondId, [approve, "12345678", 1, "none"], ["null", ""]);
    await insertWrite("py", secondId, [approve, "12345678", 0, "raw"], ["bytes", "78"]);
  });

  it("comes as messages with every digit and byte", async () => {
    const { tuple } = await service.getTuple({ threadId: "py" });
    expect(tuple?.checkpointJson).toContain(version(2));
    for (const text of [
      '"n": 9007199254740993',
      '"f": 0.1000000000000000055',
      '"none": null',
      '"branch:to:approve": null',
    ]) {
      expect(tuple?.checkpointJson).toContain(text);
    }
    expect(asText(tuple!)).toEqual({
      blobs: [
        ["blob", version(2), "bytes", "00ff"],
        ["log", version(2), "msgpack", msgpack.plan],
      ],
      writes: [
        ["12345678", 0, "raw", "bytes", "78"],
        ["12345678", 1, "none", "null", ""],
        ["38287463", -3, "__interrupt__", "msgpack", "91c0"],
      ],
      sends: [],
    });
    expect(await listed("py")).toEqual([
      tuple,
      (await service.getTuple({ threadId: "py", checkpointId: firstId })).tuple,
    ]);
  });

  it("is read by the saver, its serde decoding what is not inlined", async () => {
    const tuple = await saver.getTuple({
      configurable: { thread_id: "py", checkpoint_id: secondId },
    });
    expect(tuple?.checkpoint.channel_values).toStrictEqual({
      b: true,
      f: 0.1,
      n: 9007199254740992,
      s: "é",
      none: null,
      "branch:to:approve": null,
      log: ["in", "plan"],
      blob: new Uint8Array([0, 255]),
    });
    expect(tuple?.checkpoint.channel_versions.log).toBe(version(2));
    expect(tuple?.metadata).toEqual({ step: 1, source: "loop", parents: {} });
    expect(tuple?.parentConfig?.configurable?.checkpoint_id).toBe(firstId);
  });

  it("gets string versions from the saver that sort after its own", () => {
    const next = saver.getNextVersion(version(9));
    expect(next > version(9)).toBe(true);
    expect(next < version(11)).toBe(true);
  });

  it("is stored again through Put as it was, inlined values included", async () => {
    for (const tuple of (await listed("py")).reverse()) {
      await service.put({
        threadId: "py copied",
        checkpointId: tuple.key!.checkpointId,
        parentCheckpointId: tuple.parentCheckpointId ?? "",
        checkpointJson: tuple.checkpointJson,
        metadataJson: tuple.metadataJson,
        blobs: tuple.blobs,
      });
    }
    const { rows } = await client.query(
      `SELECT count(*)::int AS same FROM checkpoints a JOIN checkpoints b
         USING (checkpoint_ns, checkpoint_id, checkpoint, metadata)
       WHERE a.thread_id = 'py' AND b.thread_id = 'py copied'
         AND a.parent_checkpoint_id IS NOT DISTINCT FROM b.parent_checkpoint_id`,
    );
    expect(rows).toEqual([{ same: 2 }]);
  });
});

it("a DeltaSnapshot is the blob behind the marker `true`, an inlined `true` is itself", async () => {
  const checkpoint = (id: string, channels: string[]) => {
    const versions = Object.fromEntries(channels.map((channel) => [channel, version(1)]));
    const values = Object.fromEntries(channels.map((channel) => [channel, true]));
    return JSON.stringify({ v: 4, id, channel_values: values, channel_versions: versions });
  };
  await insertCheckpoint("delta", firstId, null, checkpoint(firstId, ["snapshot", "flag"]));
  await insertBlob("delta", "snapshot", 1, "msgpack", msgpack.snapshot);
  await insertWrite("delta", firstId, ["~p", "task", 0, "snapshot"], ["msgpack", "9103"]);
  await insertCheckpoint("delta", secondId, firstId, checkpoint(secondId, []));
  const config = { configurable: { thread_id: "delta", checkpoint_id: firstId } };
  expect((await saver.getTuple(config))?.checkpoint.channel_values).toEqual({
    snapshot: { snapshot: [1, 2] },
    flag: true,
  });
  const { tuple } = await service.getTuple({ threadId: "delta", checkpointId: firstId });
  expect(asText(tuple!).blobs).toEqual([["snapshot", version(1), "msgpack", msgpack.snapshot]]);
  expect(
    await saver.getDeltaChannelHistory({
      config: { configurable: { thread_id: "delta" } },
      channels: ["snapshot", "flag"],
    }),
  ).toEqual({
    snapshot: { seed: { snapshot: [1, 2] }, writes: [["task", "snapshot", [3]]] },
    flag: { seed: true, writes: [] },
  });
});

it("sends of an old checkpoint's parent come in the order of task_path, task_id and idx", async () => {
  const old = (id: string) =>
    JSON.stringify({
      v: 3,
      id,
      channel_values: { n: 1 },
      channel_versions: { n: version(1), m: version(7) },
    });
  await insertCheckpoint("sends", firstId, null, old(firstId));
  await insertCheckpoint("sends", secondId, firstId, old(secondId));
  await insertCheckpoint("sends", thirdId, secondId, old(thirdId));
  const sends: [string, string, number][] = [
    ["~__pregel_pull, b", "task 1", 0],
    ["~__pregel_pull, a", "task 3", 10],
    ["~__pregel_pull, a", "task 3", 9],
    ["~__pregel_pull, Z", "task 4", 2],
    ["", "task 5", 0],
    ["~__pregel_pull, a", "Task 9", 0],
  ];
  for (const [i, [path, task, idx]] of sends.entries()) {
    await insertWrite(
      "sends",
      firstId,
      [path, task, idx, TASKS],
      ["msgpack", msgpack.text(`s${i}`)],
    );
  }
  await insertWrite("sends", firstId, ["", "task 0", 0, "log"], ["msgpack", "01"]);

  const ordered = ["s4", "s3", "s5", "s2", "s1", "s0"];
  const tuples = await listed("sends");
  expect(tuples.map((tuple) => asText(tuple).sends)).toEqual([
    [],
    ordered.map((text) => ["msgpack", msgpack.text(text)]),
    [],
  ]);
  const tuple = await saver.getTuple({
    configurable: { thread_id: "sends", checkpoint_id: secondId },
  });
  expect(tuple?.checkpoint.channel_values).toEqual({ n: 1, [TASKS]: ordered });
  expect(tuple?.checkpoint.channel_versions[TASKS]).toBe(version(7));
});
