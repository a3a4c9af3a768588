/**
 * The rules of docs/langgraph-contract.md that say what is stored: through the service, looking at
 * the rows. What comes back is in contract_values.test.ts and contract_read.test.ts, what the
 * saver adds (2.8, 2.10) in client/contract_saver.test.ts.
 */
import type { MessageInitShape } from "@bufbuild/protobuf";
import { type Client, Code, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { PostgresSaver } from "@langchain/langgraph-checkpoint-postgres";
import pg from "pg";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { type CheckpointTuple, ErrorDetailSchema } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import {
  CheckpointService,
  type ListRequestSchema,
  type PutRequestSchema,
  type PutWritesRequestSchema,
} from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import type { Server } from "../server/server.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { startTestServer } from "../testing/test_server.js";

let database: TestDatabase;
let pool: pg.Pool;
let server: Server;
let service: Client<typeof CheckpointService>;

beforeAll(async () => {
  database = await createDatabase();
  pool = new pg.Pool({ connectionString: database.url, max: 3 });
  server = await startTestServer(database.url);
  service = createClient(
    CheckpointService,
    createConnectTransport({ baseUrl: server.url, httpVersion: "1.1" }),
  );
});
afterAll(async () => {
  await server?.drain();
  await pool?.end();
  await database?.drop();
});

const value = (text: string, type = "json") => ({ type, data: Buffer.from(text) });
const blob = (channel: string, version: string, text?: string) =>
  text === undefined ? { channel, version } : { channel, version, value: value(text) };

function put(
  threadId: string,
  checkpointId: string,
  more: MessageInitShape<typeof PutRequestSchema> = {},
) {
  return service.put({ threadId, checkpointId, checkpointJson: '{"v": 4}', ...more });
}

/** Puts writes given as [idx, channel, text]. */
function putWrites(
  threadId: string,
  taskId: string,
  writes: [number, string, string][],
  more: MessageInitShape<typeof PutWritesRequestSchema> = {},
) {
  return service.putWrites({
    threadId,
    checkpointId: "c",
    taskId,
    writes: writes.map(([idx, channel, text]) => ({ idx, channel, value: value(text) })),
    ...more,
  });
}

async function list(
  request: MessageInitShape<typeof ListRequestSchema>,
): Promise<CheckpointTuple[]> {
  const tuples: CheckpointTuple[] = [];
  for await (const { tuple } of service.list(request)) tuples.push(tuple!);
  return tuples;
}

async function query(text: string, ...parameters: unknown[]): Promise<Record<string, unknown>[]> {
  return (await pool.query(text, parameters)).rows;
}

const blobRows = (thread: string) =>
  query(
    `SELECT checkpoint_ns AS ns, channel, version, type, convert_from(blob, 'UTF8') AS blob
     FROM checkpoint_blobs WHERE thread_id = $1 ORDER BY ns, channel, version`,
    thread,
  );
const writeRows = async (thread: string) =>
  (
    await query(
      `SELECT task_id, idx, channel, convert_from(blob, 'UTF8') AS blob
       FROM checkpoint_writes WHERE thread_id = $1 ORDER BY task_id COLLATE "C", idx`,
      thread,
    )
  ).map((row) => Object.values(row));

/** Every row of the three tables, created_at and physical order left out of account. */
async function everything(): Promise<unknown> {
  const tables = ["checkpoints", "checkpoint_blobs", "checkpoint_writes"];
  return Promise.all(
    tables.map((table) =>
      query(`SELECT t::text AS row FROM ${table} AS t ORDER BY t::text COLLATE "C"`),
    ),
  );
}

async function refused(call: Promise<unknown>): Promise<{ code: string; field: string }> {
  const error = ConnectError.from(
    await call.then(
      () => "no error",
      (reason: unknown) => reason,
    ),
  );
  return { code: Code[error.code], field: error.findDetails(ErrorDetailSchema)[0]?.field ?? "" };
}

/** From now on Postgres refuses what `operation` does to a table's rows of a thread. */
async function breakTable(table: string, operation: "INSERT" | "DELETE", thread: string) {
  const name = `${table}_${operation}_breaks`;
  await query(`CREATE FUNCTION ${name}() RETURNS trigger LANGUAGE plpgsql
    AS $$ BEGIN RAISE 'broken on purpose'; END $$`);
  await query(`CREATE TRIGGER ${name} BEFORE ${operation} ON ${table} FOR EACH ROW
    WHEN (${operation === "INSERT" ? "NEW" : "OLD"}.thread_id = '${thread}') EXECUTE FUNCTION ${name}()`);
}

describe("2.1 tables are LangGraph's own", () => {
  const catalog = (schema: string) =>
    query(
      `SELECT table_name, column_name, data_type, is_nullable, column_default
       FROM information_schema.columns WHERE table_schema = $1 ORDER BY 1, 2`,
      schema,
    );
  const keys = (schema: string) =>
    query(
      `SELECT conrelid::regclass::text LIKE '%checkpointd_%' AS own,
         relname, contype, pg_get_constraintdef(c.oid) AS definition
       FROM pg_constraint c JOIN pg_class r ON r.oid = conrelid
       WHERE r.relnamespace = $1::regnamespace AND contype <> 'n' ORDER BY 2, 4`,
      schema,
    );

  it("has the columns, types, defaults and primary keys of the JS saver, and no foreign keys", async () => {
    const direct = PostgresSaver.fromConnString(database.url, { schema: "direct" });
    await direct.setup();
    await direct.end();
    const theirs = await catalog("direct");
    const ours = await catalog("public");
    expect(ours).toEqual(expect.arrayContaining(theirs));
    const named = (columns: typeof ours) =>
      columns.map((column) => `${column.table_name}.${column.column_name}`);
    const known = named(theirs);
    const extra = ours.filter(
      (column) =>
        !known.includes(named([column])[0]!) &&
        !String(column.table_name).startsWith("checkpointd_"),
    );
    expect(named(extra)).toEqual(["checkpoint_writes.task_path", "checkpoints.created_at"]);
    expect(extra.map(({ column_default }) => column_default)).toEqual(["''::text", "now()"]);
    expect((await keys("public")).filter(({ own }) => !own)).toEqual(await keys("direct"));
  });

  it("leaves the JS saver's setup() nothing to do", async () => {
    const before = [await catalog("public"), await query("SELECT * FROM checkpoint_migrations")];
    const direct = PostgresSaver.fromConnString(database.url);
    await direct.setup();
    await direct.end();
    expect([await catalog("public"), await query("SELECT * FROM checkpoint_migrations")]).toEqual(
      before,
    );
  });

  it("takes writes before their checkpoint", async () => {
    await putWrites("early", "task", [[0, "a", "1"]]);
    await put("early", "c");
    const { tuple } = await service.getTuple({ threadId: "early" });
    expect(tuple?.pendingWrites).toHaveLength(1);
  });
});

describe("2.2 put", () => {
  it("keeps a blob that is stored under the same version", async () => {
    await put("keep", "c1", { blobs: [blob("a", "1", "first")] });
    await put("keep", "c2", { blobs: [blob("a", "1", "second"), blob("b", "1", "new")] });
    expect(await blobRows("keep")).toEqual([
      { ns: "", channel: "a", version: "1", type: "json", blob: "first" },
      { ns: "", channel: "b", version: "1", type: "json", blob: "new" },
    ]);
  });

  it("stores a channel without a value as type empty with NULL, unlike a value of no bytes", async () => {
    const checkpointJson = '{"v": 4, "channel_versions": {"none": 1, "zero": 1}}';
    await put("empty", "c", { checkpointJson, blobs: [blob("none", "1"), blob("zero", "1", "")] });
    expect(await blobRows("empty")).toEqual([
      { ns: "", channel: "none", version: "1", type: "empty", blob: null },
      { ns: "", channel: "zero", version: "1", type: "json", blob: "" },
    ]);
    const { tuple } = await service.getTuple({ threadId: "empty" });
    expect(tuple?.blobs.map(({ channel }) => channel)).toEqual(["zero"]);
  });

  it("replaces checkpoint and metadata of a stored checkpoint, and keeps its parent", async () => {
    await put("upsert", "c", { parentCheckpointId: "p", metadataJson: '{"step": 1}' });
    const changed = { checkpointJson: '{"v": 4, "n": 2}', metadataJson: '{"step": 2}' };
    await put("upsert", "c", { ...changed, parentCheckpointId: "q" });
    const row =
      "SELECT parent_checkpoint_id, checkpoint, metadata FROM checkpoints WHERE thread_id = 'upsert'";
    const wanted = { parent_checkpoint_id: "p", checkpoint: { v: 4, n: 2 }, metadata: { step: 2 } };
    expect(await query(row)).toEqual([wanted]);
    await put("upsert", "c", { metadataJson: "" });
    expect(await query(row)).toEqual([{ ...wanted, checkpoint: { v: 4 }, metadata: {} }]);
  });

  it("stores the first checkpoint with NULL as its parent", async () => {
    await put("first", "c", { parentCheckpointId: "" });
    expect(
      await query(
        "SELECT 1 FROM checkpoints WHERE thread_id = 'first' AND parent_checkpoint_id IS NULL",
      ),
    ).toHaveLength(1);
    expect(
      (await service.getTuple({ threadId: "first" })).tuple?.parentCheckpointId,
    ).toBeUndefined();
  });

  it("stores no blob when the checkpoint cannot be stored, and no checkpoint when a blob cannot", async () => {
    await breakTable("checkpoints", "INSERT", "broken checkpoint");
    await breakTable("checkpoint_blobs", "INSERT", "broken blob");
    const blobs = [blob("a", "1", "x"), blob("b", "1")];
    const before = await everything();
    for (const thread of ["broken checkpoint", "broken blob"]) {
      expect(await refused(put(thread, "c", { blobs }))).toEqual({ code: "Internal", field: "" });
    }
    const checkpointJson = '{"v": 4, "s": "\\u0000"}';
    expect(await refused(put("broken json", "c", { checkpointJson, blobs }))).toEqual({
      code: "InvalidArgument",
      field: "checkpoint_json",
    });
    expect(await everything()).toEqual(before);
  });

  it("joins a blob to its version by the version's text, number or string", async () => {
    const versions = [
      "3",
      "4.7310",
      "4.73",
      "1e2",
      "00000000000000000000000000000003.0.6921148509813451",
    ];
    const channel_versions = `{"0": 3, "1": 4.7310, "2": 4.73, "3": 1e2, "4": "${versions[4]}"}`;
    await put("versions", "c", {
      checkpointJson: `{"v": 4, "channel_versions": ${channel_versions}}`,
      // jsonb prints 1e2 as 100.
      blobs: versions.map((version, i) =>
        blob(String(i), version === "1e2" ? "100" : version, `${i}`),
      ),
    });
    const { tuple } = await service.getTuple({ threadId: "versions" });
    expect(tuple?.blobs.map(({ channel }) => channel).sort()).toEqual(["0", "1", "2", "3", "4"]);
  });
});

describe("2.3 putWrites", () => {
  type Writes = [number, string, string][];
  it.each<[string, Writes[], Writes]>([
    [
      "special writes replace",
      [[[-3, "__interrupt__", "1"]], [[-3, "__interrupt__", "2"]]],
      [[-3, "__interrupt__", "2"]],
    ],
    [
      "special writes replace the channel too",
      [[[-1, "__error__", "1"]], [[-1, "odd", "2"]]],
      [[-1, "odd", "2"]],
    ],
    [
      "ordinary writes keep",
      [
        [[0, "a", "1"]],
        [
          [0, "b", "2"],
          [1, "c", "3"],
        ],
      ],
      [
        [0, "a", "1"],
        [1, "c", "3"],
      ],
    ],
    [
      "mixed writes keep, special ones included",
      [
        [
          [-1, "__error__", "1"],
          [0, "a", "1"],
        ],
        [
          [-1, "__error__", "2"],
          [0, "a", "2"],
          [1, "b", "2"],
        ],
      ],
      [
        [-1, "__error__", "1"],
        [0, "a", "1"],
        [1, "b", "2"],
      ],
    ],
    [
      "of duplicates in a special call the last wins",
      [
        [
          [-3, "__interrupt__", "1"],
          [-4, "__resume__", "r"],
          [-3, "__interrupt__", "2"],
        ],
      ],
      [
        [-4, "__resume__", "r"],
        [-3, "__interrupt__", "2"],
      ],
    ],
    [
      "of duplicates in a mixed call the first wins",
      [
        [
          [-3, "__interrupt__", "1"],
          [1, "a", "a"],
          [-3, "__interrupt__", "2"],
          [1, "b", "b"],
        ],
      ],
      [
        [-3, "__interrupt__", "1"],
        [1, "a", "a"],
      ],
    ],
    ["no writes store nothing", [[]], []],
  ])("%s", async (rule, calls, wanted) => {
    for (const writes of calls) await putWrites(rule, "task", writes);
    expect(await writeRows(rule)).toEqual(wanted.map((write) => ["task", ...write]));
  });

  it("keeps apart tasks, checkpoints and namespaces", async () => {
    for (const taskId of ["t1", "t2"]) {
      for (const checkpointNs of ["", "ns"]) {
        for (const checkpointId of ["c", "d"]) {
          await putWrites("apart", taskId, [[0, "a", "1"]], { checkpointNs, checkpointId });
        }
      }
    }
    expect(await writeRows("apart")).toHaveLength(8);
  });

  it("stores task_path, which a replacement leaves as it is", async () => {
    const path = () => query("SELECT task_path FROM checkpoint_writes WHERE thread_id = 'path'");
    await putWrites("path", "task", [[-3, "__interrupt__", "1"]], {
      taskPath: "~__pregel_pull, a",
    });
    await putWrites("path", "task", [[-3, "__interrupt__", "2"]], { taskPath: "other" });
    expect(await path()).toEqual([{ task_path: "~__pregel_pull, a" }]);
  });

  it("stores no write when one of them cannot be stored", async () => {
    await query(
      "ALTER TABLE checkpoint_writes ADD CONSTRAINT breaks CHECK (channel <> 'broken on purpose')",
    );
    const before = await everything();
    const call = putWrites("broken", "task", [
      [0, "a", "1"],
      [1, "broken on purpose", "2"],
    ]);
    expect(await refused(call)).toEqual({ code: "Internal", field: "" });
    expect(await everything()).toEqual(before);
  });

  it("gives pending writes back by the bytes of task_id, then idx, negative first", async () => {
    const tasks = ["é", "a", "B", "Z", "10", "9", "_"];
    await put("order", "c");
    for (const task of tasks)
      await putWrites("order", task, [
        [1, "x", "1"],
        [-1, "__error__", "e"],
        [10, "y", "1"],
        [9, "z", "1"],
        [-3, "__interrupt__", "i"],
      ]);
    const { tuple } = await service.getTuple({ threadId: "order" });
    expect(tuple?.pendingWrites.map(({ taskId, idx }) => `${taskId} ${idx}`)).toEqual(
      ["10", "9", "B", "Z", "_", "a", "é"].flatMap((task) =>
        [-3, -1, 1, 9, 10].map((idx) => `${task} ${idx}`),
      ),
    );
  });
});

describe("2.6 deleteThread", () => {
  async function fill(thread: string) {
    for (const checkpointNs of ["", "child:1", "child:1|grandchild:2"]) {
      await put(thread, "c", { checkpointNs, blobs: [blob("a", "1", "x")] });
      await putWrites(thread, "task", [[0, "a", "1"]], { checkpointNs });
    }
  }
  const count = async (thread: string) => {
    const tables = ["checkpoints", "checkpoint_blobs", "checkpoint_writes"];
    const counts = await Promise.all(
      tables.map((table) =>
        query(`SELECT count(*)::int AS n FROM ${table} WHERE thread_id = $1`, thread),
      ),
    );
    return counts.map(([row]) => row?.n);
  };

  it("deletes everything of the thread in all namespaces, and nothing of another", async () => {
    const others = ["delete", "delete me not", "DELETE ME", "delete m_", "delete%"];
    for (const thread of ["delete me", ...others]) await fill(thread);
    await service.deleteThread({ threadId: "delete me" });
    expect(await count("delete me")).toEqual([0, 0, 0]);
    for (const thread of others) expect(await count(thread)).toEqual([3, 3, 3]);
  });

  it("succeeds for what does not exist, and deletes writes without a checkpoint", async () => {
    await service.deleteThread({ threadId: "never there" });
    await putWrites("only writes", "task", [[0, "a", "1"]]);
    await service.deleteThread({ threadId: "only writes" });
    expect(await count("only writes")).toEqual([0, 0, 0]);
  });

  it("deletes nothing when a part cannot be deleted", async () => {
    for (const table of ["checkpoints", "checkpoint_blobs", "checkpoint_writes"]) {
      await fill(`stuck ${table}`);
      await breakTable(table, "DELETE", `stuck ${table}`);
      expect(await refused(service.deleteThread({ threadId: `stuck ${table}` }))).toMatchObject({
        code: "Internal",
      });
      expect(await count(`stuck ${table}`)).toEqual([3, 3, 3]);
    }
  });
});

describe("2.11 every operation repeated gives the same state", () => {
  const operations: Record<string, () => Promise<unknown>> = {
    put: () =>
      put("again", "c", { parentCheckpointId: "p", blobs: [blob("a", "1", "x"), blob("b", "2")] }),
    "putWrites, ordinary": () =>
      putWrites("again", "t", [
        [0, "a", "1"],
        [1, "b", "2"],
      ]),
    "putWrites, special": () =>
      putWrites("again", "t", [
        [-1, "__error__", "1"],
        [-1, "__error__", "2"],
      ]),
    "putWrites, mixed": () =>
      putWrites("again", "u", [
        [-1, "__error__", "1"],
        [0, "b", "2"],
      ]),
    getTuple: () => service.getTuple({ threadId: "again" }),
    list: () => list({}),
    deleteThread: () => service.deleteThread({ threadId: "again" }),
  };
  it.each(Object.entries(operations))("%s", async (_, run) => {
    const answer = await run();
    const state = await everything();
    expect(await run()).toEqual(answer);
    expect(await everything()).toEqual(state);
    for (const again of await Promise.all(Array.from({ length: 8 }, run)))
      expect(again).toEqual(answer);
    expect(await everything()).toEqual(state);
  });
});
