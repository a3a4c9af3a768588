import { getEventListeners } from "node:events";
import { create } from "@bufbuild/protobuf";
import pg from "pg";
import { afterAll, beforeAll, expect, it } from "vitest";
import {
  GetTupleRequestSchema,
  PutRequestSchema,
  PutWritesRequestSchema,
} from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { CheckpointdError } from "../errors.js";
import { block, untilBlocked } from "../testing/blocking.js";
import { createDatabase, openPool, type TestDatabase } from "../testing/postgres.js";
import type { Db, DbOptions } from "./db.js";
import { createPut } from "./put.js";
import { createPutWrites } from "./put_writes.js";
import { createGetTuple } from "./read.js";

let database: TestDatabase;
let sql: pg.Client;
const pools: Db[] = [];
beforeAll(async () => {
  database = await createDatabase();
  sql = new pg.Client({ connectionString: database.url });
  await sql.connect();
});
afterAll(async () => {
  for (const db of pools) await db.close(1000);
  await sql?.end();
  await database?.drop();
});

/** A pool whose statements are counted. */
function open(options: Partial<DbOptions> = {}) {
  const db = openPool(database.url, options);
  pools.push(db);
  let statements = 0;
  const counted: Db = {
    ...db,
    withConnection: (use, fail) =>
      db.withConnection(
        (run) =>
          use((...args) => {
            statements++;
            return run(...args);
          }),
        fail,
      ),
  };
  return { db: counted, statements: () => statements };
}

const request = (threadId: string, checkpointId = "1", checkpointJson = '{"v": 4}') =>
  create(PutRequestSchema, {
    threadId,
    checkpointId,
    checkpointJson,
    blobs: [{ channel: "a", version: checkpointId, value: { type: "json", data: bytes("1") } }],
  });
const bytes = (text: string) => new TextEncoder().encode(text);

async function stored(threads: string): Promise<number> {
  const { rows } = await sql.query(
    "select count(*)::int as n from checkpoints where thread_id like $1",
    [threads],
  );
  return rows[0].n;
}

type Measured = ReturnType<typeof measured>;
/** A signal that never aborts and is told what is measured. */
const measured = () => ({
  aborted: false,
  reason: undefined,
  throwIfAborted() {},
  addEventListener() {},
  removeEventListener() {},
  queueMs: 0,
  batchSize: 0,
});

it("tells each call how long it waited for a connection and with how many it travelled", async () => {
  const { db } = open({ poolSize: 1 });
  const put = createPut(db);
  await put(request("measured", "0"));
  const lock = await block(
    database.url,
    "insert into checkpoints (thread_id, checkpoint_id, checkpoint) values ('measured', '1', '{}')",
  );
  const signals = [measured(), measured(), measured()];
  const [first, second, third] = signals as [Measured, Measured, Measured];
  const lone = put(request("measured", "1"), first);
  await untilBlocked(sql, 1);
  const since = performance.now();
  const together = [put(request("measured", "2"), second), put(request("measured", "3"), third)];
  await new Promise((resolve) => setTimeout(resolve, 50));
  const waitedMs = performance.now() - since;
  await lock.release();
  await Promise.all([lone, ...together]);
  expect(signals.map(({ batchSize }) => batchSize)).toEqual([1, 2, 2]);
  for (const { queueMs } of [second, third]) expect(queueMs).toBeGreaterThanOrEqual(waitedMs);
  expect(first.queueMs).toBeLessThan(second.queueMs);
});

it("has one who asks for little wait for a turn of one who asks for much, not for all", async () => {
  const { db } = open({ poolSize: 1 });
  const getTuple = createGetTuple(db);
  const put = createPut(db);
  const lock = await block(
    database.url,
    "insert into checkpoints (thread_id, checkpoint_id, checkpoint) values ('turns', '1', '{}')",
  );
  const slow = put(request("turns"));
  await untilBlocked(sql, 1);
  const answered: string[] = [];
  const ask = (name: string, source: object) =>
    getTuple(create(GetTupleRequestSchema, { threadId: "turns" }), { ...measured(), source }).then(
      () => answered.push(name),
    );
  const [much, little] = [{}, {}];
  const all = Array.from({ length: 200 }, () => ask("much", much));
  all.push(ask("little", little), ask("little", little));
  await lock.release();
  await Promise.all([slow, ...all]);
  // At the most 32 travel in one statement.
  expect(answered.lastIndexOf("little")).toBeLessThan(64);
});

