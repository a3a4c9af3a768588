/** What a small request is worth: how much one statement looks at, and one call writes. */
import { create } from "@bufbuild/protobuf";
import pg from "pg";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  GetTupleRequestSchema,
  ListRequestSchema,
  ListView,
} from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import {
  GetChannelHistoryRequestSchema,
  ListThreadsRequestSchema,
} from "../../gen/checkpointd/v1/thread_service_pb.js";
import { createDatabase, openPool, type TestDatabase } from "../testing/postgres.js";
import { channelHistory } from "./channel_history.js";
import { copyThread } from "./copy_thread.js";
import type { Db } from "./db.js";
import { list, listPage, pageStatement } from "./list_checkpoints.js";
import { createGetTuple } from "./read.js";
import { listThreads } from "./read_threads.js";
import { mostResultBytes, Results } from "./results.js";

let database: TestDatabase;
let sql: pg.Client;
let db: Db;
const stored = 6_000;
beforeAll(async () => {
  database = await createDatabase();
  db = openPool(database.url);
  sql = new pg.Client({ connectionString: database.url });
  await sql.connect();
  await sql.query(
    `insert into checkpoints
       (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
     select 't' || i % 2, case when i % 1000 = 1 then 'rare' else '' end, lpad(i::text, 6, '0'),
       lpad((i - 2)::text, 6, '0'), '{"v": 4, "channel_versions": {"messages": 1}}',
       jsonb_build_object('n', i, 'half', i % 2, 'some', i % 7)
     from generate_series(1, $1::int) as i`,
    [stored],
  );
  await sql.query("analyze checkpoints");
});
afterAll(async () => {
  await db?.close(1_000);
  await sql?.end();
  await database?.drop();
});

/** A pool that counts its long statements. */
function counting() {
  const counted = { statements: 0 };
  const runLong: Db["runLong"] = (text, parameters, signal) => {
    counted.statements++;
    return db.runLong(text, parameters, signal);
  };
  return { counted, db: { ...db, runLong } };
}

async function numbers(db: Db, init: object): Promise<number[]> {
  const found: number[] = [];
  for await (const { metadataJson } of list(db, create(ListRequestSchema, init))) {
    found.push(JSON.parse(metadataJson).n);
  }
  return found;
}

const expected = (isWanted: (i: number) => boolean) =>
  Array.from({ length: stored }, (_, i) => stored - i).filter(isWanted);

describe.each([ListView.FULL, ListView.METADATA])("a filtered list, view %d", (view) => {
  it.each<[string, object, (i: number) => boolean]>([
    ["nothing", { metadataFilterJson: '{"no": "such"}' }, () => false],
    ["the oldest", { metadataFilterJson: '{"n": 1}' }, (i) => i === 1],
    ["the newest", { metadataFilterJson: `{"n": ${stored}}` }, (i) => i === stored],
    ["some", { metadataFilterJson: '{"some": 3}' }, (i) => i % 7 === 3],
    ["nearly all", { checkpointNs: "" }, (i) => i % 1_000 !== 1],
    ["few by namespace", { checkpointNs: "rare" }, (i) => i % 1_000 === 1],
    [
      "some of a thread",
      { threadId: "t1", metadataFilterJson: '{"some": 3}' },
      (i) => i % 2 === 1 && i % 7 === 3,
    ],
    ["all", { metadataFilterJson: "{}", omitUnchanged: true }, () => true],
  ])("finds %s, whatever it has to pass over", async (_, init, isWanted) => {
    expect(await numbers(db, { ...init, view })).toEqual(expected(isWanted));
    const some = await numbers(db, { ...init, view, limit: 20 });
    expect(some).toEqual(expected(isWanted).slice(0, 20));
  });

  it("looks at a bounded number of checkpoints in a statement", async () => {
    const { counted, db } = counting();
    expect(await numbers(db, { metadataFilterJson: '{"no": "such"}', view })).toEqual([]);
    expect(counted.statements).toBeGreaterThanOrEqual(Math.ceil(stored / 2_048));
  });
});

it("has a tuple on a page that is asked for by itself, unless nothing follows", async () => {
  const request = create(ListRequestSchema, { metadataFilterJson: '{"n": 1}' });
  const page = await listPage(db, request, 0, undefined);
  expect(page.tuples.map(({ key }) => key?.checkpointId)).toEqual(["000001"]);
  const nothing = create(ListRequestSchema, { metadataFilterJson: '{"n": -1}' });
  expect(await listPage(db, nothing, 0, undefined)).toEqual({ tuples: [], nextMaxTuples: 0 });
});

