import { create } from "@bufbuild/protobuf";
import pg from "pg";
import { afterAll, beforeAll, expect, it } from "vitest";
import { ListRequestSchema } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import type { Db } from "../store/db.js";
import { createDatabase, openPool, type TestDatabase } from "../testing/postgres.js";
import { createStreams } from "./stream_handlers.js";

let database: TestDatabase;
let db: Db;
const mebibyte = 1024 * 1024;
beforeAll(async () => {
  database = await createDatabase();
  db = openPool(database.url);
  const sql = new pg.Client({ connectionString: database.url });
  await sql.connect();
  await sql.query(
    `insert into checkpoint_blobs (thread_id, channel, version, type, blob)
     select 't', 'c', i::text, 'bytes', convert_to(repeat('x', $1::int), 'UTF8') from generate_series(1, 3) as i`,
    [mebibyte],
  );
  await sql.query(
    `insert into checkpoints (thread_id, checkpoint_id, checkpoint, metadata)
     select 't', i::text, jsonb_build_object('v', 4, 'channel_versions', jsonb_build_object('c', i)), '{}'
     from generate_series(1, 3) as i`,
  );
  await sql.end();
});
afterAll(async () => {
  await db?.close(1_000);
  await database?.drop();
});

it("holds so many bytes of tuples that wait for their readers, of all lists, and one always", async () => {
  const limit = 2.5 * mebibyte;
  const streams = createStreams(db, limit);
  const list = () =>
    streams
      .list(create(ListRequestSchema, { threadId: "t" }), new AbortController().signal)
      [Symbol.asyncIterator]();
  const [first, second, third] = [list(), list(), list()];
  await first.next();
  await second.next();
  await expect(third.next()).rejects.toMatchObject({ detail: { reason: "OVERLOADED", limit } });
  // What is read on, and what is given up, makes room.
  await first.next();
  await first.return?.();
  const fourth = list();
  await fourth.next();
  await second.return?.();
  await fourth.return?.();

  const small = createStreams(db, 1)
    .list(create(ListRequestSchema, { threadId: "t" }), new AbortController().signal)
    [Symbol.asyncIterator]();
  for (const id of ["3", "2", "1"]) {
    expect((await small.next()).value.tuple.key.checkpointId).toBe(id);
  }
});
