/**
 * Every statement on tables that lie by thread, as those that Citus distributes: on hash partitions of
 * plain Postgres, and on Citus itself where CITUS_URL names a coordinator (of a database that may be
 * written to). Each touches the place of one thread or is declared a fan-out.
 */
import { randomBytes } from "node:crypto";
import { setTimeout as delay } from "node:timers/promises";
import { create, type MessageInitShape } from "@bufbuild/protobuf";
import pg from "pg";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import {
  GetTupleRequestSchema,
  ListRequestSchema,
  ListView,
  PutRequestSchema,
  PutWritesRequestSchema,
} from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { StoredPrefixSchema } from "../../gen/checkpointd/v1/session_service_pb.js";
import {
  GetChannelHistoryRequestSchema,
  ListThreadsRequestSchema,
  ThreadFilterSchema,
  ThreadOrder,
  ThreadStatus,
} from "../../gen/checkpointd/v1/thread_service_pb.js";
import { partitionByThread } from "../testing/hash_partitions.js";
import { createDatabase, openPool } from "../testing/postgres.js";
import { channelHistory } from "./channel_history.js";
import { copyThread } from "./copy_thread.js";
import type { Db, Parameter, Run } from "./db.js";
import { deleteRuns } from "./delete_runs.js";
import { deleteThread } from "./delete_thread.js";
import { distribute } from "./distribute.js";
import {
  claimThreads,
  countHeldLeases,
  countLeases,
  endLease,
  releaseLease,
  renewLease,
} from "./leases.js";
import { list, type PageBounds } from "./list_checkpoints.js";
import { lookAtTables } from "./look.js";
import { migrate } from "./migrate.js";
import { pruneThreads } from "./prune.js";
import { createPut } from "./put.js";
import { createPutExtending } from "./put_extending.js";
import { createPutWrites } from "./put_writes.js";
import { createGetTuple } from "./read.js";
import { getThread, listThreads } from "./read_threads.js";
import { routedFunctions } from "./routed_writes.js";
import { quoteSchema } from "./schema_name.js";
import { storedBytes } from "./stored_bytes.js";

/** Where the tables are, and how many places of theirs a statement touches. */
interface Place {
  db: Db;
  client: pg.Client;
  schema: string;
  countPlaces(text: string, parameters: readonly Parameter[]): Promise<number>;
  end(): Promise<void>;
}

async function startPartitions(): Promise<Place> {
  const database = await createDatabase();
  const client = new pg.Client({ connectionString: database.url });
  await client.connect();
  await partitionByThread(client);
  for (const { create } of routedFunctions('"public"')) await client.query(create);
  const pool = openPool(database.url);
  return {
    db: { ...pool, distributed: new Set(['"public"']) },
    client,
    schema: "public",
    countPlaces: async (text, parameters) =>
      Math.max(
        await countPartitions(client, "force_custom_plan", text, parameters),
        await countPartitions(client, "force_generic_plan", text, parameters),
      ),
    async end() {
      await pool.close(1000);
      await client.end();
      await database.drop();
    },
  };
}

/** Of what the plan reads, and of what was read and written when it was run, functions too. */
async function countPartitions(
  client: pg.Client,
  mode: string,
  text: string,
  parameters: readonly Parameter[],
): Promise<number> {
  const call = parameters.length > 0 ? `s (${parameters.map(toLiteral).join(", ")})` : "s";
  const places = new Set<string>();
  // What is counted below begins with this transaction only once the counts before are handed on.
  await client.query("select pg_stat_force_next_flush()");
  await client.query(`begin; set local plan_cache_mode = ${mode}`);
  try {
    await client.query(`prepare s as ${text}`);
    const { rows } = await client.query(`explain (format json) execute ${call}`);
    for (const node of nodes(rows[0]["QUERY PLAN"][0].Plan)) {
      const place = /_p(\d+)$/.exec(String(node["Relation Name"]))?.[1];
      if (place && node["Node Type"] !== "ModifyTable") places.add(place);
    }
    await client.query(`execute ${call}`);
    const { rows: used } = await client.query(
      `select substring(relname from '_p(\\d+)$') as place from pg_stat_xact_user_tables
       where relname ~ '_p\\d+$'
         and coalesce(seq_scan, 0) + coalesce(idx_scan, 0) + n_tup_ins + n_tup_upd + n_tup_del > 0`,
    );
    for (const { place } of used) places.add(place);
  } finally {
    await client.query("rollback; deallocate all");
  }
  return places.size;
}