describe("threads by time", () => {
  const olds = ["old1", "old2", "old3"];
  beforeAll(async () => {
    const id = (time: string) => `lpad(to_hex(${time}), 8, '0') || '-0000-6000-8000-000000000000'`;
    await sql.query(
      `insert into checkpoints (thread_id, checkpoint_id, checkpoint, metadata)
       select 'old' || i, ${id("i")}, '{}'::jsonb, '{"of":"old"}'::jsonb from generate_series(1, 3) as i
       union all
       select 'busy', ${id("100 + i")}, '{}', '{"of":"busy"}' from generate_series(1, 12000) as i`,
    );
    // Of one moment, as those of one transaction without times in their ids are.
    await sql.query(
      `insert into checkpoints (thread_id, checkpoint_id, checkpoint, metadata, created_at)
       select 'moment', lpad(i::text, 6, '0'), '{}', '{"of":"moment"}', '1600-01-01'
       from generate_series(1, 5000) as i`,
    );
    await sql.query("analyze checkpoints");
  });
  afterAll(async () => {
    await sql.query("delete from checkpoints where thread_id = any($1)", [
      [...olds, "busy", "moment"],
    ]);
  });

  it("are found behind a thread of many checkpoints, and of many of one time", async () => {
    const { counted, db } = counting();
    const ids = [];
    const request = create(ListThreadsRequestSchema, {
      filter: { updatedBefore: { seconds: 0n } },
    });
    for await (const { threadId } of listThreads(db, request)) ids.push(threadId);
    expect(ids).toEqual(["moment", "busy", ...[...olds].reverse()]);
    // So none of them walked past all of the 17,000.
    expect(counted.statements).toBeGreaterThan(4);
    for (const [i, threadId] of ids.entries()) {
      const limited = create(ListThreadsRequestSchema, { ...request, limit: i + 1 });
      const found = [];
      for await (const thread of listThreads(db, limited)) found.push(thread.threadId);
      expect(found.at(-1)).toBe(threadId);
    }
  });

  it("are counted few at a time", async () => {
    const insert = `insert into checkpoints (thread_id, checkpoint_id, checkpoint, metadata)
      select 'many' || i, '1', '{}', '{}' from generate_series(1, 400) as i`;
    await sql.query(insert);
    const { counted, db } = counting();
    const filter = { threadIdPrefix: "many" };
    const request = create(ListThreadsRequestSchema, { filter, order: 2, withCounts: true });
    let checkpoints = 0n;
    for await (const { counts } of listThreads(db, request))
      checkpoints += counts?.checkpoints ?? 0n;
    expect([checkpoints, counted.statements >= 8]).toEqual([400n, true]);
    await sql.query("delete from checkpoints where thread_id like 'many%'");
  });
});

it("sorts the keys of one thread, and reads nobody else's rows, where no namespace is given", async () => {
  await sql.query(
    `insert into checkpoints (thread_id, checkpoint_ns, checkpoint_id, checkpoint, metadata)
     select 'small', 'ns' || i % 7, i::text, '{}', '{}' from generate_series(1, 200) as i`,
  );
  const request = create(ListRequestSchema, { threadId: "small" });
  const page = { after: undefined, last: undefined, rows: 64, examine: 128, maxBytes: 65_536 };
  const { statement, parameters } = pageStatement(db.schema, request, page);
  await sql.query("vacuum analyze checkpoints");
  const { rows } = await sql.query(`explain ${statement("all")}`, [...parameters]);
  const plan = rows.map((row) => row["QUERY PLAN"]).join("\n");
  expect(plan).toMatch(/Index Only Scan using \w+ on checkpoints/);
  expect(plan).not.toMatch(/Seq Scan on checkpoints/);
  await sql.query("delete from checkpoints where thread_id = 'small'");
});

it("walks fewer ancestors in a statement for more channels", async () => {
  const channels = ["messages", ...Array.from({ length: 999 }, (_, i) => `unknown${i}`)];
  await sql.query(
    `insert into checkpoint_blobs (thread_id, channel, version, type, blob)
     values ('t1', 'messages', '1', 'json', '1')`,
  );
  const { counted, db } = counting();
  const request = create(GetChannelHistoryRequestSchema, { threadId: "t1", channels });
  const found = [];
  for await (const { seeds } of channelHistory(db, request)) found.push(...seeds);
  expect(found.map(({ channel }) => channel)).toEqual(["messages"]);
  // 3,000 ancestors, fewer where the other namespace cuts the chain.
  expect(counted.statements).toBeGreaterThan(3);
});

