/**
 * Every way of storing stores every column: whole rows, against the columns that the tables have.
 * A column that a migration adds fails here until it is stored, or said not to be.
 */
import { create } from "@bufbuild/protobuf";
import pg from "pg";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  type PutRequest,
  PutRequestSchema,
  type PutWritesRequest,
  PutWritesRequestSchema,
} from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { StoredPrefixSchema } from "../../gen/checkpointd/v1/session_service_pb.js";
import { createDatabase, openPool, type TestDatabase } from "../testing/postgres.js";
import { copyThread } from "./copy_thread.js";
import type { Db } from "./db.js";
import { releaseLease, renewLease } from "./leases.js";
import { createPut } from "./put.js";
import { createPutExtending } from "./put_extending.js";
import { createPutWrites } from "./put_writes.js";

let database: TestDatabase;
let sql: pg.Client;
let db: Db;
/** The statements that were run. */
let texts: string[] = [];
beforeAll(async () => {
  database = await createDatabase();
  sql = new pg.Client({ connectionString: database.url });
  await sql.connect();
  const pool = openPool(database.url);
  db = {
    ...pool,
    withConnection: (use, fail) =>
      pool.withConnection(
        (run) =>
          use((text, ...rest) => {
            texts.push(text);
            return run(text, ...rest);
          }),
        fail,
      ),
  };
});
afterAll(async () => {
  await db?.close(1000);
  await sql?.end();
  await database?.drop();
});

type Table = "checkpoints" | "checkpoint_blobs" | "checkpoint_writes";
type Rows = Record<string, unknown>[];

/** What no put stores: `type` is of old savers, and the time is Postgres' own. */
const notPut: Record<Table, string[]> = {
  checkpoints: ["created_at", "type"],
  checkpoint_blobs: [],
  checkpoint_writes: [],
};

/** What is stored of a thread, whole rows, without what no put stores. */
async function stored(table: Table, threadId: string, without = notPut[table]): Promise<Rows> {
  const { rows } = await sql.query(
    `select * from ${table} where thread_id = $1 order by ${table}::text collate "C"`,
    [threadId],
  );
  for (const row of rows) for (const name of without) delete row[name];
  return rows;
}

/** Fails unless the rows have, of each column of the table, something that is not its default. */
async function expectAllColumns(table: Table, rows: Rows): Promise<void> {
  const { rows: columns } = await sql.query<{ name: string; initial: string | null }>(
    `select column_name as name, column_default as initial from information_schema.columns
     where table_schema = 'public' and table_name = $1`,
    [table],
  );
  expect(rows).not.toEqual([]);
  for (const { name, initial } of columns) {
    if (notPut[table].includes(name)) continue;
    const { rows: defaults } = await sql.query(`select ${initial ?? "null"} as value`);
    const values = rows.map((row) => row[name]);
    expect(values, `${table}.${name}`).not.toContain(undefined);
    expect(values, `${table}.${name}`).not.toContainEqual(defaults[0].value);
  }
}

const bytes = (text: string) => Buffer.from(text);
/** Values of few and of many parts, as text and as other bytes. */
const forms = { text: ["a", "b"], bytes: ["a", "\0b"], many: "abcdefghijk".split("") };

type Form = keyof typeof forms;
/** A put that gives each column a value of its own; `n` makes the values another. */
const putOf = (threadId: string, form: Form, n: number, leaseToken = ""): PutRequest =>
  create(PutRequestSchema, {
    threadId,
    checkpointNs: "ns",
    checkpointId: "c",
    parentCheckpointId: `p${n}`,
    checkpointJson: `{"v": 4, "n": ${n}}`,
    metadataJson: `{"step": ${n}}`,
    leaseToken,
    blobs: forms[form].map((text) => ({
      channel: text.slice(-1),
      version: "1",
      value: { type: `type${n}`, data: bytes(`${text}${n}`) },
    })),
  });

function putRows(threadId: string, form: Form, checkpoint: number, blob: number) {
  const key = { thread_id: threadId, checkpoint_ns: "ns" };
  return {
    checkpoints: [
      {
        ...key,
        checkpoint_id: "c",
        parent_checkpoint_id: "p1",
        checkpoint: { v: 4, n: checkpoint },
        metadata: { step: checkpoint },
      },
    ],
    checkpoint_blobs: forms[form].map((text) => ({
      ...key,
      channel: text.slice(-1),
      version: "1",
      type: `type${blob}`,
      blob: bytes(`${text}${blob}`),
    })),
  };
}

const writesOf = (
  threadId: string,
  form: Form,
  n: number,
  leaseToken: string,
  special: boolean,
): PutWritesRequest =>
  create(PutWritesRequestSchema, {
    threadId,
    checkpointNs: "ns",
    checkpointId: "c",
    taskId: "task",
    taskPath: `path${n}`,
    leaseToken,
    writes: forms[form].map((text, i) => ({
      idx: special ? -1 - i : 1 + i,
      channel: `channel${n}`,
      value: { type: `type${n}`, data: bytes(`${text}${n}`) },
    })),
  });