type PlanNode = Record<string, unknown> & { Plans?: PlanNode[] };

function* nodes(plan: PlanNode): Generator<PlanNode> {
  yield plan;
  for (const inner of plan.Plans ?? []) yield* nodes(inner);
}

function toLiteral(value: Parameter): string {
  if (value === null) return "null";
  if (typeof value === "number") return `${value}`;
  if (typeof value === "string") return pg.escapeLiteral(value);
  if (value instanceof Uint8Array) return `'\\x${Buffer.from(value).toString("hex")}'`;
  const items = (value as readonly (string | number | null)[]).map((item) =>
    item === null ? "null" : `"${`${item}`.replace(/["\\]/g, "\\$&")}"`,
  );
  return pg.escapeLiteral(`{${items.join(",")}}`);
}

async function startCitus(url: string): Promise<Place> {
  const schema = `test_${randomBytes(6).toString("hex")}`;
  const client = new pg.Client({ connectionString: url });
  client.on("error", () => {});
  await client.connect();
  await migrate({ databaseUrl: url, schema });
  await distribute({ databaseUrl: url, schema });
  const db = openPool(url, { schema });
  await db.run("select 1", []);
  return {
    db,
    client,
    schema,
    async countPlaces(text, parameters) {
      const { rows } = await client.query(
        `explain (format json) ${text}`,
        parameters.map((each) => (each instanceof Uint8Array ? Buffer.from(each) : each)),
      );
      const plan = JSON.stringify(rows[0]["QUERY PLAN"]);
      return Math.max(0, ...[...plan.matchAll(/"Task Count":(\d+)/g)].map(([, tasks]) => +tasks!));
    },
    async end() {
      await db.close(1000);
      await client.query(`drop schema ${quoteSchema(schema)} cascade`);
      await client.end();
    },
  };
}

const text = (data: string) => ({ type: "json", data: Buffer.from(data) });
const id = (n: number) => `1ef00000-0000-6000-8000-${String(n).padStart(12, "0")}`;

/** Checkpoint n of a thread: version n of "a", and one more of "done" that nothing triggers. */
const toPut = (
  threadId: string,
  n: number,
  more: MessageInitShape<typeof PutRequestSchema> = {},
): ReturnType<typeof create<typeof PutRequestSchema>> =>
  create(PutRequestSchema, {
    threadId,
    checkpointId: id(n),
    parentCheckpointId: n > 1 ? id(n - 1) : "",
    checkpointJson: JSON.stringify({ v: 4, channel_versions: { a: `${n}` } }),
    metadataJson: JSON.stringify({ step: n, source: "loop", run_id: `run-${threadId}` }),
    blobs: [{ channel: "a", version: `${n}`, value: text(`"${threadId} ${n}"`) }],
    ...more,
  });

const writes = (threadId: string, n: number, idx: number, leaseToken = "") =>
  create(PutWritesRequestSchema, {
    threadId,
    checkpointId: id(n),
    taskId: "task",
    leaseToken,
    writes: [0, 1].map((i) => ({
      idx: idx < 0 ? idx - i : i,
      channel: idx < 0 ? "__error__" : "b",
      value: text(`${i}`),
    })),
  });

const threads = Array.from({ length: 12 }, (_, i) => `thread ${String(i).padStart(2, "0")}`);
const [first, second, third] = threads as [string, string, string];