it("copies no thread of more than 256 MiB", { timeout: 60_000 }, async () => {
  const half = 130 * 1024 * 1024;
  const insert = `insert into checkpoint_blobs (thread_id, channel, version, type, blob)
    values ('big', 'c', $1, 'bytes', convert_to(repeat('x', $2::int), 'UTF8'))`;
  await sql.query(insert, ["1", half]);
  expect(await copyThread(db, "big", "small enough")).toMatchObject({ blobs: 1n });
  await sql.query(insert, ["2", half]);
  await expect(copyThread(db, "big", "too large")).rejects.toMatchObject({
    code: "resource_exhausted",
    detail: { reason: "TOO_LONG", field: "source_thread_id", limit: 256 * 1024 * 1024 },
  });
  const { rows } = await sql.query(
    "select count(*)::int as n from checkpoint_blobs where thread_id = 'too large'",
  );
  expect(rows[0].n).toBe(0);
});

describe("a checkpoint of more than one answer may have", { timeout: 120_000 }, () => {
  const names = Array.from({ length: 5 }, (_, i) => `c${i}`);
  const versions = (channels: string[]) =>
    JSON.stringify({
      v: 4,
      channel_versions: Object.fromEntries(channels.map((channel) => [channel, "1"])),
    });
  beforeAll(async () => {
    // Each as large as a put may bring it, 300 MiB together.
    await sql.query(
      `insert into checkpoint_blobs (thread_id, channel, version, type, blob)
       select 'huge', name, '1', 'bytes', convert_to(repeat('x', 60 * 1024 * 1024), 'UTF8')
       from unnest($1::text[]) as name`,
      [names],
    );
    const insert = `insert into checkpoints (thread_id, checkpoint_id, checkpoint, metadata)
       values ('huge', $1, $2, '{}')`;
    await sql.query(insert, ["1", versions([])]);
    await sql.query(insert, ["2", versions(names)]);
    await sql.query(insert, ["3", versions(names.slice(1))]);
  });
  afterAll(() => sql.query("delete from checkpoints where thread_id = 'huge'"));

  it("is refused by name, and no call that travels with it fails", async () => {
    const getTuple = createGetTuple(db);
    const get = (checkpointId: string) =>
      getTuple(create(GetTupleRequestSchema, { threadId: "huge", checkpointId })).then(
        (tuple) => tuple?.blobs.length,
        ({ detail }) => detail,
      );
    const asked = await Promise.all(["1", "2", "1", "3", "2"].map(get));
    const refused = { reason: "UNDELIVERABLE", limit: mostResultBytes };
    expect(asked).toEqual([0, refused, 0, 4, refused]);
  });

  it("is left out of lists that have values", async () => {
    const leftOut: string[] = [];
    const telling: Db = { ...db, leaveOut: ({ checkpointId }) => leftOut.push(checkpointId) };
    const ids = async (init: object) => {
      const found = [];
      const request = create(ListRequestSchema, { threadId: "huge", ...init });
      for await (const { key, blobs } of list(telling, request)) {
        found.push([key?.checkpointId, blobs.length]);
      }
      return found;
    };
    expect(await ids({ checkpointNs: "" })).toEqual([
      ["3", 4],
      ["1", 0],
    ]);
    // Four of its values were sent before, and need not be sent again.
    expect(await ids({ omitUnchanged: true })).toEqual([
      ["3", 4],
      ["2", 1],
      ["1", 0],
    ]);
    expect(await ids({ view: ListView.METADATA })).toEqual([
      ["3", 0],
      ["2", 0],
      ["1", 0],
    ]);
    expect(new Set(leftOut)).toEqual(new Set(["2"]));
  });
});

it("gives up the largest of the results that arrive when there is no room for all", () => {
  const results = new Results({ one: 60, inAll: 100 });
  const ended: string[] = [];
  const arriving = (name: string) => ({
    received: 0,
    giveUp: (error: Error & { detail?: { reason: string } }) => {
      ended.push(`${name} ${error.detail?.reason}`);
    },
  });
  const [small, large, other] = [arriving("small"), arriving("large"), arriving("other")];
  results.count(small, 10);
  results.count(large, 50);
  results.count(other, 30);
  expect(ended).toEqual([]);
  results.count(small, 20);
  expect(ended).toEqual(["large OVERLOADED"]);
  results.end(large);
  results.count(small, 40);
  expect(ended).toEqual(["large OVERLOADED", "small UNDELIVERABLE"]);
  results.end(other);
  results.count(arriving("last"), 60);
  expect(ended).toHaveLength(2);
});