it("sends a lone call at once and calls of one tick together", async () => {
  const { db, statements } = open();
  const put = createPut(db);
  await put(request("lone"));
  expect(statements()).toBe(1);
  await Promise.all(Array.from({ length: 30 }, (_, i) => put(request(`tick-${i}`))));
  expect(statements()).toBe(2);
  expect(await stored("tick-%")).toBe(30);
});

it("sends calls that wait for a slow statement over other connections, together", async () => {
  const { db, statements } = open();
  const put = createPut(db);
  const getTuple = createGetTuple(db);
  const blocker = await block(
    database.url,
    "insert into checkpoints (thread_id, checkpoint_id, checkpoint) values ('held', '1', '{}'), ('held', '2', '{}')",
  );
  const slow = [put(request("held", "1"))];
  await untilBlocked(sql, 1);
  slow.push(put(request("held", "2")));
  await untilBlocked(sql, 2);
  await Promise.all(Array.from({ length: 20 }, (_, i) => put(request(`round-${i}`))));
  expect(statements()).toBe(3);
  const tuples = await Promise.all(
    Array.from({ length: 20 }, (_, i) =>
      getTuple(create(GetTupleRequestSchema, { threadId: i % 2 ? `round-${i}` : "nobody" })),
    ),
  );
  expect(tuples.map((tuple) => tuple?.key?.threadId)).toEqual(
    tuples.map((_, i) => (i % 2 ? `round-${i}` : undefined)),
  );
  expect(statements()).toBe(4);
  await blocker.release();
  await Promise.all(slow);
});

it("lets one bad call fail alone", async () => {
  const { db } = open();
  const put = createPut(db);
  const results = await Promise.allSettled([
    put(request("good-1")),
    put(request("good-bad", "1", '{"a": "\\u0000"}')),
    put(request("good-2")),
    put(request("good-bad", "2", "{nonsense")),
  ]);
  expect(results.map(({ status }) => status)).toEqual([
    "fulfilled",
    "rejected",
    "fulfilled",
    "rejected",
  ]);
  for (const result of results) {
    if (result.status === "rejected") {
      expect(result.reason).toBeInstanceOf(CheckpointdError);
      expect(result.reason.detail.field).toBe("checkpoint_json");
    }
  }
  expect(await stored("good-%")).toBe(2);
});

it("never writes one row twice in a statement, and the later call wins", async () => {
  const { db } = open();
  const put = createPut(db);
  await Promise.all(
    Array.from({ length: 10 }, (_, i) => put(request("same", "1", `{"v": 4, "n": ${i}}`))),
  );
  const { rows } = await sql.query("select checkpoint from checkpoints where thread_id = 'same'");
  expect(rows).toEqual([{ checkpoint: { v: 4, n: 9 } }]);
});

it("does not deadlock with other replicas over the same rows", async () => {
  const replicas = Array.from({ length: 8 }, () => open({ poolSize: 2 }).db);
  const random = seeded(7);
  const calls = replicas.flatMap((db) => {
    const put = createPut(db);
    const putWrites = createPutWrites(db);
    return Array.from({ length: 150 }, () => {
      const threadId = `shared-${Math.floor(random() * 4)}`;
      const checkpointId = `${Math.floor(random() * 5)}`;
      if (random() < 0.5) return put(request(threadId, checkpointId));
      const idx = random() < 0.5 ? -1 : 0;
      return putWrites(
        create(PutWritesRequestSchema, {
          threadId,
          checkpointId,
          taskId: `${Math.floor(random() * 3)}`,
          writes: [idx, idx - 1].map((idx) => ({
            idx,
            channel: "a",
            value: { type: "json", data: bytes("1") },
          })),
        }),
      );
    });
  });
  expect((await Promise.allSettled(calls)).filter(({ status }) => status === "rejected")).toEqual(
    [],
  );
});

