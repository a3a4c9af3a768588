import { randomBytes } from "node:crypto";
import { create } from "@bufbuild/protobuf";
import pg from "pg";
import { afterAll, beforeAll, expect, it } from "vitest";
import { PutRequestSchema } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { StoredPrefixSchema } from "../../gen/checkpointd/v1/session_service_pb.js";
import { block, untilBlocked } from "../testing/blocking.js";
import { createDatabase, openPool, type TestDatabase } from "../testing/postgres.js";
import type { Db } from "./db.js";
import { deleteThread } from "./delete_thread.js";
import { createPut } from "./put.js";
import { createPutExtending } from "./put_extending.js";

let database: TestDatabase;
let sql: pg.Client;
let db: Db;
let putExtending: ReturnType<typeof createPutExtending>;
beforeAll(async () => {
  database = await createDatabase();
  sql = new pg.Client({ connectionString: database.url });
  await sql.connect();
  db = openPool(database.url);
  putExtending = createPutExtending(db);
});
afterAll(async () => {
  await db?.close(1000);
  await sql?.end();
  await database?.drop();
});

interface Base {
  version: string;
  transactionId: string;
  length: number;
  offset?: number;
  headLength?: number;
}

/** A checkpoint of that id, whose channel "a" has that version, and "b" a short value. */
const request = (threadId: string, id: string, data: Uint8Array | undefined, base?: Base) => ({
  put: create(PutRequestSchema, {
    threadId,
    checkpointId: id,
    checkpointJson: '{"v": 4}',
    blobs: [
      { channel: "b", version: id, value: { type: "json", data: bytes(`b ${id}`) } },
      { channel: "a", version: id, ...(data && { value: { type: "json", data } }) },
    ],
  }),
  prefixes: base ? [create(StoredPrefixSchema, { blobIndex: 1, ...base })] : [],
});
const bytes = (text: string) => Buffer.from(text);

async function stored(threadId: string) {
  const { rows: blobs } = await sql.query(
    "select version, type, blob from checkpoint_blobs where thread_id = $1 and channel = 'a' order by version",
    [threadId],
  );
  const { rows } = await sql.query(
    "select checkpoint_id from checkpoints where thread_id = $1 order by 1",
    [threadId],
  );
  return {
    values: blobs.map(({ version, type, blob }) => [version, type, blob?.toString()]),
    checkpoints: rows.map(({ checkpoint_id }) => checkpoint_id),
  };
}
const notStored = { code: "failed_precondition", detail: { reason: "NOT_STORED" } };

it("stores whole values, of what is stored and what is added", async () => {
  const first = await putExtending(request("t", "1", bytes("[one]")));
  const kept = { version: "1", transactionId: first, length: 4 };
  const second = await putExtending(request("t", "2", bytes(",two]"), kept));
  // A base may be extended more than once, and as a whole, and with bytes that are no text.
  await putExtending(request("t", "3", bytes(""), { ...kept, length: 5 }));
  await putExtending(request("t", "4", Buffer.from([0]), kept));
  await putExtending(
    request("t", "5", bytes(",three]"), { version: "2", transactionId: second, length: 8 }),
  );
  expect(await stored("t")).toEqual({
    values: [
      ["1", "json", "[one]"],
      ["2", "json", "[one,two]"],
      ["3", "json", "[one]"],
      ["4", "json", "[one\0"],
      ["5", "json", "[one,two,three]"],
    ],
    checkpoints: ["1", "2", "3", "4", "5"],
  });
});

it("stores values of a part of what is stored, and of what stands before and after it", async () => {
  const first = await putExtending(request("part", "1", Buffer.from("\x02onetwo")));
  const base = { version: "1", transactionId: first };
  const kept = { ...base, offset: 1, length: 6 };
  await putExtending(request("part", "2", Buffer.from("\x03three"), { ...kept, headLength: 1 }));
  await putExtending(request("part", "3", bytes("(é)"), { ...kept, length: 3, headLength: 3 }));
  await putExtending(request("part", "4", bytes("!"), { ...kept, offset: 4, length: 3 }));
  await putExtending(request("part", "5", bytes(">"), { ...base, length: 7, headLength: 1 }));
  await putExtending(request("part", "6", bytes(""), { ...base, offset: 6, length: 1 }));
  for (const past of [
    { offset: 7, length: 1 },
    { offset: 2, length: 6 },
    { offset: 1024 ** 3, length: 1 },
    { offset: 1024 ** 3, length: 255 * 1024 ** 2 },
  ]) {
    await expect(
      putExtending(request("part", "8", bytes("]"), { ...base, ...past })),
    ).rejects.toMatchObject(notStored);
  }
  expect((await stored("part")).values).toEqual([
    ["1", "json", "\x02onetwo"],
    ["2", "json", "\x03onetwothree"],
    ["3", "json", "(éone)"],
    ["4", "json", "two!"],
    ["5", "json", ">\x02onetwo"],
    ["6", "json", "o"],
  ]);
});

it("stores parts of values that Postgres keeps compressed, elsewhere, or both", async () => {
  for (const [name, value] of Object.entries({
    compressed: Buffer.alloc(300_000, "abc é "),
    elsewhere: randomBytes(300_000),
  })) {
    const transactionId = await putExtending(request(name, "1", value));
    const kept = { version: "1", transactionId, offset: 100_001, length: 150_000 };
    await putExtending(request(name, "2", bytes("<>"), { ...kept, headLength: 1 }));
    const { rows } = await sql.query(
      "select blob from checkpoint_blobs where thread_id = $1 and channel = 'a' and version = '2'",
      [name],
    );
    const part = value.subarray(100_001, 250_001);
    expect(Buffer.concat([bytes("<"), part, bytes(">")]).equals(rows[0].blob)).toBe(true);
  }
});

