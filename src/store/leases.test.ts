import { create } from "@bufbuild/protobuf";
import pg from "pg";
import { afterAll, beforeAll, beforeEach, expect, it } from "vitest";
import { ThreadFilterSchema, ThreadStatus } from "../../gen/checkpointd/v1/thread_service_pb.js";
import { createDatabase, openPool, type TestDatabase } from "../testing/postgres.js";
import type { Db } from "./db.js";
import { claimThreads } from "./leases.js";
import { pruneThreads } from "./prune.js";

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
beforeEach(async () => {
  await sql.query("truncate checkpoints, checkpointd_claims");
  await sql.query(
    `insert into checkpoints (thread_id, checkpoint_id, checkpoint)
     select name, 'c', '{}' from unnest('{free,held,ended}'::text[]) as name`,
  );
  await sql.query(
    `insert into checkpointd_claims (thread_id, owner, token, expires_at) values
       ('held', 'you', 'yours', now() + interval '1 hour'),
       ('ended', 'you', 'yours', now() - interval '1 s')`,
  );
});

/** Claims any thread, or the one named, that is completed, as all are, or of another status. */
async function claim(threadId = "", status = ThreadStatus.COMPLETED): Promise<unknown[]> {
  const claimed = await claimThreads(db, {
    owner: "me",
    leaseMs: 60_000,
    graceMs: -60_000,
    limit: 10,
    filter: create(ThreadFilterSchema, { statuses: [status] }),
    threadId,
  });
  return claimed.map(({ thread }) => thread?.threadId).sort();
}

const owners = async () =>
  (await sql.query("select thread_id, owner from checkpointd_claims order by 1")).rows.map(
    ({ thread_id, owner }) => `${thread_id}: ${owner}`,
  );

it("takes threads that are free and whose lease has ended, not what is held", async () => {
  expect(await claim()).toEqual(["ended", "free"]);
  expect(await owners()).toEqual(["ended: me", "free: me", "held: you"]);
});

it("takes a thread by name if it is free or its lease has ended", async () => {
  expect(await claim("ended")).toEqual(["ended"]);
  expect(await claim("free")).toEqual(["free"]);
  expect(await claim("held")).toEqual([]);
});

it("keeps no lease on a thread that turns out to stand otherwise", async () => {
  expect(await claim("free", ThreadStatus.PENDING)).toEqual([]);
  expect(await owners()).toEqual(["ended: you", "held: you"]);
});

it("takes a hundred threads in one call at the most, whatever is asked for", async () => {
  await sql.query(
    `insert into checkpoints (thread_id, checkpoint_id, checkpoint)
     select 't' || i, 'c', '{}' from generate_series(1, 150) as i`,
  );
  const wanted = { owner: "me", leaseMs: 60_000, graceMs: -60_000, limit: 1_000, threadId: "" };
  const filter = create(ThreadFilterSchema, { statuses: [ThreadStatus.COMPLETED] });
  expect(await claimThreads(db, { ...wanted, filter })).toHaveLength(100);
  expect(await claimThreads(db, { ...wanted, filter })).toHaveLength(52);
});

it("prunes no thread that is held, named or not", async () => {
  const left = async () =>
    (await sql.query("select thread_id from checkpoints order by 1")).rows.map(
      ({ thread_id }) => thread_id,
    );
  const prune = { threadIds: ["held", "ended"], keepLast: 0, dryRun: false };
  for await (const _ of pruneThreads(db, prune));
  expect(await left()).toEqual(["free", "held"]);
  for await (const _ of pruneThreads(db, { ...prune, threadIds: [] }));
  expect(await left()).toEqual(["held"]);
});