it("drops a call that is given up while it waits, and cancels a statement all have left", async () => {
  const { db } = open({ poolSize: 1 });
  const put = createPut(db);
  const blocker = await block(database.url, "lock table checkpoints");
  const controllers = Array.from({ length: 4 }, () => new AbortController());
  const [first, ...others] = controllers as [AbortController, ...AbortController[]];
  const alone = put(request("left-0"), first.signal);
  await untilBlocked(sql, 1);
  const waiting = others.map((controller, i) => put(request(`left-${i + 1}`), controller.signal));
  others[0]?.abort(new Error("gone 1"));
  await expect(waiting[0]).rejects.toThrow("gone 1");
  expect(db.load()).toEqual({ running: 1, waiting: 2 });
  first.abort(new Error("gone 0"));
  await expect(alone).rejects.toThrow("gone 0");
  // The other two now travel together, and wait for the lock.
  await expect.poll(() => db.load().waiting).toBe(0);
  await untilBlocked(sql, 1);
  others[1]?.abort(new Error("gone 2"));
  await expect(waiting[1]).rejects.toThrow("gone 2");
  others[2]?.abort(new Error("gone 3"));
  await expect(waiting[2]).rejects.toThrow("gone 3");
  await untilBlocked(sql, 0);
  await blocker.release();
  expect(await stored("left-%")).toBe(0);
});

it("tries again after a deadlock without the call that was given up", async () => {
  const { db } = open();
  const put = createPut(db);
  for (const id of ["1", "2"]) await put(request("deadlock", id));
  const blocker = await block(database.url, "set local deadlock_timeout = '1min'");
  const lockRow = (id: string) =>
    blocker.query(
      `select from checkpoints where thread_id = 'deadlock' and checkpoint_id = '${id}' for update`,
    );
  await lockRow("2");
  const gone = new AbortController();
  const late = '{"v": 4, "late": true}';
  const first = put(request("deadlock", "1", late), gone.signal);
  const second = put(request("deadlock", "2", late));
  await untilBlocked(sql, 1);
  gone.abort(new Error("gone"));
  await expect(first).rejects.toThrow("gone");
  await lockRow("1");
  await blocker.release();
  await second;
  const { rows } = await sql.query(
    `select checkpoint_id as id from checkpoints
     where thread_id = 'deadlock' and checkpoint ? 'late'`,
  );
  expect(rows).toEqual([{ id: "2" }]);
});

it("keeps the bounds of the queue", async () => {
  const { db } = open({ poolSize: 1, queueLimit: 3, queueTimeoutMs: 200 });
  const put = createPut(db);
  const blocker = await block(database.url, "lock table checkpoints");
  const running = put(request("bound-0"));
  await untilBlocked(sql, 1);
  const waiting = [1, 2, 3].map((i) => put(request(`bound-${i}`)));
  await expect(put(request("bound-4"))).rejects.toMatchObject({ detail: { reason: "QUEUE_FULL" } });
  for (const call of await Promise.allSettled(waiting)) {
    expect(call).toMatchObject({ reason: { detail: { reason: "QUEUE_TIMEOUT" } } });
  }
  expect(db.load()).toEqual({ running: 1, waiting: 0 });
  await blocker.release();
  await running;
  await put(request("bound-5"));
});

function seeded(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state * 1_103_515_245 + 12_345) % 2 ** 31;
    return state / 2 ** 31;
  };
}

it("leaves nothing behind on a call's signal, however the call ended", async () => {
  const { db } = open();
  const put = createPut(db);
  // Composite, as the server's are: Node lets go of none that is listened to.
  const controller = new AbortController();
  const signal = AbortSignal.any([controller.signal]);
  const listeners = () => getEventListeners(signal, "abort").length;
  await put(request("listener"), signal);
  await expect(put(request("listener", "2", "{oops}"), signal)).rejects.toThrow("JSON");
  expect(listeners()).toBe(0);
  const blocker = await block(database.url, "lock table checkpoints in exclusive mode");
  const late = put(request("listener", "3"), signal);
  await untilBlocked(sql, 1);
  controller.abort();
  await expect(late).rejects.toThrow("aborted");
  await untilBlocked(sql, 0);
  await blocker.release();
  await expect.poll(listeners).toBe(0);
});