it("stores an emptied channel and a put without values", async () => {
  await putExtending(request("empty", "1", undefined));
  const transactionId = await putExtending({
    put: create(PutRequestSchema, {
      threadId: "empty",
      checkpointId: "2",
      checkpointJson: "{}",
    }),
    prefixes: [],
  });
  expect(transactionId).toMatch(/^\d+$/);
  expect(await stored("empty")).toEqual({
    values: [["1", "empty", undefined]],
    checkpoints: ["1", "2"],
  });
});

it("stores nothing where what it extends is not stored as it was", async () => {
  const transactionId = await putExtending(request("guard", "1", bytes("[one]")));
  const kept = { version: "1", transactionId, length: 4 };
  const extend = (base: Partial<Base>, thread = "guard") =>
    putExtending(request(thread, "2", bytes(",two]"), { ...kept, ...base }));
  await expect(extend({ version: "0" })).rejects.toMatchObject(notStored);
  await expect(extend({ transactionId: "1" })).rejects.toMatchObject(notStored);
  await expect(extend({ length: 6 })).rejects.toMatchObject(notStored);
  await expect(extend({}, "another thread")).rejects.toMatchObject(notStored);
  expect(await stored("guard")).toEqual({ values: [["1", "json", "[one]"]], checkpoints: ["1"] });
  expect(await stored("another thread")).toEqual({ values: [], checkpoints: [] });

  // The same thread begun anew by somebody whose versions are the same.
  await deleteThread(db, "guard");
  await expect(extend({})).rejects.toMatchObject(notStored);
  await createPut(db)(request("guard", "1", bytes("[another]")).put);
  await expect(extend({})).rejects.toMatchObject(notStored);
  expect((await stored("guard")).checkpoints).toEqual(["1"]);
});

it("does not let a version be extended that was stored before, by the later transaction", async () => {
  const first = await putExtending(request("before", "1", bytes("[one]")));
  const again = await putExtending(request("before", "1", bytes("[other]")));
  const extend = (transactionId: string, id: string) =>
    putExtending(request("before", id, bytes("]"), { version: "1", transactionId, length: 4 }));
  await expect(extend(again, "2")).rejects.toMatchObject(notStored);
  await extend(first, "3");
  // A row lock, as each put takes it, changes nothing.
  await extend(first, "4");
  expect((await stored("before")).values).toEqual([
    ["1", "json", "[one]"],
    ["3", "json", "[one]"],
    ["4", "json", "[one]"],
  ]);
});

it("knows a value by its transaction through VACUUM FREEZE, and refuses what was copied", async () => {
  const transactionId = await putExtending(request("vacuum", "1", bytes("[one]")));
  const base = { version: "1", transactionId, length: 4 };
  await sql.query("vacuum freeze checkpoint_blobs");
  await putExtending(request("vacuum", "2", bytes("]"), base));
  await sql.query("create table copy as select * from checkpoint_blobs");
  await sql.query("delete from checkpoint_blobs");
  await sql.query("insert into checkpoint_blobs select * from copy");
  await expect(putExtending(request("vacuum", "3", bytes("]"), base))).rejects.toMatchObject(
    notStored,
  );
});

it("refuses one of those that travel together, and stores the others", async () => {
  const threads = Array.from({ length: 20 }, (_, i) => `many-${i}`);
  const transactionIds = await Promise.all(
    threads.map((thread) => putExtending(request(thread, "1", bytes(`["${thread}"]`)))),
  );
  const blocker = await block(database.url, "lock table checkpoints in exclusive mode");
  const results = threads.map((thread, i) => {
    const kept = { version: "1", length: thread.length + 3 };
    const transactionId = i % 3 === 1 ? "7" : (transactionIds[i] as string);
    return putExtending(request(thread, "2", bytes(",é]"), { ...kept, transactionId })).then(
      () => "stored",
      (error) => error.detail.reason,
    );
  });
  await untilBlocked(sql, 1);
  await blocker.release();
  expect(await Promise.all(results)).toEqual(
    threads.map((_, i) => (i % 3 === 1 ? "NOT_STORED" : "stored")),
  );
  for (const [i, thread] of threads.entries()) {
    expect((await stored(thread)).values.slice(1)).toEqual(
      i % 3 === 1 ? [] : [["2", "json", `["${thread}",é]`]],
    );
  }
});

it("gives two puts of one tick a transaction each, so that only the one that stored can be extended", async () => {
  const transactionIds = await Promise.all(
    ["x", "y"].map((text, i) => {
      const { put, prefixes } = request("tick", `${i}`, bytes(`[${text}]`));
      for (const blob of put.blobs) blob.version = "1";
      return putExtending({ put, prefixes });
    }),
  );
  const [[, , value]] = (await stored("tick")).values as [string[]];
  const winner = value === "[x]" ? 0 : 1;
  const extend = (transactionId: string | undefined, id: string) =>
    putExtending(
      request("tick", id, bytes("]"), {
        version: "1",
        transactionId: String(transactionId),
        length: 2,
      }),
    );
  await extend(transactionIds[winner], "2");
  await expect(extend(transactionIds[1 - winner], "3")).rejects.toMatchObject(notStored);
});

it("names JSON that cannot be stored", async () => {
  const { put, prefixes } = request("json", "1", bytes("[one]"));
  put.checkpointJson = "{nonsense";
  const other = putExtending(request("json-other", "1", bytes("[one]")));
  await expect(putExtending({ put, prefixes })).rejects.toMatchObject({
    code: "invalid_argument",
    detail: { reason: "INVALID_JSON", field: "checkpoint_json" },
  });
  await other;
  expect(await stored("json")).toEqual({ values: [], checkpoints: [] });
});
