/** How much is read at once of why threads do not go on. */
import { create } from "@bufbuild/protobuf";
import pg from "pg";
import { afterAll, beforeAll, expect, it } from "vitest";
import { ListThreadsRequestSchema } from "../../gen/checkpointd/v1/thread_service_pb.js";
import { createDatabase, openPool, type TestDatabase } from "../testing/postgres.js";
import type { Db } from "./db.js";
import { listThreads } from "./read_threads.js";

let database: TestDatabase;
let sql: pg.Client;
let db: Db;
const stored = 700;
beforeAll(async () => {
  database = await createDatabase();
  db = openPool(database.url);
  sql = new pg.Client({ connectionString: database.url });
  await sql.connect();
  await sql.query(
    `insert into checkpoints (thread_id, checkpoint_ns, checkpoint_id, checkpoint, metadata)
     select 't' || i, '', '1', '{"v": 4, "channel_versions": {}}', '{}' from generate_series(1, ${stored}) as i`,
  );
  // As many as are told of a thread, each as large as one that is told may be.
  await sql.query(
    `insert into checkpoint_writes
       (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
     select 't' || i, '', '1', 'task ' || n, '', 0, '__error__', 'json',
       convert_to('"' || repeat('x', 65000) || '"', 'utf8')
     from generate_series(1, ${stored}) as i, generate_series(1, 20) as n`,
  );
  await sql.query("analyze checkpoints, checkpoint_writes");
});
afterAll(async () => {
  await db?.close(1_000);
  await sql?.end();
  await database?.drop();
});

it("reads of few threads at once why they do not go on, and still finds them all", async () => {
  const rowsOf: number[] = [];
  const runLong: Db["runLong"] = async (text, parameters, signal) => {
    const rows = await db.runLong(text, parameters, signal);
    rowsOf.push(rows.length - 1);
    return rows;
  };
  let found = 0;
  let reasons = 0;
  const request = create(ListThreadsRequestSchema, { withReasons: true });
  for await (const thread of listThreads({ ...db, runLong }, request)) {
    found++;
    reasons += thread.reasons.length;
  }
  expect(found).toBe(stored);
  expect(reasons).toBe(20 * stored);
  expect(Math.max(...rowsOf)).toBeLessThanOrEqual(100);
});