const filter = (more: MessageInitShape<typeof ThreadFilterSchema> = {}) =>
  create(ThreadFilterSchema, more);
const wanted = (threadId: string, more: object = {}) => ({
  owner: "me",
  leaseMs: 60_000,
  graceMs: -60_000,
  limit: 3,
  filter: filter(),
  threadId,
  ...more,
});

async function all<T>(stream: AsyncIterable<T>): Promise<T[]> {
  const items: T[] = [];
  for await (const item of stream) items.push(item);
  return items;
}

const listed = async (
  db: Db,
  request: MessageInitShape<typeof ListRequestSchema>,
  bounds?: PageBounds,
) => {
  const tuples = await all(list(db, create(ListRequestSchema, request), undefined, bounds));
  return tuples.map(({ key, blobs }) => {
    const n = Number(key?.checkpointId.slice(-12));
    const value = blobs.map((blob) => Buffer.from(blob.value?.data ?? []).toString()).join();
    return `${key?.threadId} ${n} ${value}`;
  });
};
const named = async (db: Db, request: MessageInitShape<typeof ListThreadsRequestSchema>) =>
  (await all(listThreads(db, create(ListThreadsRequestSchema, request)))).map(
    ({ threadId }) => threadId,
  );

/** What an operation returns, and how many of its statements are fan-outs. */
type Operation = [name: string, fanOuts: number, use: (db: Db) => Promise<unknown>, want: unknown];

