/**
 * Results come in the order that is promised, whatever the order in which Postgres finds the rows:
 * here it uses no index, and the rows lie in the opposite order.
 */
import { create } from "@bufbuild/protobuf";
import pg from "pg";
import { afterAll, beforeAll, expect, it } from "vitest";
import { ListRequestSchema, ListView } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import {
  GetChannelHistoryRequestSchema,
  type GetChannelHistoryResponse,
  ListThreadsRequestSchema,
  ThreadStatus,
} from "../../gen/checkpointd/v1/thread_service_pb.js";
import { createDatabase, openPool, type TestDatabase } from "../testing/postgres.js";
import { channelHistory } from "./channel_history.js";
import type { Db } from "./db.js";
import { deleteRuns } from "./delete_runs.js";
import { list } from "./list_checkpoints.js";
import { lookAtTables } from "./look.js";
import { pruneThreads } from "./prune.js";
import { listThreads } from "./read_threads.js";

let database: TestDatabase;
let sql: pg.Client;
let db: Db;
beforeAll(async () => {
  database = await createDatabase();
  sql = new pg.Client({ connectionString: database.url });
  await sql.connect();
  const name = new URL(database.url).pathname.slice(1);
  for (const path of ["indexscan", "indexonlyscan", "bitmapscan"]) {
    await sql.query(`alter database ${name} set enable_${path} = off`);
  }
  db = openPool(database.url);
});
afterAll(async () => {
  await db?.close(1000);
  await sql?.end();
  await database?.drop();
});

async function checkpoint(thread: string, id: string, parent: string, json: object, run = "") {
  await sql.query(
    `insert into checkpoints (thread_id, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
     values ($1, $2, $3, $4, $5)`,
    [thread, id, parent, json, run === "" ? {} : { run_id: run }],
  );
}

async function write(thread: string, id: string, task: string, idx: number, more = {}) {
  const { path = "", channel = "a" } = more as { path?: string; channel?: string };
  await sql.query(
    `insert into checkpoint_writes
       (thread_id, checkpoint_id, task_id, task_path, idx, channel, type, blob)
     values ($1, $2, $3, $4, $5, $6, 'json', convert_to($7, 'UTF8'))`,
    [thread, id, task, path, idx, channel, `${task} ${idx}`],
  );
}

async function blob(thread: string, channel: string, version: string) {
  await sql.query(
    `insert into checkpoint_blobs (thread_id, channel, version, type, blob)
     values ($1, $2, $3, 'json', convert_to($2 || $3, 'UTF8'))`,
    [thread, channel, version],
  );
}

async function history(threadId: string, channels: string[]) {
  const messages: GetChannelHistoryResponse[] = [];
  const request = create(GetChannelHistoryRequestSchema, { threadId, channels });
  for await (const message of channelHistory(db, request)) messages.push(message);
  return messages;
}

it("channelHistory: the nearest ancestor first and in one message, its writes by path, task and idx", async () => {
  const versions = { c1: { a: "1", c: "1" }, c2: { a: "2", b: "2", c: "2" } };
  await blob("history", "c", "1");
  await blob("history", "a", "1");
  await blob("history", "b", "2");
  await checkpoint("history", "c1", "", { v: 4, channel_versions: versions.c1 });
  await checkpoint("history", "c2", "c1", { v: 4, channel_versions: versions.c2 });
  await checkpoint("history", "c3", "c2", { v: 4 });
  await checkpoint("history", "c4", "c3", { v: 4 });
  for (const id of ["c1", "c2", "c3"]) {
    for (const [task, path] of [
      ["task-3", "~1"],
      ["task-2", "~2"],
      ["task-1", "~2"],
    ] as const) {
      for (const idx of [10, 9, -1]) await write("history", id, task, idx, { path });
    }
  }
  const messages = await history("history", ["c", "b", "a"]);
  const writes = ["task-3", "task-1", "task-2"].flatMap((task) =>
    [-1, 9, 10].map((idx) => [task, idx]),
  );
  expect(
    messages.map((message) => [
      message.checkpointId,
      message.writes.map(({ taskId, idx }) => [taskId, idx]),
      message.seeds.map(({ channel }) => channel),
    ]),
  ).toEqual([
    ["c3", writes, []],
    ["c2", writes, ["b"]],
    ["c1", writes, ["a", "c"]],
  ]);
});

it("channelHistory: pending sends by task path, then task, then idx", async () => {
  await checkpoint("sends", "c1", "", { v: 3 });
  await checkpoint("sends", "c2", "c1", { v: 3 });
  await checkpoint("sends", "c3", "c2", { v: 3 });
  const channel = "__pregel_tasks";
  await write("sends", "c1", "a", 1, { path: "~2", channel });
  await write("sends", "c1", "a", 0, { path: "~2", channel });
  await write("sends", "c1", "c", 0, { path: "~1", channel });
  await write("sends", "c1", "b", 0, { path: "~1", channel });
  const [message] = await history("sends", [channel]);
  expect(message?.pendingSends.map(({ data }) => Buffer.from(data).toString())).toEqual([
    "b 0",
    "c 0",
    "a 0",
    "a 1",
  ]);
});