const writeRows = (threadId: string, form: Form, n: number, special: boolean) =>
  forms[form].map((text, i) => ({
    thread_id: threadId,
    checkpoint_ns: "ns",
    checkpoint_id: "c",
    task_id: "task",
    task_path: "path1",
    idx: special ? -1 - i : 1 + i,
    channel: `channel${n}`,
    type: `type${n}`,
    blob: bytes(`${text}${n}`),
  }));

async function lease(threadId: string): Promise<string> {
  await sql.query(
    "insert into checkpointd_claims values ($1, 'me', 'token', now() + interval '1 hour')",
    [threadId],
  );
  return "token";
}

let threads = 0;
/** As many new threads, with leases on them if so. */
async function begin(count: number, underLease: boolean) {
  const begun: { threadId: string; token: string }[] = [];
  for (let i = 0; i < count; i++) {
    const threadId = `thread-${++threads}`;
    begun.push({ threadId, token: underLease ? await lease(threadId) : "" });
  }
  return begun;
}

/** Runs the calls of one tick, which travel in one statement. */
async function inOneStatement(calls: () => Promise<unknown>[]): Promise<void> {
  texts = [];
  await Promise.all(calls());
  expect(texts).toHaveLength(1);
}

const sorted = (rows: Rows) => [...rows].sort((a, b) => (keyOf(a) < keyOf(b) ? -1 : 1));
const keyOf = (row: Record<string, unknown>) => `${row.channel} ${row.idx}`;

const kinds: [number, Form, boolean][] = [1, 3].flatMap((count) =>
  (Object.keys(forms) as Form[]).flatMap((form) =>
    [false, true].map((underLease): [number, Form, boolean] => [count, form, underLease]),
  ),
);

describe("put", () => {
  it.each(kinds)("of %d at once, %s, under a lease: %s", async (count, form, underLease) => {
    const put = createPut(db);
    const names = await begin(count, underLease);
    for (const n of [1, 2]) {
      await inOneStatement(() =>
        names.map(({ threadId, token }) => put(putOf(threadId, form, n, token))),
      );
      for (const { threadId } of names) {
        const expected = putRows(threadId, form, n, 1);
        for (const table of ["checkpoints", "checkpoint_blobs"] as const) {
          const rows = await stored(table, threadId);
          expect(sorted(rows)).toEqual(sorted(expected[table]));
          await expectAllColumns(table, rows);
        }
      }
    }
  });
});

describe("putExtending", () => {
  it.each(kinds.filter(([, , underLease]) => !underLease))(
    "of %d at once, %s",
    async (count, form) => {
      const putExtending = createPutExtending(db);
      const names = await begin(count, false);
      for (const n of [1, 2]) {
        await inOneStatement(() =>
          names.map(({ threadId }) =>
            putExtending({ put: putOf(threadId, form, n), prefixes: [] }),
          ),
        );
        for (const { threadId } of names) {
          const expected = putRows(threadId, form, n, 1);
          for (const table of ["checkpoints", "checkpoint_blobs"] as const) {
            const rows = await stored(table, threadId);
            expect(sorted(rows)).toEqual(sorted(expected[table]));
            await expectAllColumns(table, rows);
          }
        }
      }
    },
  );

  it.each([1, 3])("of %d at once with a stored prefix", async (count) => {
    const putExtending = createPutExtending(db);
    const names = await begin(count, false);
    const transactionIds = await Promise.all(
      names.map(({ threadId }) => {
        const put = putOf(threadId, "text", 1);
        for (const blob of put.blobs) blob.version = "0";
        return putExtending({ put, prefixes: [] });
      }),
    );
    await sql.query("delete from checkpoints where thread_id like 'thread-%'");
    for (const n of [1, 2]) {
      await inOneStatement(() =>
        names.map(({ threadId }, i) => {
          const put = putOf(threadId, "text", n);
          put.blobs[0]!.value!.data = bytes(`${n}`);
          const prefix = { version: "0", transactionId: transactionIds[i] as string, length: 1 };
          return putExtending({ put, prefixes: [create(StoredPrefixSchema, prefix)] });
        }),
      );
      for (const { threadId } of names) {
        const expected = putRows(threadId, "text", n, 1);
        expect(await stored("checkpoints", threadId)).toEqual(expected.checkpoints);
        const blobs = await stored("checkpoint_blobs", threadId);
        expect(sorted(blobs.filter(({ version }) => version === "1"))).toEqual(
          sorted(expected.checkpoint_blobs),
        );
      }
    }
  });
});

