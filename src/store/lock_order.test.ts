/**
 * Each statement that locks many rows locks them in the order of their keys: two of them then wait
 * for each other's rows in one order and never in a circle. Somebody holds the first row; whoever
 * waits for it must not hold any other.
 */
import { create } from "@bufbuild/protobuf";
import pg from "pg";
import { afterAll, beforeAll, expect, it } from "vitest";
import {
  PutRequestSchema,
  PutWritesRequestSchema,
} from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { ThreadFilterSchema, ThreadStatus } from "../../gen/checkpointd/v1/thread_service_pb.js";
import { block, untilBlocked } from "../testing/blocking.js";
import { createDatabase, openPool, type TestDatabase } from "../testing/postgres.js";
import type { Db } from "./db.js";
import { claimThreads } from "./leases.js";
import { createPut } from "./put.js";
import { createPutExtending } from "./put_extending.js";
import { createPutWrites } from "./put_writes.js";
import { removeUnusedBlobs } from "./remove.js";

let database: TestDatabase;
let sql: pg.Client;
let db: Db;
beforeAll(async () => {
  database = await createDatabase();
  sql = new pg.Client({ connectionString: database.url });
  await sql.connect();
  db = openPool(database.url);
});
afterAll(async () => {
  await db?.close(1000);
  await sql?.end();
  await database?.drop();
});

/** Names in the opposite order of their keys: that of the rows in the table, and of each request. */
const names = Array.from({ length: 20 }, (_, i) => `n${39 - i}`);
const first = "n20";
const few = names.slice(-8);

const put = (threadId: string, channels: readonly string[], leaseToken = "") =>
  create(PutRequestSchema, {
    threadId,
    checkpointId: "c",
    checkpointJson: '{"v": 4}',
    leaseToken,
    blobs: channels.map((channel) => ({ channel, version: "1" })),
  });
const writes = (taskId: string, idxs: readonly number[], leaseToken = "") =>
  create(PutWritesRequestSchema, {
    threadId: "t",
    checkpointId: "c",
    taskId,
    leaseToken,
    writes: idxs.map((idx) => ({ idx, channel: "a", value: { type: "json" } })),
  });
const insert = {
  checkpoints: (thread: string) =>
    `insert into checkpoints (thread_id, checkpoint_id, checkpoint) values ('${thread}', 'c', '{}')`,
  blob: (channel: string) =>
    `insert into checkpoint_blobs (thread_id, channel, version, type) values ('t', '${channel}', '1', 'empty')`,
  write: (task: string, idx: number) =>
    `insert into checkpoint_writes (thread_id, checkpoint_id, task_id, idx, channel, blob) values ('t', 'c', '${task}', ${idx}, 'a', '')`,
  lease: (thread: string, until: string) =>
    `insert into checkpointd_claims values ('${thread}', 'me', 'token', now() + interval '${until}')`,
};
const idxs = few.map((_, i) => few.length - i);

it.each<[string, string, string, string[], () => Promise<unknown>]>([
  [
    "put, its blobs",
    "checkpoint_blobs",
    `channel = '${first}'`,
    few.map(insert.blob),
    () => createPut(db)(put("t", few)),
  ],
  [
    "put of many blobs",
    "checkpoint_blobs",
    `channel = '${first}'`,
    names.map(insert.blob),
    () => createPut(db)(put("t", names)),
  ],
  [
    "puts of one statement",
    "checkpoints",
    `thread_id = '${first}'`,
    names.map(insert.checkpoints),
    () => {
      const each = createPut(db);
      return Promise.all(names.map((name) => each(put(name, []))));
    },
  ],
  [
    "putExtending of many blobs",
    "checkpoint_blobs",
    `channel = '${first}'`,
    names.map(insert.blob),
    () => createPutExtending(db)({ put: put("t", names), prefixes: [] }),
  ],
  [
    "putExtendings of one statement",
    "checkpoints",
    `thread_id = '${first}'`,
    names.map(insert.checkpoints),
    () => {
      const each = createPutExtending(db);
      return Promise.all(names.map((name) => each({ put: put(name, []), prefixes: [] })));
    },
  ],
  [
    "puts under leases, the leases",
    "checkpointd_claims",
    `thread_id = '${first}'`,
    names.map((name) => insert.lease(name, "1 hour")),
    () => {
      const each = createPut(db);
      return Promise.all(names.map((name) => each(put(name, [], "token"))));
    },
  ],
  [
    "putWrites of few",
    "checkpoint_writes",
    "idx = 1",
    idxs.map((idx) => insert.write("task", idx)),
    () => createPutWrites(db)(writes("task", idxs)),
  ],
  [
    "putWrites of one statement",
    "checkpoint_writes",
    `task_id = '${first}'`,
    names.map((name) => insert.write(name, 1)),
    () => {
      const each = createPutWrites(db);
      return Promise.all(names.map((name) => each(writes(name, [1]))));
    },
  ],
  [
    "claimThreads, the leases that have ended",
    "checkpointd_claims",
    `thread_id = '${first}'`,
    [
      ...names.map((name) => insert.lease(name, "-1 hour")),
      // The newest is looked at first.
      ...[...names].reverse().map(insert.checkpoints),
    ],
    () =>
      claimThreads(db, {
        owner: "me",
        leaseMs: 60_000,
        graceMs: -60_000,
        limit: names.length,
        filter: create(ThreadFilterSchema, { statuses: [ThreadStatus.COMPLETED] }),
        threadId: "",
      }),
  ],
  [
    "removeUnusedBlobs",
    "checkpoint_blobs",
    `channel = '${first}'`,
    names.map(insert.blob),
    () => removeUnusedBlobs(db, "t", undefined),
  ],
])("%s", async (_, table, isFirst, rows, run) => {
  await sql.query("truncate checkpoints, checkpoint_blobs, checkpoint_writes, checkpointd_claims");
  for (const row of rows) await sql.query(row);
  const {
    rows: [{ all }],
  } = await sql.query(`select count(*)::int as all from ${table}`);
  const blocker = await block(database.url, `select 1 from ${table} where ${isFirst} for update`);
  const running = run();
  await untilBlocked(sql, 1);
  const { rows: free } = await sql.query(`select 1 from ${table} for update skip locked`);
  await blocker.release();
  await running;
  expect(free).toHaveLength(all - 1);
});