it("deleteRuns: one thread after the other, however their checkpoints lie", async () => {
  await sql.query(
    `insert into checkpoints (thread_id, checkpoint_id, checkpoint, metadata)
     select 'run-' || n % 2, n::text, '{}', '{"run_id": "run"}' from generate_series(1, 600) as n`,
  );
  const threads: unknown[] = [];
  const recording = recordRemoved(([threadId]) => threads.push(threadId));
  expect((await deleteRuns(recording, ["run"])).checkpoints).toBe(600n);
  // 500 are found at a time.
  expect(threads).toEqual(["run-0", "run-1", "run-1"]);
});

it("list: tuple by tuple; blobs by channel, writes and sends by path, task and idx", async () => {
  for (const channel of ["b", "aa", "a"]) await blob("tuples", channel, "1");
  const versions = { b: "1", aa: "1", a: "1" };
  for (const [id, parent] of [
    ["c2", "c1"],
    ["c1", "c0"],
  ] as const) {
    await checkpoint("tuples", id, parent, { v: 3, channel_versions: versions });
  }
  const channel = "__pregel_tasks";
  for (const id of ["c1", "c0"]) {
    for (const [task, path] of [
      ["task-3", "~1"],
      ["task-2", "~2"],
      ["task-1", "~2"],
    ] as const) {
      for (const idx of [10, 9, -1]) await write("tuples", id, task, idx, { path, channel });
    }
  }
  const tuples: unknown[] = [];
  for await (const tuple of list(db, create(ListRequestSchema, { threadId: "tuples" }))) {
    tuples.push([
      tuple.key?.checkpointId,
      tuple.blobs.map((each) => each.channel),
      tuple.pendingWrites.map(({ taskId, idx }) => `${taskId} ${idx}`),
      tuple.pendingSends.map(({ data }) => Buffer.from(data).toString()),
    ]);
  }
  const inOrder = (tasks: string[]) =>
    tasks.flatMap((task) => [-1, 9, 10].map((idx) => `${task} ${idx}`));
  const blobs = ["a", "aa", "b"];
  const byPath = inOrder(["task-3", "task-1", "task-2"]);
  expect(tuples).toEqual([
    ["c2", blobs, [], byPath],
    ["c1", blobs, byPath, byPath],
  ]);
});

it("list, metadata only: the newest first, in pages of few bytes", async () => {
  for (let n = 10; n < 30; n++) await checkpoint("headers", `${n}`, "", {}, "of many bytes");
  const request = create(ListRequestSchema, { threadId: "headers", view: ListView.METADATA });
  const ids: unknown[] = [];
  const bounds = { firstRows: 16, maxRows: 16, maxBytes: 100 };
  for await (const { key } of list(db, request, undefined, bounds)) ids.push(key?.checkpointId);
  expect(ids).toEqual(Array.from({ length: 20 }, (_, i) => `${29 - i}`));
});

it("pruneThreads: the oldest checkpoints first", async () => {
  for (let n = 29; n >= 10; n--) await checkpoint("pruned", `${n}`, "", {});
  const ids: unknown[] = [];
  const recording = recordRemoved(([, , removed]) => ids.push(...(removed as string[])));
  const prune = { threadIds: ["pruned"], keepLast: 1, dryRun: false };
  for await (const _ of pruneThreads(recording, prune));
  expect(ids).toEqual(Array.from({ length: 19 }, (_, i) => `${10 + i}`));
});

it("listThreads: the newest first and each once, over several pages", async () => {
  await sql.query("truncate checkpoints, checkpoint_blobs, checkpoint_writes");
  await sql.query(
    `insert into checkpoints (thread_id, checkpoint_id, checkpoint, created_at)
     select 'thread-' || n, 'c', '{}', '2020-01-01'::timestamptz + n * interval '1 s'
     from generate_series(100, 349) as n`,
  );
  const found = async (statuses: ThreadStatus[]) => {
    const ids: string[] = [];
    const request = create(ListThreadsRequestSchema, { filter: { statuses } });
    for await (const { threadId } of listThreads(db, request)) ids.push(threadId);
    return ids;
  };
  expect(await found([])).toEqual(Array.from({ length: 250 }, (_, i) => `thread-${349 - i}`));
  await write("thread-348", "c", "task", 0, { channel: "__interrupt__" });
  expect(await found([ThreadStatus.INTERRUPTED])).toEqual(["thread-348"]);
});

it("lookAtTables: what is newer as it was applied, what is missing by name", async () => {
  await sql.query(
    `insert into checkpointd_migrations (id, name, run_on, safe)
     values (1002, '9001_last', now(), false), (1001, '9002_first', now(), false)`,
  );
  const signal = new AbortController().signal;
  expect((await lookAtTables(db, "public", signal)).newer).toEqual(["9002_first", "9001_last"]);
  await sql.query("create schema bare");
  expect((await lookAtTables(db, "bare", signal)).trouble?.message).toBe(
    ["checkpoint_blobs", "checkpoint_writes", "checkpointd_claims", "checkpoints"]
      .map((table) => `no table ${table}`)
      .join(", "),
  );
});

/** The pool, telling the parameters of each statement that removes checkpoints. */
function recordRemoved(tell: (parameters: readonly unknown[]) => void): Db {
  return {
    ...db,
    runLong(text, parameters, signal) {
      if (text.includes("with place as")) tell(parameters);
      return db.runLong(text, parameters, signal);
    },
  };
}
