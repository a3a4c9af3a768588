import { create, type MessageInitShape } from "@bufbuild/protobuf";
import { timestampFromMs, timestampNow } from "@bufbuild/protobuf/wkt";
import { PostgresSaver } from "@langchain/langgraph-checkpoint-postgres";
import pg from "pg";
import { afterAll, beforeAll, describe, expect, inject, it } from "vitest";
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
  ThreadStatus,
} from "../../gen/checkpointd/v1/thread_service_pb.js";
import { createDatabase, openPool, type TestDatabase, withDatabase } from "../testing/postgres.js";
import { channelHistory } from "./channel_history.js";
import { copyThread } from "./copy_thread.js";
import type { Db, Parameter, Run } from "./db.js";
import { deleteRuns } from "./delete_runs.js";
import { deleteThread } from "./delete_thread.js";
import { claimThreads, releaseLease, renewLease } from "./leases.js";
import { list } from "./list_checkpoints.js";
import { migrate } from "./migrate.js";
import { pruneThreads } from "./prune.js";
import { createPut } from "./put.js";
import { createPutExtending } from "./put_extending.js";
import { createPutWrites } from "./put_writes.js";
import { createGetTuple } from "./read.js";
import { getThread, listThreads } from "./read_threads.js";

/**
 * 1,000 threads of 90 checkpoints in two namespaces, and one of 10,000: 100,000 in all, each made
 * at another time, as no index of equal times is ever met.
 */
const fill = `
insert into checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
select thread_id, checkpoint_ns, checkpoint_id, checkpoint_id,
  jsonb_build_object('v', 4, 'channel_versions', jsonb_build_object('a', i, 'b', 1, 'c', 2)),
  jsonb_build_object('step', i % 100, 'source', 'loop', 'run_id', 'run-' || i % 2000)
from (
  select i, 'thread-' || i % 1000 as thread_id, case when i % 7 = 0 then 'sub' else '' end as checkpoint_ns,
    lpad(i::text, 12, '0') as checkpoint_id
  from generate_series(1, 90000) as i
  union all
  select i, 'long', '', lpad(i::text, 12, '0') from generate_series(1, 10000) as i
) as rows;
insert into checkpoints (thread_id, checkpoint_id, parent_checkpoint_id, checkpoint)
select 'walk', lpad(i::text, 12, '0'), lpad((i - 1)::text, 12, '0'), '{"v": 3, "channel_versions": {"a": 1}}'
from generate_series(1, 100) as i;
insert into checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
select distinct thread_id, checkpoint_ns, v.key, v.value, 'json', '\\x31'::bytea
from checkpoints, jsonb_each_text(checkpoint -> 'channel_versions') as v;
insert into checkpoint_writes (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob)
select thread_id, checkpoint_ns, checkpoint_id, 'task', idx, 'a', 'json', '\\x31'
from checkpoints, generate_series(0, 1) as idx;
update checkpoints set created_at = created_at - (100000 - checkpoint_id::int) * interval '1 second';
insert into checkpointd_claims (thread_id, owner, token, expires_at)
select 'thread-' || i, 'owner', 'token-' || i, now() from generate_series(1, 10000) as i;
analyze checkpoints, checkpoint_blobs, checkpoint_writes, checkpointd_claims`;

/** The indexes a statement may use on each table it reads or writes. */
type Plan = Record<string, string[]>;

const tables = {
  "made by checkpointd": { latest: "checkpoints_pkey", byId: "checkpoints_pkey" },
  "made by the direct saver, in a linguistic collation": {
    latest: "checkpointd_checkpoints_latest_idx",
    byId: "checkpointd_threads_id_idx",
  },
};