/** In this order, each on what those before it have left. */
const operations: Operation[] = [
  [
    "puts of many threads at once",
    0,
    async (db) => {
      const each = createPut(db);
      for (const n of [1, 2]) await Promise.all(threads.map((name) => each(toPut(name, n))));
      await each(toPut(first, 2));
      await Promise.all(
        [1, 2, 3].map((n) => each(toPut(first, n, { checkpointNs: "sub", blobs: [] }))),
      );
    },
    undefined,
  ],
  [
    "a put of more values than a statement has parameters for",
    0,
    (db) =>
      createPut(db)(
        toPut(first, 3, {
          blobs: Array.from({ length: 20 }, (_, i) => ({
            channel: i === 0 ? "a" : `c${i}`,
            version: "3",
            ...(i !== 1 && { value: text(`"${first} 3"`) }),
          })),
        }),
      ),
    undefined,
  ],
  [
    "a put extending what is stored, and one of what is not",
    0,
    async (db) => {
      const each = createPutExtending(db);
      const value = (n: number, data: string) =>
        toPut(second, n, { blobs: [{ channel: "a", version: `${n}`, value: text(data) }] });
      const transactionId = await each({ put: value(3, "0123456789"), prefixes: [] });
      const prefix = create(StoredPrefixSchema, { version: "3", transactionId, length: 10 });
      await each({ put: value(4, "ab"), prefixes: [prefix] });
      const part = { ...prefix, offset: 2, length: 3, headLength: 1 };
      await each({ put: value(5, "xy"), prefixes: [part] });
      const lost = { ...prefix, transactionId: "1" };
      const refused = await Promise.allSettled([
        each({ put: value(6, ""), prefixes: [lost] }),
        each({ put: toPut(third, 3), prefixes: [] }),
      ]);
      const values = await listed(db, { threadId: second, checkpointNs: "", limit: 3 });
      return [...values, ...refused.map(({ status }) => status)];
    },
    [
      `${second} 5 x234y`,
      `${second} 4 0123456789ab`,
      `${second} 3 0123456789`,
      "rejected",
      "fulfilled",
    ],
  ],
  [
    "putWrites that keep and that replace",
    0,
    async (db) => {
      const each = createPutWrites(db);
      await Promise.all(threads.slice(3, 6).map((name) => each(writes(name, 2, 0))));
      await Promise.all([each(writes(third, 2, -1)), each(writes(third, 3, -1))]);
      await each(writes(third, 3, -1));
    },
    undefined,
  ],
  [
    "getTuple of many threads at once",
    0,
    async (db) => {
      const each = createGetTuple(db);
      const ask = (threadId: string, checkpointId = "") =>
        each(create(GetTupleRequestSchema, { threadId, checkpointId }));
      const found = await Promise.all([
        ...threads.slice(0, 4).map((name) => ask(name)),
        ask(first, id(1)),
        ask("nobody"),
      ]);
      return found.map(
        (tuple) =>
          tuple &&
          `${tuple.key?.threadId} ${tuple.blobs.length} values, ${tuple.pendingWrites.length} writes`,
      );
    },
    [
      `${first} 1 values, 0 writes`,
      `${second} 1 values, 0 writes`,
      `${third} 1 values, 2 writes`,
      `${threads[3]} 1 values, 2 writes`,
      `${first} 1 values, 0 writes`,
      undefined,
    ],
  ],
  [
    "list of a thread",
    0,
    async (db) => [
      await listed(db, { threadId: first, limit: 3 }),
      await listed(db, { threadId: first, checkpointNs: "", omitUnchanged: true }),
      await listed(db, { threadId: first, metadataFilterJson: '{"step": 2}' }),
      await listed(db, { threadId: first, view: ListView.METADATA, checkpointId: id(3) }),
    ],
    [
      [`${first} 3 `, `${first} 3 "${first} 3"`, `${first} 2 `],
      [`${first} 3 "${first} 3"`, `${first} 2 "${first} 2"`, `${first} 1 "${first} 1"`],
      [`${first} 2 `, `${first} 2 "${first} 2"`],
      [`${first} 3 `, `${first} 3 `],
    ],
  ],
  [
    "list of all threads",
    5,
    async (db) => {
      const small = { firstRows: 2, maxRows: 5, maxBytes: 100 };
      const before = { beforeCheckpointId: id(3), checkpointNs: "" };
      return [
        await listed(db, { checkpointId: id(1), checkpointNs: "" }, small),
        (await listed(db, { ...before, omitUnchanged: true })).length,
        await listed(db, { metadataFilterJson: '{"step": 5}' }),
        (await listed(db, { ...before, view: ListView.METADATA })).length,
      ];
    },
    [[...threads].reverse().map((name) => `${name} 1 "${name} 1"`), 24, [`${second} 5 x234y`], 24],
  ],
  [
    "channelHistory",
    0,
    async (db) => {
      const request = create(GetChannelHistoryRequestSchema, {
        threadId: second,
        channels: ["a"],
        withSeals: true,
      });
      const at = { ...request, checkpointId: id(2) };
      const found = [
        ...(await all(channelHistory(db, request))),
        ...(await all(channelHistory(db, at))),
      ];
      return found.map(({ seeds }) => seeds.map(({ version }) => version).join());
    },
    ["", "4", "", "1"],
  ],
  [
    "getThread",
    0,
    async (db) => {
      const thread = await getThread(db, { threadId: first, withCounts: true });
      const failed = await getThread(db, { threadId: third, withCounts: false });
      return [
        thread?.counts?.checkpoints,
        thread?.counts?.blobs,
        failed?.status,
        await getThread(db, { threadId: "nobody", withCounts: false }),
      ];
    },
    [6n, 22n, ThreadStatus.FAILED, undefined],
  ],
  [
    "listThreads",
    3,
    async (db) => {
      const byId = { order: ThreadOrder.BY_ID };
      return [
        await named(db, { limit: 5 }),
        (await named(db, {})).length,
        await named(db, {
          filter: { statuses: [ThreadStatus.FAILED], metadataFilterJson: '{"step": 3}' },
        }),
        await named(db, { ...byId, limit: 2, withCounts: true }),
        await named(db, {
          ...byId,
          filter: { threadIdPrefix: "thread 1" },
          after: { threadId: "thread 10" },
        }),
      ];
    },
    [
      // By the time in their ids, which is one of all: then by name.
      ["thread 11", "thread 10", "thread 09", "thread 08", "thread 07"],
      12,
      [third],
      [first, second],
      ["thread 11"],
    ],
  ],
  [
    "leases: taken once, renewed, writes under them, released, ended",
    0,
    async (db) => {
      const [claimed] = await claimThreads(db, wanted(first));
      const again = await claimThreads(db, wanted(first, { owner: "you" }));
      const leaseToken = claimed?.leaseToken ?? "";
      await renewLease(db, first, leaseToken, 50_000);
      const more = { leaseToken, blobs: [{ channel: "a", version: "4", value: text("4") }] };
      await createPut(db)(toPut(first, 4, more));
      for (const idx of [0, -1]) await createPutWrites(db)(writes(first, 4, idx, leaseToken));
      const wrong = { ...more, leaseToken: "another" };
      const lost = await Promise.allSettled([
        createPut(db)(toPut(first, 5, wrong)),
        createPutWrites(db)(writes(first, 5, 0, "another")),
        createPut(db)(toPut(first, 5, more)).then(() => releaseLease(db, first, leaseToken)),
      ]);
      const after = await createPut(db)(toPut(first, 6, more)).catch(({ detail }) => detail.reason);
      const [other] = await claimThreads(db, wanted(second));
      const ended = await endLease(db, second);
      const renewed = await renewLease(db, second, other?.leaseToken ?? "", 1).catch(
        ({ detail }) => detail.reason,
      );
      return [
        again.length,
        ...lost.map(({ status }) => status),
        after,
        ended?.owner,
        renewed,
        await endLease(db, second),
      ];
    },
    [0, "rejected", "rejected", "fulfilled", "LEASE_LOST", "me", "LEASE_LOST", undefined],
  ],
  [
    "claimThreads of any, and how many are held",
    3,
    async (db) => {
      const statuses = [ThreadStatus.FAILED, ThreadStatus.COMPLETED, ThreadStatus.PENDING];
      const any = wanted("", { filter: filter({ statuses }), limit: 4 });
      const claimed = await claimThreads(db, any);
      const others = await claimThreads(db, { ...any, owner: "you" });
      const same = new Set([...claimed, ...others].map(({ thread }) => thread?.threadId)).size;
      const counts = [await countLeases(db, "me"), await countHeldLeases(db, 100)];
      for (const { thread, leaseToken } of [...claimed, ...others]) {
        await releaseLease(db, thread?.threadId ?? "", leaseToken);
      }
      return [claimed.length, others.length, same, ...counts];
    },
    [4, 4, 8, 4, 8],
  ],
  [
    "pruneThreads by name",
    0,
    async (db) => {
      const prune = { threadIds: [first, second], keepLast: 2 };
      const dry = await all(pruneThreads(db, { ...prune, dryRun: true }));
      const real = await all(pruneThreads(db, { ...prune, dryRun: false }));
      await all(pruneThreads(db, { threadIds: [threads[9]!], keepLast: 0, dryRun: false }));
      const whole = { threadIds: [threads[8] as string], keepLast: 0, olderThanMs: -60_000 };
      for (const dryRun of [true, false]) await all(pruneThreads(db, { ...whole, dryRun }));
      const young = { ...whole, olderThanMs: 1e11 };
      for (const dryRun of [true, false]) await all(pruneThreads(db, { ...young, dryRun }));
      const removed = (messages: typeof dry) =>
        messages.map(({ removed: { checkpoints, blobs } = { checkpoints: 0n, blobs: 0n } }) =>
          [checkpoints, blobs].join(),
        );
      return [removed(dry), removed(real)];
    },
    // The dry run does not look for what others left: the values that a refused put brought.
    [
      ["4,22", "3,3"],
      ["4,22", "3,3"],
    ],
  ],
  [
    "pruneThreads of a filter",
    1,
    async (db) => {
      const prune = { filter: filter({ threadIdPrefix: "thread 0" }), threadIds: [], keepLast: 1 };
      const messages = await all(
        pruneThreads(db, { ...prune, dryRun: true, without: ['{"x": 1}'] }),
      );
      return messages.filter(({ removed }) => removed).length;
    },
    8,
  ],
  [
    "deleteRuns",
    2,
    (db) =>
      deleteRuns(db, [`run-${threads[5]}`, `run-${threads[6]}`, "unknown"]).then(
        ({ checkpoints }) => checkpoints,
      ),
    4n,
  ],
  ["storedBytes", 3, async (db) => (await storedBytes(db)) > 1_000, true],
  [
    "deleteThread",
    0,
    async (db) => {
      await deleteThread(db, threads[7] as string);
      return getThread(db, { threadId: threads[7] as string, withCounts: false });
    },
    undefined,
  ],
];