describe.each([
  ["keeping", false],
  ["replacing", true],
] as const)("putWrites, %s", (_, special) => {
  it.each(kinds)("of %d at once, %s, under a lease: %s", async (count, form, underLease) => {
    const putWrites = createPutWrites(db);
    const names = await begin(count, underLease);
    for (const n of [1, 2]) {
      await inOneStatement(() =>
        names.map(({ threadId, token }) => putWrites(writesOf(threadId, form, n, token, special))),
      );
      for (const { threadId } of names) {
        const rows = await stored("checkpoint_writes", threadId);
        expect(sorted(rows)).toEqual(sorted(writeRows(threadId, form, special ? n : 1, special)));
        await expectAllColumns("checkpoint_writes", rows);
      }
    }
  });
});

it("copies every column of a thread, those that no put stores as well", async () => {
  const [{ threadId } = { threadId: "" }] = await begin(1, false);
  await createPut(db)(putOf(threadId, "bytes", 1));
  await createPutWrites(db)(writesOf(threadId, "bytes", 1, "", false));
  await sql.query(
    "update checkpoints set type = 'json', created_at = '2001-02-03' where thread_id = $1",
    [threadId],
  );
  await copyThread(db, threadId, "copy");
  for (const table of Object.keys(notPut) as Table[]) {
    const rows = await stored(table, threadId, []);
    await expectAllColumns(table, rows);
    expect(await stored(table, "copy", [])).toEqual(
      rows.map((row) => ({ ...row, thread_id: "copy" })),
    );
  }
});

describe.each([1, 3])("under leases that are not held, %d at once", (count) => {
  it.each([
    ["of somebody else", "another token", "1 hour"],
    ["that has ended", "token", "-1 s"],
  ])("stores nothing: %s", async (_, token, until) => {
    const put = createPut(db);
    const putWrites = createPutWrites(db);
    const names = (await begin(count, true)).map(({ threadId }) => threadId);
    await sql.query(
      `update checkpointd_claims set expires_at = now() + $1::interval where thread_id = any($2)`,
      [until, names],
    );
    const refused = await Promise.allSettled(
      names.flatMap((threadId) => [
        put(putOf(threadId, "text", 1, token)),
        putWrites(writesOf(threadId, "text", 1, token, false)),
        putWrites(writesOf(threadId, "text", 1, token, true)),
      ]),
    );
    expect(refused).toEqual(
      refused.map(() => ({
        status: "rejected",
        reason: expect.objectContaining({
          detail: expect.objectContaining({ reason: "LEASE_LOST" }),
        }),
      })),
    );
    for (const threadId of names) {
      for (const table of Object.keys(notPut) as Table[]) {
        expect(await stored(table, threadId)).toEqual([]);
      }
    }
  });
});

it("stores of one statement only what is under a lease that is held", async () => {
  const put = createPut(db);
  const putWrites = createPutWrites(db);
  const [mine, other] = (await begin(2, true)).map(({ threadId }) => threadId) as [string, string];
  const calls = [
    [mine, "token", "c1"],
    [mine, "another token", "c2"],
    [other, "another token", "c3"],
  ] as const;
  const outcomes = (requests: Promise<unknown>[]) =>
    Promise.allSettled(requests).then((all) => all.map(({ status }) => status));
  const wanted = ["fulfilled", "rejected", "rejected"];
  const puts = calls.map(([threadId, token, checkpointId]) => {
    const request = putOf(threadId, "text", 1, token);
    for (const blob of request.blobs) blob.version = checkpointId;
    return put({ ...request, checkpointId });
  });
  expect(await outcomes(puts)).toEqual(wanted);
  const writes = calls.map(([threadId, token, checkpointId]) =>
    putWrites({ ...writesOf(threadId, "text", 1, token, false), checkpointId }),
  );
  expect(await outcomes(writes)).toEqual(wanted);
  for (const [table, column] of [
    ["checkpoints", "checkpoint_id"],
    ["checkpoint_blobs", "version"],
    ["checkpoint_writes", "checkpoint_id"],
  ] as const) {
    const rows = [...(await stored(table, mine)), ...(await stored(table, other))];
    expect([...new Set(rows.map((row) => row[column]))]).toEqual(["c1"]);
  }
});

it("renews and releases a lease only with its thread and its token", async () => {
  const [mine, other] = (await begin(2, false)).map(({ threadId }) => threadId) as [string, string];
  const token = await lease(mine);
  for (const [threadId, wrong] of [
    [other, token],
    [mine, "another token"],
  ] as const) {
    await expect(renewLease(db, threadId, wrong, 1_000)).rejects.toMatchObject({
      detail: { reason: "LEASE_LOST" },
    });
    await releaseLease(db, threadId, wrong);
  }
  await renewLease(db, mine, token, 1_000);
  await releaseLease(db, mine, token);
  await releaseLease(db, mine, await lease(other));
  await sql.query("update checkpointd_claims set expires_at = now() - interval '1 s'");
  await expect(renewLease(db, other, token, 1_000)).rejects.toMatchObject({
    detail: { reason: "LEASE_LOST" },
  });
  await expect(renewLease(db, mine, token, 1_000)).rejects.toMatchObject({
    detail: { reason: "LEASE_LOST" },
  });
});