describe.each(Object.entries(tables))("plans at 100,000 checkpoints, tables %s", (made, index) => {
  let database: TestDatabase;
  let client: pg.Client;

  beforeAll(async () => {
    if (made === "made by checkpointd") {
      database = await createDatabase();
    } else {
      database = await createLinguisticDatabase();
      const saver = PostgresSaver.fromConnString(database.url);
      await saver.setup();
      await saver.end();
      await migrate({ databaseUrl: database.url, schema: "public" });
    }
    client = new pg.Client({ connectionString: database.url });
    await client.connect();
    await client.query(fill);
  });
  afterAll(async () => {
    await client?.end();
    await database?.drop();
  });

  const blobs = { checkpoint_blobs: ["checkpoint_blobs_pkey"] };
  const writes = { checkpoint_writes: ["checkpoint_writes_pkey"] };
  const tuple = (checkpoints: string[]): Plan => ({ checkpoints, ...blobs, ...writes });
  // A statement each: of few values, all of them texts or not, and of any number.
  const text = { type: "json", data: Buffer.from("{}") };
  const someBytes = { type: "msgpack", data: new Uint8Array(1) };
  const statements: [string, { type: string; data: Uint8Array }[]][] = [
    ["a text", [text]],
    ["bytes", [someBytes]],
    ["many values", Array.from({ length: 9 }, () => text)],
  ];
  const named = { threadId: "long", checkpointId: "000000005000" };
  const after = { threadId: "long", checkpointNs: "", checkpointId: "000000005000" };

  const cases: [string, (db: Db) => Promise<unknown>, Plan][] = [
    ...statements.map(([name, values]): [string, (db: Db) => Promise<unknown>, Plan] => [
      `put of ${name}`,
      (db) =>
        createPut(db)(
          create(PutRequestSchema, {
            ...named,
            checkpointJson: "{}",
            blobs: values.map((value, i) => ({ channel: `c${i}`, version: "1", value })),
          }),
        ),
      { checkpoints: ["checkpoints_pkey"], checkpoint_blobs: ["checkpoint_blobs_pkey"] },
    ]),
    ...[0, -1].flatMap((first) =>
      statements.map(([name, values]): [string, (db: Db) => Promise<unknown>, Plan] => [
        `putWrites of ${name}, ${first < 0 ? "replacing" : "keeping"}`,
        (db) =>
          createPutWrites(db)(
            create(PutWritesRequestSchema, {
              ...named,
              taskId: "task",
              writes: values.map((value, i) => ({
                idx: first < 0 ? -1 - i : i,
                channel: "a",
                value,
              })),
            }),
          ),
        writes,
      ]),
    ),
    [
      "getTuple by id",
      (db) => createGetTuple(db)(create(GetTupleRequestSchema, named)),
      tuple(["checkpoints_pkey"]),
    ],
    [
      "getTuple of the latest",
      (db) => createGetTuple(db)(create(GetTupleRequestSchema, { threadId: "long" })),
      tuple([index.latest]),
    ],
    [
      "deleteThread",
      (db) => deleteThread(db, "thread-5"),
      // Any index that starts with thread_id will do.
      {
        ...tuple(["checkpoints_pkey", "checkpointd_checkpoints_latest_idx"]),
        checkpointd_claims: ["checkpointd_claims_pkey"],
      },
    ],
    ...Object.entries({
      "of all threads": { request: {}, indexes: ["checkpointd_checkpoints_newest_idx"] },
      "of all threads, resumed": {
        request: { after },
        indexes: ["checkpointd_checkpoints_newest_idx"],
      },
      "of one id in all threads": {
        request: { checkpointId: "000000000077" },
        indexes: ["checkpointd_checkpoints_newest_idx"],
      },
      "of all threads before an id": {
        request: { beforeCheckpointId: "000000000077" },
        indexes: ["checkpointd_checkpoints_newest_idx"],
      },
      "of a namespace in all threads": {
        request: { checkpointNs: "sub" },
        indexes: ["checkpointd_checkpoints_newest_idx"],
      },
      "of a thread": {
        request: { threadId: "long" },
        indexes: ["checkpoints_pkey", "checkpointd_checkpoints_latest_idx"],
      },
      "of a thread, resumed": {
        request: { threadId: "long", after },
        indexes: ["checkpoints_pkey", "checkpointd_checkpoints_latest_idx"],
      },
      "of a thread and namespace": {
        request: { threadId: "long", checkpointNs: "" },
        indexes: [index.latest],
      },
      "of a thread and namespace, resumed": {
        request: { threadId: "long", checkpointNs: "", after },
        indexes: [index.latest],
      },
      "of a thread and namespace before an id": {
        request: { threadId: "long", checkpointNs: "", beforeCheckpointId: "000000005000" },
        indexes: [index.latest],
      },
      "of a thread and namespace, without what is unchanged": {
        request: { threadId: "long", checkpointNs: "", omitUnchanged: true },
        indexes: [index.latest],
      },
      "of a thread and namespace, without large values": {
        request: { threadId: "long", checkpointNs: "", maxValueBytes: 100 },
        indexes: [index.latest],
      },
      "of a thread and namespace, some values alone": {
        request: { threadId: "long", checkpointNs: "", onlyValues: [{ channel: "c" }] },
        indexes: [index.latest],
      },
      "of a thread and namespace with a metadata filter": {
        request: { threadId: "long", checkpointNs: "", metadataFilterJson: '{"step": 7}' },
        indexes: [index.latest],
      },
    }).flatMap(([name, { request, indexes }]) =>
      [ListView.FULL, ListView.METADATA].map(
        (view): [string, (db: Db) => Promise<unknown>, Plan] => [
          `list ${name}, ${ListView[view]}`,
          (db) => list(db, create(ListRequestSchema, { ...request, view })).next(),
          view === ListView.FULL ? tuple(indexes) : { checkpoints: indexes },
        ],
      ),
    ),
  ];

  it.each(cases)("%s", async (_, use, expected) => {
    const [text, parameters] = await recordStatement(use);
    // With the values of this call, and as Postgres plans it once a statement was used often.
    const custom = await explain(`explain (format json) ${text}`, parameters);
    const generic = await explain(`explain (format json, generic_plan) ${text}`);
    for (const plan of [custom, generic]) {
      expect(Object.keys(plan).sort()).toEqual(Object.keys(expected).sort());
      for (const [table, used] of Object.entries(plan)) {
        expect(used, JSON.stringify(plan)).not.toHaveLength(0);
        for (const name of used) expect(expected[table]).toContain(name);
      }
    }
  });

  const one = { threadId: "long", withCounts: false };
  const listed = (request: MessageInitShape<typeof ListThreadsRequestSchema>) => (db: Db) =>
    listThreads(db, create(ListThreadsRequestSchema, request)).next();
  const byTime = ["checkpointd_threads_updated_idx", index.latest];
  const byId = [index.byId, index.latest];
  /** Operations of several statements: what each may use of checkpoints. */
  const operations: [string, (db: Db) => Promise<unknown>, string[]][] = [
    ["listThreads, newest first", listed({ limit: 20 }), byTime],
    [
      "listThreads, newest first, resumed, of some time, metadata and prefix",
      listed({
        filter: {
          updatedAfter: timestampFromMs(1),
          updatedBefore: timestampNow(),
          metadataFilterJson: '{"step":1}',
          threadIdPrefix: "thread-1",
          statuses: [ThreadStatus.PENDING],
        },
        after: { threadId: "thread-5", updateTime: timestampNow() },
      }),
      byTime,
    ],
    ["listThreads by id, counted", listed({ order: 2, withCounts: true, limit: 3 }), byId],
    ["listThreads, with reasons", listed({ withReasons: true, limit: 3 }), byTime],
    [
      "listThreads by id, of a prefix, resumed",
      listed({
        order: 2,
        filter: { threadIdPrefix: "thread-1" },
        after: { threadId: "thread-10" },
      }),
      byId,
    ],
    ["getThread", (db) => getThread(db, one), [index.latest]],
    ["getThread, counted", (db) => getThread(db, { ...one, withCounts: true }), [index.latest]],
    [
      "claimThreads, renewLease, releaseLease",
      async (db) => {
        const filter = create(ThreadFilterSchema, { statuses: [ThreadStatus.PENDING] });
        const wanted = { owner: "o", leaseMs: 1_000, graceMs: 0, limit: 3, filter, threadId: "" };
        await claimThreads(db, wanted);
        const [{ leaseToken = "" } = {}] = await claimThreads(db, {
          ...wanted,
          threadId: "long",
          filter: create(ThreadFilterSchema),
        });
        await renewLease(db, "long", leaseToken, 60_000);
        const underLease = { ...named, leaseToken, checkpointJson: "{}" };
        await createPut(db)(
          create(PutRequestSchema, { ...underLease, blobs: [{ channel: "a", version: "1" }] }),
        );
        for (const idx of [0, -1]) {
          const writes = [{ idx, channel: "a", value: { type: "json" } }];
          const request = { ...named, leaseToken, taskId: "task", writes };
          await createPutWrites(db)(create(PutWritesRequestSchema, request));
        }
        await releaseLease(db, "long", leaseToken);
      },
      byTime,
    ],
    [
      "putExtending",
      async (db) => {
        const blobs = [{ channel: "c", version: "1", value: text }];
        const put = create(PutRequestSchema, { ...named, checkpointJson: "{}", blobs });
        const transactionId = await createPutExtending(db)({ put, prefixes: [] });
        for (const blob of put.blobs) blob.version = "2";
        const prefix = create(StoredPrefixSchema, { version: "1", transactionId, length: 1 });
        await createPutExtending(db)({ put, prefixes: [prefix] });
        for (const blob of put.blobs) blob.version = "3";
        const within = { ...prefix, headLength: 1 };
        await createPutExtending(db)({ put, prefixes: [within] });
      },
      ["checkpoints_pkey"],
    ],
    [
      "channelHistory",
      async (db) => {
        const request = { threadId: "walk", channels: ["a", "b", "__pregel_tasks"] };
        for await (const _ of channelHistory(db, create(GetChannelHistoryRequestSchema, request)));
        const at = { ...request, checkpointId: "000000000050" };
        for await (const _ of channelHistory(db, create(GetChannelHistoryRequestSchema, at)));
        const sealed = { ...at, withSeals: true };
        for await (const _ of channelHistory(db, create(GetChannelHistoryRequestSchema, sealed)));
      },
      [index.latest],
    ],
    ["copyThread", (db) => copyThread(db, "walk", "walked"), [index.latest]],
    [
      "deleteRuns of many",
      (db) =>
        deleteRuns(
          db,
          Array.from({ length: 1_000 }, (_, i) => `unknown-${i}`),
        ),
      ["checkpointd_runs_idx", index.latest],
    ],
    ["deleteRuns", (db) => deleteRuns(db, ["run-7"]), ["checkpointd_runs_idx", index.latest]],
    ...[true, false].map((dryRun): [string, (db: Db) => Promise<unknown>, string[]] => [
      `pruneThreads, ${dryRun ? "dry" : "real"}`,
      async (db) => {
        for (const keepLast of [3, 0]) {
          const prune = { threadIds: ["walked", "thread-6"], keepLast, olderThanMs: 0, dryRun };
          for await (const _ of pruneThreads(db, prune));
        }
      },
      [index.latest],
    ]),
    [
      "pruneThreads of a filter",
      async (db) => {
        const filter = create(ThreadFilterSchema, { threadIdPrefix: "thread-99" });
        const prune = { filter, threadIds: [], keepLast: 3, dryRun: true, without: ["{}"] };
        for await (const _ of pruneThreads(db, prune));
      },
      byId,
    ],
  ];

  it.each(operations)("%s", async (_, use, ofCheckpoints) => {
    const allowed: Plan = {
      checkpoints: [...ofCheckpoints, "checkpoints_pkey", "checkpointd_checkpoints_latest_idx"],
      checkpoint_blobs: ["checkpoint_blobs_pkey"],
      checkpoint_writes: ["checkpoint_writes_pkey"],
      checkpointd_claims: ["checkpointd_claims_pkey"],
    };
    const found = new Set<string>();
    for (const [text, parameters] of await recordStatements(database.url, use)) {
      const custom = await explain(`explain (format json) ${text}`, parameters);
      const generic = await explain(`explain (format json, generic_plan) ${text}`);
      for (const plan of [custom, generic]) {
        for (const [table, used] of Object.entries(plan)) {
          for (const name of used) {
            found.add(name);
            expect(allowed[table], `${table} by ${name}:\n${text}`).toContain(name);
          }
        }
      }
    }
    expect([...found]).toContain(ofCheckpoints[0]);
  });

  it("reads no more of a thread and namespace than a page, wherever the cursor is", async () => {
    const [text, parameters] = await recordStatement((db) =>
      list(
        db,
        create(ListRequestSchema, { threadId: "long", checkpointNs: "", limit: 8, after }),
      ).next(),
    );
    const { rows } = await client.query(
      `explain (analyze, format json) ${text}`,
      parameters as unknown[],
    );
    for (const node of nodes(rows[0]["QUERY PLAN"][0].Plan)) {
      if (node["Relation Name"] !== "checkpoints") continue;
      expect(node["Actual Rows"]).toBeLessThanOrEqual(8);
      expect(node["Rows Removed by Filter"] ?? 0).toBe(0);
    }
  });

  it("looks only for stored values that are extended", async () => {
    const blobs = Array.from({ length: 9 }, (_, i) => ({
      channel: `c${i}`,
      version: "2",
      value: text,
    }));
    const put = create(PutRequestSchema, { ...named, checkpointJson: "{}", blobs });
    const prefixes = [create(StoredPrefixSchema, { version: "1", transactionId: "7", length: 1 })];
    const [[statement, parameters] = []] = await recordStatements(database.url, (db) =>
      createPutExtending(db)({ put, prefixes }).catch(() => {}),
    );
    const { rows } = await client.query(
      `explain (analyze, format json) ${statement}`,
      parameters as unknown[],
    );
    const lookups = [...nodes(rows[0]["QUERY PLAN"][0].Plan)].filter(
      (node) => node.Alias === "stored" && node["Node Type"] !== "ModifyTable",
    );
    expect(lookups.map((node) => node["Actual Loops"])).toEqual([1]);
  });

  /** The indexes used, by table; a table read without one is there with "a scan". */
  async function explain(text: string, parameters: readonly Parameter[] = []) {
    const { rows } = await client.query(text, parameters as unknown[]);
    const found: Plan = {};
    const use = (table: string, index: string) => {
      found[table] = [...(found[table] ?? []), index];
    };
    for (const node of nodes(rows[0]["QUERY PLAN"][0].Plan)) {
      const table = node["Relation Name"] as string | undefined;
      if (!table) continue;
      if (node["Node Type"] === "ModifyTable") {
        for (const arbiter of (node["Conflict Arbiter Indexes"] as string[]) ?? []) {
          use(table, arbiter);
        }
      } else if (node["Node Type"] === "Bitmap Heap Scan") {
        for (const inner of nodes(node)) {
          if (inner["Node Type"] === "Bitmap Index Scan") use(table, inner["Index Name"] as string);
        }
      } else {
        use(table, (node["Index Name"] as string | undefined) ?? "a scan");
      }
    }
    return found;
  }
});