/** What holds on tables that lie by thread, wherever they are. */
function holdsOn(start: () => Promise<Place>): void {
  let place: Place;
  beforeAll(async () => {
    place = await start();
  }, 120_000);
  afterAll(() => place?.end());

  it.each(operations)("%s", { timeout: 60_000 }, async (_, fanOuts, use, want) => {
    const recorded = new Map<string, readonly Parameter[]>();
    const result = await use(record(place.db, recorded));
    expect(result).toEqual(want);
    const several: string[] = [];
    for (const [statement, parameters] of recorded) {
      if (/^(begin|commit|rollback)$/.test(statement)) continue;
      // Inserting the same again is all that a repetition does.
      const places = await place.countPlaces(statement, parameters);
      if (places > 1) several.push(statement);
    }
    expect(several, several.join("\n\n")).toHaveLength(fanOuts);
  });

  it("copyThread touches the places of its two threads", async () => {
    const recorded = new Map<string, readonly Parameter[]>();
    const { checkpoints } = await copyThread(record(place.db, recorded), first, "a copy");
    expect(checkpoints).toBe(4n);
    await expect(copyThread(place.db, first, "a copy")).rejects.toThrow(/target_thread_id/);
    await deleteThread(place.db, "a copy");
    for (const [statement, parameters] of recorded) {
      expect(await place.countPlaces(statement, parameters)).toBeLessThanOrEqual(2);
    }
  });
  it("waits for whoever takes a lease, and for whoever writes under one", {
    timeout: 60_000,
  }, async () => {
    const { client, db, schema } = place;
    const threadId = "waiting";
    const lease = async (owner: string, leaseMs: number) =>
      (await claimThreads(db, wanted(threadId, { owner, leaseMs })))[0]?.leaseToken ?? "";
    await createPut(db)(toPut(threadId, 1));

    const lost = await lease("first", 60_000);
    await client.query("begin");
    await client.query(
      `update ${quoteSchema(schema)}.checkpointd_claims set token = 'another' where thread_id = $1`,
      [threadId],
    );
    const more = { leaseToken: lost, blobs: [] };
    const late = createPut(db)(toPut(threadId, 2, more)).catch(({ detail }) => detail.reason);
    expect(await Promise.race([late, delay(300, "it waits")])).toBe("it waits");
    await client.query("commit");
    expect(await late).toBe("LEASE_LOST");
    await endLease(db, threadId);

    const recorded = new Map<string, readonly Parameter[]>();
    const leaseToken = await lease("second", 1_000);
    await createPut(record(db, recorded))(toPut(threadId, 3, { leaseToken, blobs: [] }));
    const [call, parameters] = [...recorded][0] as [string, readonly Parameter[]];
    await client.query("begin");
    const { rows } = await client.query(
      call,
      parameters.map((each) => (each instanceof Uint8Array ? Buffer.from(each) : each)),
    );
    expect(Object.values(rows[0])).not.toEqual([null]);
    await delay(1_100);
    const taken = lease("third", 60_000);
    expect(await Promise.race([taken, delay(300, "it waits")])).toBe("it waits");
    await client.query("commit");
    expect(await taken).not.toBe("");
  });

  it("stores no write of a lost lease beside those of the next owner", {
    timeout: 60_000,
  }, async () => {
    expect(await fight(place.db)).toEqual({ stored: expect.any(Number), twice: [], wrong: [] });
  });

  it("finds the tables ready", async () => {
    const signal = new AbortController().signal;
    const look = await lookAtTables(place.db, place.schema, signal);
    expect(look).toMatchObject({ trouble: undefined, hasSettings: true, locks: [] });
  });
}

const citusUrl = process.env.CITUS_URL;
describe("tables that lie by thread, on hash partitions", () => holdsOn(startPartitions));
// Citus is in no registry of packages: it runs where somebody names one.
describe.runIf(citusUrl)("tables that lie by thread, on Citus (CITUS_URL)", () =>
  holdsOn(() => startCitus(citusUrl as string)),
);

/**
 * Owners whose leases end long before they have done with a thread: each reads how far it is and goes
 * on from there, until it is told that its lease is lost, which it ignores. Whatever was acknowledged
 * has to have followed on what was stored before, whoever stored that.
 */
async function fight(db: Db) {
  const [put, getTuple] = [createPut(db), createGetTuple(db)];
  const names = ["fight a", "fight b", "fight c"];
  const acknowledged = new Map<string, string[]>();
  let stored = 0;
  const owner = async (name: string, threadId: string) => {
    for (let tries = 0; tries < 25; tries++) {
      const leaseMs = 1 + Math.floor(Math.random() * 25);
      const [claimed] = await claimThreads(db, wanted(threadId, { owner: name, leaseMs }));
      const leaseToken = claimed?.leaseToken;
      if (!leaseToken) continue;
      const latest = await getTuple(create(GetTupleRequestSchema, { threadId }));
      let n = Number(latest?.key?.checkpointId.slice(-12));
      for (let puts = 0; puts < 6; puts++) {
        const metadataJson = JSON.stringify({ by: `${name} ${tries}` });
        const more = { leaseToken, metadataJson, blobs: [] };
        const isStored = await put(toPut(threadId, n + 1, more)).then(
          () => true,
          ({ detail }) => {
            expect(detail.reason).toBe("LEASE_LOST");
            return false;
          },
        );
        if (!isStored) continue;
        n++;
        stored++;
        const key = `${threadId} ${n}`;
        acknowledged.set(key, [...(acknowledged.get(key) ?? []), `${name} ${tries}`]);
      }
    }
  };
  for (const threadId of names) await put(toPut(threadId, 1));
  await Promise.all(
    names.flatMap((threadId) => ["x", "y", "z"].map((name) => owner(name, threadId))),
  );
  const wrong: string[] = [];
  for (const [key, by] of acknowledged) {
    const [threadId, n] = [key.slice(0, 7), Number(key.slice(8))];
    const tuple = await getTuple(create(GetTupleRequestSchema, { threadId, checkpointId: id(n) }));
    const { by: kept } = JSON.parse(tuple?.metadataJson ?? "{}");
    if (kept !== by[0]) wrong.push(`${key}: ${kept}, acknowledged to ${by}`);
  }
  const twice = [...acknowledged].filter(([, by]) => by.length > 1);
  return { stored, twice, wrong };
}

/** Remembers each statement with the parameters it was last run with. */
function record(db: Db, recorded: Map<string, readonly Parameter[]>): Db {
  const recording =
    (run: Run): Run =>
    (text, parameters, signal) => {
      recorded.set(text, parameters);
      return run(text, parameters, signal);
    };
  return {
    ...db,
    run: recording(db.run),
    runLong: recording(db.runLong),
    transaction: (inner, signal) => db.transaction((run) => inner(recording(run)), signal),
    withConnection: (inner, fail) => db.withConnection((run) => inner(recording(run)), fail),
  };
}