type PlanNode = Record<string, unknown> & { Plans?: PlanNode[] };

function* nodes(plan: PlanNode): Generator<PlanNode> {
  yield plan;
  for (const inner of plan.Plans ?? []) yield* nodes(inner);
}

/** The statement that an operation runs, without running it. */
async function recordStatement(
  use: (db: Db) => Promise<unknown>,
): Promise<[string, readonly Parameter[]]> {
  let recorded: [string, readonly Parameter[]] | undefined;
  const notRun = new Error("recorded, not run");
  const run: Db["run"] = async (text, parameters) => {
    recorded = [text, parameters];
    throw notRun;
  };
  await use({
    schema: '"public"',
    distributed: new Set(),
    guard: { until: 0 },
    leaveOut: () => {},
    load: () => ({ running: 0, waiting: 0 }),
    measures: () => {
      throw notRun;
    },
    run,
    runLong: run,
    transaction: (use) => use(run),
    withConnection: (use) => void use(run),
    isFree: () => true,
    hasIdle: () => true,
    takePlace: () => () => {},
    close: async () => {},
  }).catch((error) => {
    if (error !== notRun) throw error;
  });
  if (!recorded) throw new Error("no statement was run");
  return recorded;
}

/** The statements that an operation runs, having run them. */
async function recordStatements(
  databaseUrl: string,
  use: (db: Db) => Promise<unknown>,
): Promise<[string, readonly Parameter[]][]> {
  const db = openPool(databaseUrl);
  const recorded = new Map<string, readonly Parameter[]>();
  const recording =
    (run: Run): Run =>
    (text, parameters, signal) => {
      recorded.set(text, parameters);
      return run(text, parameters, signal);
    };
  try {
    await use({
      ...db,
      run: recording(db.run),
      runLong: recording(db.runLong),
      transaction: (inner, signal) => db.transaction((run) => inner(recording(run)), signal),
      withConnection: (inner, fail) => db.withConnection((run) => inner(recording(run)), fail),
    });
  } finally {
    await db.close(1_000);
  }
  return [...recorded];
}

async function createLinguisticDatabase(): Promise<TestDatabase> {
  const server = inject("postgresUrl");
  const name = `test_linguistic_${process.pid}`;
  const admin = new pg.Client({ connectionString: server });
  await admin.connect();
  await admin.query(
    `create database ${name} template template0 locale_provider icu icu_locale 'en-US' locale 'C'`,
  );
  await admin.end();
  return {
    url: withDatabase(server, name),
    async drop() {
      const client = new pg.Client({ connectionString: server });
      await client.connect();
      await client.query(`drop database if exists ${name} with (force)`);
      await client.end();
    },
  };
}
