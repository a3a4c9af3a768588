import { once } from "node:events";
import { emptyCheckpoint, type SerializerProtocol } from "@langchain/langgraph-checkpoint";
import { PostgresSaver } from "@langchain/langgraph-checkpoint-postgres";
import pg from "pg";
import { afterEach, expect, test } from "vitest";
import { startScript } from "../testing/child.js";
import { pythonSaverTables } from "../testing/langgraph_tables.js";
import { createMigrationsFolder } from "../testing/migrations_folder.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { isOlder, version } from "../version.js";
import { dryRun, migrate } from "./migrate.js";
import { readMigrationFiles } from "./migration_files.js";

const all = [
  "0001_create_checkpoint_tables",
  "0002_allow_null_blob",
  "0003_add_task_path",
  "0004_add_created_at",
  "0005_record_langgraph_versions",
  "0006_index_checkpoints",
  "0007_create_claims",
  "0008_index_threads",
  "0009_compress_blobs",
  "0010_compress_writes",
];
const newest = "checkpointd_checkpoints_newest_idx";
const latest = "checkpointd_checkpoints_latest_idx";

const cleanups: (() => Promise<unknown>)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

/** An empty database, or a clone of the migrated template, and a pool on it. */
async function setUp(template = false, schema = "public"): Promise<TestDatabase & { sql: Sql }> {
  const database = await createDatabase({ template });
  const options = `-c search_path="${schema.replaceAll(" ", "\\ ")}"`;
  const pool = new pg.Pool({ connectionString: database.url, options, max: 4 });
  pool.on("error", () => {});
  cleanups.push(database.drop, () => pool.end());
  const sql: Sql = async (text, values = []) =>
    (await pool.query({ text, values, rowMode: "array" })).rows;
  return { ...database, sql };
}
// biome-ignore lint/suspicious/noExplicitAny: rows of any statement
type Sql = (text: string, values?: unknown[]) => Promise<any[][]>;

function openSaver(url: string, schema = "public"): PostgresSaver {
  const pool = new pg.Pool({ connectionString: url, max: 2 });
  pool.on("error", () => {});
  cleanups.push(() => pool.end());
  return new PostgresSaver(pool, undefined as unknown as SerializerProtocol, { schema });
}

/** One thread of `count` checkpoints with a channel and a write each. */
async function fill(saver: PostgresSaver, thread: string, count = 3): Promise<void> {
  for (let n = 0; n < count; n += 1) {
    const id = `1ef00000-0000-6000-8000-${String(n).padStart(12, "0")}`;
    const config = { configurable: { thread_id: thread, checkpoint_ns: "", checkpoint_id: id } };
    const checkpoint = {
      ...emptyCheckpoint(),
      id,
      channel_values: { text: `value ${n}` },
      channel_versions: { text: n + 1 },
    };
    const metadata = { source: "loop" as const, step: n, parents: {} };
    await saver.put(config, checkpoint, metadata, { text: n + 1 });
    await saver.putWrites(config, [["text", `write ${n}`]], "task");
  }
}

async function expectFilled(saver: PostgresSaver, thread: string, count = 3): Promise<void> {
  const tuple = await saver.getTuple({ configurable: { thread_id: thread } });
  expect(tuple?.checkpoint.channel_values).toEqual({ text: `value ${count - 1}` });
  expect(tuple?.pendingWrites).toEqual([["task", "text", `write ${count - 1}`]]);
  let listed = 0;
  for await (const _ of saver.list({ configurable: { thread_id: thread } })) listed += 1;
  expect(listed).toBe(count);
}

/** Everything in the catalogs about the schema: changes with any DDL, whatever it does. */
const catalog = (sql: Sql) =>
  sql(`SELECT 'class', oid::text, xmin::text, relname::text FROM pg_class
       WHERE relnamespace = quote_ident(current_schema())::regnamespace
       UNION ALL
       SELECT 'column', attrelid::text, a.xmin::text, attname::text
       FROM pg_attribute a JOIN pg_class c ON c.oid = attrelid
       WHERE relnamespace = quote_ident(current_schema())::regnamespace
       ORDER BY 1, 2, 4`);

const columns = async (sql: Sql) =>
  (
    await sql(`SELECT concat_ws(' ', relname || '.' || attname, format_type(atttypid, atttypmod),
        collname, CASE WHEN attnotnull THEN 'not null' END)
      FROM pg_attribute
      JOIN pg_class c ON c.oid = attrelid AND relkind = 'r' AND attnum > 0
      LEFT JOIN pg_collation l ON l.oid = attcollation
      WHERE relnamespace = quote_ident(current_schema())::regnamespace
      ORDER BY relname, attnum`)
  ).flat();

const ourIndexes = async (sql: Sql) =>
  (
    await sql(`SELECT relname FROM pg_class JOIN pg_index ON indexrelid = oid AND indisvalid
      WHERE relnamespace = quote_ident(current_schema())::regnamespace AND relname LIKE 'checkpointd_checkpoints%'
      ORDER BY 1`)
  ).flat();

const versions = async (sql: Sql) =>
  (await sql("SELECT v FROM checkpoint_migrations ORDER BY v")).flat();
const zeroTo = (last: number) => Array.from({ length: last + 1 }, (_, v) => v);

/** After ours, the JS saver's setup() changes nothing, and Python's would run what is > max(v). */
async function expectNothingLeftForSavers(url: string, sql: Sql, schema = "public") {
  const before = await catalog(sql);
  const recorded = await versions(sql);
  await openSaver(url, schema).setup();
  expect(await catalog(sql)).toEqual(before);
  expect(await versions(sql)).toEqual(recorded);
  expect(Math.max(...recorded)).toBeGreaterThanOrEqual(9);
}

test("an empty database gets LangGraph's tables, keys in byte order; again does nothing", async () => {
  const { url, sql } = await setUp();
  const lines: string[] = [];
  const onProgress = (line: string) => lines.push(line);
  expect(await migrate({ databaseUrl: url, schema: "public", onProgress })).toEqual({
    applied: all,
  });
  expect(lines).toEqual(all.map((name) => `migrating: ${name}`));
  const before = await catalog(sql);
  expect(await migrate({ databaseUrl: url, schema: "public" })).toEqual({ applied: [] });
  expect(await catalog(sql)).toEqual(before);
  expect(await columns(sql)).toMatchInlineSnapshot(`
    [
      "checkpoint_blobs.thread_id text C not null",
      "checkpoint_blobs.checkpoint_ns text C not null",
      "checkpoint_blobs.channel text C not null",
      "checkpoint_blobs.version text C not null",
      "checkpoint_blobs.type text default not null",
      "checkpoint_blobs.blob bytea",
      "checkpoint_migrations.v integer not null",
      "checkpoint_writes.thread_id text C not null",
      "checkpoint_writes.checkpoint_ns text C not null",
      "checkpoint_writes.checkpoint_id text C not null",
      "checkpoint_writes.task_id text C not null",
      "checkpoint_writes.idx integer not null",
      "checkpoint_writes.channel text C not null",
      "checkpoint_writes.type text default",
      "checkpoint_writes.blob bytea not null",
      "checkpoint_writes.task_path text default not null",
      "checkpointd_claims.thread_id text C not null",
      "checkpointd_claims.owner text default not null",
      "checkpointd_claims.token text default not null",
      "checkpointd_claims.expires_at timestamp with time zone not null",
      "checkpointd_migrations.id integer not null",
      "checkpointd_migrations.name character varying(255) default not null",
      "checkpointd_migrations.run_on timestamp without time zone not null",
      "checkpointd_migrations.safe boolean not null",
      "checkpointd_migrations.min_server text default",
      "checkpoints.thread_id text C not null",
      "checkpoints.checkpoint_ns text C not null",
      "checkpoints.checkpoint_id text C not null",
      "checkpoints.parent_checkpoint_id text C",
      "checkpoints.type text default",
      "checkpoints.checkpoint jsonb not null",
      "checkpoints.metadata jsonb not null",
      "checkpoints.created_at timestamp with time zone not null",
    ]
  `);
  expect(await ourIndexes(sql)).toEqual([newest]);
  expect(await versions(sql)).toEqual(zeroTo(9));
  await expectNothingLeftForSavers(url, sql);
});

test("the direct JS saver works on our tables, by index", async () => {
  const { url, sql } = await setUp(true);
  const saver = openSaver(url);
  await fill(saver, "t");
  await expectFilled(saver, "t");
  await expectIndexScans(saver, sql);
  await saver.deleteThread("t");
  expect(await saver.getTuple({ configurable: { thread_id: "t" } })).toBeUndefined();
});

async function expectIndexScans(saver: PostgresSaver, sql: Sql) {
  const { SELECT_SQL } = (saver as unknown as { SQL_STATEMENTS: { SELECT_SQL: string } })
    .SQL_STATEMENTS;
  await sql(`INSERT INTO checkpoint_blobs (thread_id, channel, version, type)
    SELECT 't', 'c' || n % 10, n, 'empty' FROM generate_series(1, 5000) AS n`);
  await sql("ANALYZE");
  // So few rows would be scanned whole; that an index can be used at all is the question.
  const where = "WHERE thread_id = 't' AND checkpoint_ns = '' ORDER BY checkpoint_id DESC LIMIT 1";
  const text = `SET enable_seqscan = off; SET enable_bitmapscan = off;
    SET enable_hashjoin = off; SET enable_mergejoin = off;
    SET enable_material = off; EXPLAIN (COSTS off) ${SELECT_SQL} ${where}`;
  const client = new pg.Client({
    connectionString: (saver as unknown as HasPool).pool.options.connectionString,
  });
  await client.connect();
  const results = (await client.query(text)) as unknown as { rows: object[] }[];
  await client.end();
  const plan = results
    .at(-1)
    ?.rows.map((row) => Object.values(row)[0])
    .join("\n");
  expect(plan).not.toContain("Seq Scan");
  expect(plan).toMatch(
    /Index Scan.* using checkpoint_blobs_pkey.*\n.*Index Cond: .*thread_id.*checkpoint_ns.*channel.*version/,
  );
  expect(plan).toMatch(
    /Index Scan.* using checkpoint_writes_pkey.*\n.*Index Cond: .*thread_id.*checkpoint_ns.*checkpoint_id/,
  );
  expect(plan).toMatch(
    /Index Scan.* using checkpoints_pkey.*\n.*Index Cond: .*thread_id.*checkpoint_ns/,
  );
}
type HasPool = { pool: { options: { connectionString: string } } };

test("a database of the JS saver is adopted with its data", async () => {
  const { url, sql } = await setUp();
  const saver = openSaver(url);
  await saver.setup();
  await fill(saver, "t");
  expect(await versions(sql)).toEqual(zeroTo(4));
  expect((await migrate({ databaseUrl: url, schema: "public" })).applied).toEqual(all);
  expect(await ourIndexes(sql)).toEqual([latest, newest]);
  expect(await versions(sql)).toEqual(zeroTo(9));
  expect(await sql("SELECT count(*)::int, count(created_at)::int FROM checkpoints")).toEqual([
    [3, 3],
  ]);
  expect(await sql("SELECT DISTINCT task_path FROM checkpoint_writes")).toEqual([[""]]);
  await expectFilled(saver, "t");
  await expectIndexScans(saver, sql);
  await expectNothingLeftForSavers(url, sql);
  await fill(saver, "later");
  await expectFilled(saver, "later");
});

test("a JS saver's setup() cut short after its first table is completed in its collation", async () => {
  const { url, sql } = await setUp();
  const saver = openSaver(url);
  await saver.setup();
  await sql("DROP TABLE checkpoint_writes");
  await sql("DELETE FROM checkpoint_migrations WHERE v > 2");
  await migrate({ databaseUrl: url, schema: "public" });
  expect(
    await sql(`SELECT DISTINCT collname FROM pg_attribute a JOIN pg_collation l ON l.oid = attcollation
      WHERE attrelid = 'checkpoint_writes'::regclass`),
  ).toEqual([["default"]]);
  await expectNothingLeftForSavers(url, sql);
  await fill(saver, "t");
  await expectFilled(saver, "t");
});

test.each([
  ["the Python saver", 9],
  ["a later Python saver", 10],
])("a database of %s (0 to %i) is adopted with its data", async (_, last) => {
  const { url, sql } = await setUp();
  for (const statement of pythonSaverTables) await sql(statement);
  if (last === 10) {
    await sql("ALTER TABLE checkpoints ADD COLUMN of_the_future text");
    await sql("INSERT INTO checkpoint_migrations VALUES (10)");
  }
  await sql(`INSERT INTO checkpoints (thread_id, checkpoint_id, checkpoint) VALUES
    ('t', '1f0', '{"v":4,"channel_versions":{"messages":"00000000000000000000000000000002.0.1"}}')`);
  await sql(`INSERT INTO checkpoint_blobs VALUES
    ('t', '', 'messages', '00000000000000000000000000000002.0.1', 'empty', NULL)`);
  await sql(`INSERT INTO checkpoint_writes VALUES
    ('t', '', '1f0', 'task', -3, '__interrupt__', 'msgpack', '\\x00', '~__pregel_pull, node')`);
  expect((await migrate({ databaseUrl: url, schema: "public" })).applied).toEqual(all);
  expect(await versions(sql)).toEqual(zeroTo(last));
  expect(await ourIndexes(sql)).toEqual([latest, newest]);
  expect(await sql("SELECT task_path FROM checkpoint_writes")).toEqual([["~__pregel_pull, node"]]);
  expect(await sql("SELECT checkpoint->'v', created_at <= now() FROM checkpoints")).toEqual([
    [4, true],
  ]);
  expect(await sql("SELECT type, blob FROM checkpoint_blobs")).toEqual([["empty", null]]);
  await expectNothingLeftForSavers(url, sql);
});

test("8 processes at once on an empty database: each migration runs once, all succeed", async () => {
  const { url, sql } = await setUp();
  const runs = await Promise.all(
    Array.from({ length: 8 }, () => startScript("migrate_once.ts", [url, "agents"])),
  );
  for (const { child } of runs) {
    if (child.exitCode === null) await once(child, "exit");
    expect(child.exitCode).toBe(0);
  }
  expect(runs.flatMap(({ line }) => JSON.parse(line)).sort()).toEqual(all);
  expect(await sql("SELECT name FROM agents.checkpointd_migrations ORDER BY id")).toEqual(
    all.map((name) => [name]),
  );
});

test("8 calls at once on tables of the JS saver, while it sets up and writes", async () => {
  const { url, sql } = await setUp();
  const saver = openSaver(url);
  await saver.setup();
  let writing = true;
  let written = 0;
  const writer = (async () => {
    while (writing) await fill(saver, `t${written++}`, 1);
  })();
  const runs = await Promise.all(
    Array.from({ length: 8 }, () => migrate({ databaseUrl: url, schema: "public" })),
  );
  writing = false;
  await writer;
  expect(runs.flatMap(({ applied }) => applied)).toEqual(all);
  expect(await ourIndexes(sql)).toEqual([latest, newest]);
  expect(await sql("SELECT count(*)::int FROM checkpoints")).toEqual([[written]]);
  expect(await sql("SELECT count(*)::int FROM checkpoint_writes")).toEqual([[written]]);
});

test("a JS setup() at the same moment on an empty database does not make ours fail", async () => {
  for (let round = 0; round < 5; round += 1) {
    const { url, sql } = await setUp();
    // The saver's own setup() may lose such a race with anyone, and is then called again.
    const setup = openSaver(url);
    const [ours] = await Promise.allSettled([
      migrate({ databaseUrl: url, schema: "public" }),
      setup.setup(),
    ]);
    expect(ours.status).toBe("fulfilled");
    await setup.setup();
    expect(
      await sql(`SELECT count(DISTINCT attcollation)::int FROM pg_attribute
        WHERE attrelid IN ('checkpoints'::regclass, 'checkpoint_blobs'::regclass,
          'checkpoint_writes'::regclass) AND attname = 'thread_id'`),
    ).toEqual([[1]]);
    await fill(setup, "t");
    await expectFilled(setup, "t");
    await expectNothingLeftForSavers(url, sql);
  }
});

test("a named schema holds everything, whatever its name", async () => {
  const schema = "Agents of Zürich";
  const { url, sql } = await setUp(false, schema);
  expect((await migrate({ databaseUrl: url, schema })).applied).toEqual(all);
  expect(
    await sql("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"),
  ).toEqual([]);
  const saver = openSaver(url, schema);
  await fill(saver, "t");
  await expectFilled(saver, "t");
  await expectNothingLeftForSavers(url, sql, schema);
  expect((await migrate({ databaseUrl: url, schema: "another" })).applied).toEqual(all);
});

test.each([
  ["", "1 to 63 bytes"],
  ["é".repeat(32), "this one has 64"],
  ['a"b', "quotes"],
  ["a'b", "quotes"],
  ["a\u0000b", "control characters"],
  ["a\u202eb", "writing direction"],
  ["a\u2028b", "control characters"],
  ["pg_agents", "belongs to Postgres"],
  ["information_schema", "belongs to Postgres"],
])("schema name %j is refused", async (schema, text) => {
  await expect(migrate({ databaseUrl: "postgres://127.0.0.1:1/x", schema })).rejects.toThrow(text);
  await expect(dryRun({ databaseUrl: "postgres://127.0.0.1:1/x", schema })).rejects.toThrow(text);
});

test("a role that may not create schemas migrates a schema it may create tables in", async () => {
  const { url, sql } = await setUp();
  const role = `role_${Math.random().toString(36).slice(2)}`;
  await sql(`CREATE ROLE ${role} LOGIN PASSWORD 'x'`);
  cleanups.unshift(() => sqlOnServer(url, `DROP ROLE ${role}`));
  await sql("REVOKE CREATE ON SCHEMA public FROM PUBLIC");
  await sql("CREATE SCHEMA granted");
  await sql(`GRANT USAGE, CREATE ON SCHEMA granted TO ${role}`);
  const limited = new URL(url);
  limited.username = role;
  limited.password = "x";
  const databaseUrl = limited.href;
  expect((await migrate({ databaseUrl, schema: "granted" })).applied).toEqual(all);
  expect((await migrate({ databaseUrl, schema: "granted" })).applied).toEqual([]);
  await expect(migrate({ databaseUrl, schema: "public" })).rejects.toMatchObject({ code: "42501" });
  await expect(migrate({ databaseUrl, schema: "missing" })).rejects.toMatchObject({
    code: "42501",
  });
  // A schema somebody else has migrated: to read its bookkeeping is enough to find it so.
  await migrate({ databaseUrl: url, schema: "theirs" });
  await sql(`GRANT USAGE ON SCHEMA theirs TO ${role}`);
  await sql(`GRANT SELECT ON theirs.checkpointd_migrations TO ${role}`);
  expect((await migrate({ databaseUrl, schema: "theirs" })).applied).toEqual([]);
});

async function sqlOnServer(url: string, text: string) {
  const server = new URL(url);
  server.pathname = "/postgres";
  const client = new pg.Client({ connectionString: server.href });
  await client.connect();
  await client.query(text);
  await client.end();
}

test("a dry run prints the SQL and changes nothing; that SQL does what migrate does", async () => {
  const { url, sql } = await setUp();
  const script = await dryRun({ databaseUrl: url, schema: "agents" });
  expect(await sql("SELECT 1 FROM pg_namespace WHERE nspname = 'agents'")).toEqual([]);
  expect(script).toMatch(/^CREATE SCHEMA IF NOT EXISTS "agents";\nSET search_path TO "agents";\n/);
  for (const name of all) expect(script).toContain(`-- ${name}\n`);

  const client = new pg.Client({ connectionString: url });
  await client.connect();
  // As psql would: what stands outside a transaction is sent one statement at a time.
  for (const part of script.split(/^(?=-- \d{4}_)/m)) {
    if (part.includes("BEGIN;")) await client.query(part);
    else
      for (const line of part.split("\n"))
        if (line && !line.startsWith("--")) await client.query(line);
  }
  await client.end();
  expect(await dryRun({ databaseUrl: url, schema: "agents" })).toBe("");
  expect((await migrate({ databaseUrl: url, schema: "agents" })).applied).toEqual([]);
  await migrate({ databaseUrl: url, schema: "other" });
  const shape = (schema: string) =>
    sql(
      `SELECT relname, attname, atttypid, attcollation, attnotnull FROM pg_attribute
      JOIN pg_class c ON c.oid = attrelid WHERE relnamespace = $1::regnamespace AND attnum > 0
      ORDER BY 1, 2`,
      [schema],
    );
  expect(await shape("agents")).toEqual(await shape("other"));
});

test("a dry run on an adopted database names the second index, too, and changes nothing", async () => {
  const { url, sql } = await setUp();
  await openSaver(url).setup();
  const before = await catalog(sql);
  const script = await dryRun({ databaseUrl: url, schema: "public" });
  expect(script).toContain(`CREATE INDEX CONCURRENTLY IF NOT EXISTS ${latest}`);
  expect(script).not.toContain("CREATE SCHEMA");
  expect(await catalog(sql)).toEqual(before);
});

test("an index that an interrupted build left invalid is dropped and built again", async () => {
  const { url, sql } = await setUp();
  const saver = openSaver(url);
  await saver.setup();
  await fill(saver, "t");
  // Fails on the second row and leaves an invalid index of that name behind.
  const broken = `CREATE UNIQUE INDEX CONCURRENTLY ${newest} ON checkpoints ((1))`;
  await expect(sql(broken)).rejects.toMatchObject({ code: "23505" });
  expect(
    await sql(`SELECT indisvalid FROM pg_index WHERE indexrelid = '${newest}'::regclass`),
  ).toEqual([[false]]);
  await migrate({ databaseUrl: url, schema: "public" });
  expect(await ourIndexes(sql)).toEqual([latest, newest]);
  expect(
    await sql(`SELECT indisunique FROM pg_index WHERE indexrelid = '${newest}'::regclass`),
  ).toEqual([[false]]);
});

test("an index build that is cut off is completed by the next run", async () => {
  const { url, sql } = await setUp(true);
  await fill(openSaver(url), "t");
  await sql(`DROP INDEX ${newest}`);
  await sql("DELETE FROM checkpointd_migrations WHERE name >= '0006'");
  // The build waits for this transaction, which writes without knowing of the index.
  const holder = new pg.Client({ connectionString: url });
  await holder.connect();
  await holder.query("BEGIN; UPDATE checkpoints SET metadata = metadata");
  const abort = new AbortController();
  const run = migrate({ databaseUrl: url, schema: "public", signal: abort.signal });
  const ended = expect(run).rejects.toThrow("draining");
  const waiting = `SELECT 1 FROM pg_stat_activity WHERE datname = current_database()
    AND wait_event_type = 'Lock' AND query LIKE 'CREATE INDEX CONCURRENTLY%'`;
  while ((await sql(waiting)).length === 0);
  abort.abort(new Error("draining"));
  await ended;
  await holder.end();
  expect(await sql("SELECT indisvalid FROM pg_index WHERE NOT indisvalid")).toEqual([[false]]);
  expect((await migrate({ databaseUrl: url, schema: "public" })).applied).toEqual(
    all.filter((name) => name >= "0006"),
  );
  expect(await ourIndexes(sql)).toEqual([newest]);
});

test("a transaction that keeps a table longer than our lock timeout only delays us", async () => {
  const { url, sql } = await setUp();
  await openSaver(url).setup();
  const holder = new pg.Client({ connectionString: url });
  await holder.connect();
  await holder.query("BEGIN; SELECT 1 FROM checkpoints");
  const onProgress = (line: string) => {
    if (line.includes("lock timeout")) void holder.query("COMMIT");
  };
  const { applied } = await migrate({ databaseUrl: url, schema: "public", onProgress });
  expect(applied).toEqual(all);
  await holder.end();
  await expectNothingLeftForSavers(url, sql);
});

test("waiting for another migrating process has a bound and an end by signal", async () => {
  const { url, sql } = await setUp();
  const holder = new pg.Client({ connectionString: url });
  await holder.connect();
  await holder.query("SELECT pg_advisory_lock(hashtextextended('checkpointd migrate public', 0))");
  await expect(migrate({ databaseUrl: url, schema: "public", lockWaitMs: 300 })).rejects.toThrow(
    "another process has been migrating schema public for 0.3 s",
  );
  const abort = new AbortController();
  const run = migrate({
    databaseUrl: url,
    schema: "public",
    signal: abort.signal,
    onProgress: () => abort.abort(new Error("draining")),
  });
  await expect(run).rejects.toThrow("draining");
  // Neither left a session behind, and another schema is not kept waiting.
  expect((await migrate({ databaseUrl: url, schema: "other" })).applied).toEqual(all);
  await holder.end();
  expect((await migrate({ databaseUrl: url, schema: "public" })).applied).toEqual(all);
  const sessions =
    "SELECT 1 FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid() AND query LIKE '%advisory%'";
  expect(await sql(sessions)).toEqual([]);
});

test("values are compressed with lz4 where the server has it and nobody chose otherwise", async () => {
  const { url, sql } = await setUp();
  await openSaver(url).setup();
  await sql("ALTER TABLE checkpoint_writes ALTER COLUMN blob SET COMPRESSION pglz");
  await migrate({ databaseUrl: url, schema: "public" });
  const [[isWanted]] = (await sql(
    `SELECT setting <> 'lz4' AND 'lz4' = ANY (enumvals) FROM pg_settings
     WHERE name = 'default_toast_compression'`,
  )) as [[boolean]];
  const chosen = await sql(
    `SELECT attrelid::regclass::text, attcompression::text FROM pg_attribute
     WHERE attname = 'blob' AND attrelid IN ('checkpoint_blobs'::regclass, 'checkpoint_writes'::regclass)
     ORDER BY 1`,
  );
  expect(chosen).toEqual([
    ["checkpoint_blobs", isWanted ? "l" : ""],
    ["checkpoint_writes", "p"],
  ]);
});

test("of several hosts the one is migrated that can be reached and takes writes", async () => {
  const { url, sql } = await setUp();
  await sql(`DO $$ BEGIN EXECUTE format(
    'ALTER DATABASE %I SET default_transaction_read_only = on', current_database()); END $$`);
  const other = await setUp();
  const { host, pathname } = new URL(url);
  const readOnly = url.replace(host, `127.0.0.1:1,${host}`);
  await expect(migrate({ databaseUrl: readOnly, schema: "public" })).rejects.toMatchObject({
    code: "25006",
  });
  const both = `${other.url.replace(host, `127.0.0.1:1,${host}`)}?target_session_attrs=read-write`;
  expect(new URL(other.url).pathname).not.toBe(pathname);
  expect((await migrate({ databaseUrl: both, schema: "public" })).applied).toEqual(all);
});

test("each migration says which servers can go on, and it is recorded with it", async () => {
  const { url, sql } = await setUp();
  const files = await readMigrationFiles();
  for (const { name, text, minServer } of files) {
    expect(text.split("\n")[0], name).toMatch(
      /^-- (safe|breaking before \d+\.\d+\.\d+): (.* on \w+ |.* on \w+$|creates what is missing)/,
    );
    // One that no version before its own can serve beside takes a service that stands still.
    if (minServer !== null) expect(isOlder(version(), minServer), name).toBe(false);
  }
  await migrate({ databaseUrl: url, schema: "public" });
  const recorded = "SELECT name, safe, min_server FROM checkpointd_migrations ORDER BY id";
  expect(await sql(recorded)).toEqual(
    files.map(({ name, minServer }) => [name, minServer === null, minServer]),
  );
});

test("a breaking migration is recorded with the version it takes, by a dry run too", async () => {
  const folder = await createMigrationsFolder();
  cleanups.push(folder.remove);
  await folder.add("0901_break", "-- breaking before 0.12.0: no lock\nSELECT 1;\n");
  await folder.add("0902_go_on", "-- safe: no lock\nSELECT 1;\n");
  await folder.add("0903_break", "-- breaking before 1.0.0: no lock\nSELECT 1;\n");
  const expected = [
    ["0901_break", false, "0.12.0"],
    ["0902_go_on", true, null],
    ["0903_break", false, "1.0.0"],
  ];
  const recorded =
    "SELECT name, safe, min_server FROM checkpointd_migrations WHERE name > '09' ORDER BY id";
  const { dir } = folder;

  // Over the bookkeeping as each version has left it.
  for (const column of ["min_server", "safe", "neither"]) {
    const { url, sql } = await setUp(true);
    const target = { databaseUrl: url, schema: "public", dir };
    if (column === "neither") {
      await sql("ALTER TABLE checkpointd_migrations DROP COLUMN safe, DROP COLUMN min_server");
    } else if (column === "safe") {
      await sql("ALTER TABLE checkpointd_migrations DROP COLUMN min_server");
    }
    const script = await dryRun(target);
    const { applied } = await migrate(target);
    expect(applied).toEqual(expected.map(([name]) => name));
    expect(await sql(recorded)).toEqual(expected);
    expect(await sql("SELECT name FROM checkpointd_migrations WHERE NOT safe")).toHaveLength(2);
    expect(await dryRun(target)).toBe("");

    const printed = await setUp(true);
    if (column === "neither") {
      await printed.sql(
        "ALTER TABLE checkpointd_migrations DROP COLUMN safe, DROP COLUMN min_server",
      );
    } else if (column === "safe") {
      await printed.sql("ALTER TABLE checkpointd_migrations DROP COLUMN min_server");
    }
    expect(script).toContain("-- breaking before 0.12.0: ");
    const client = new pg.Client({ connectionString: printed.url });
    await client.connect();
    await client.query(script);
    await client.end();
    expect(await printed.sql(recorded)).toEqual(expected);
    expect(await dryRun({ ...target, databaseUrl: printed.url })).toBe("");
  }
});

test("where nothing is to be told, the bookkeeping of an earlier version stays as it is", async () => {
  const { url, sql } = await setUp(true);
  await sql("ALTER TABLE checkpointd_migrations DROP COLUMN min_server");
  const before = await catalog(sql);
  expect(await migrate({ databaseUrl: url, schema: "public" })).toEqual({ applied: [] });
  expect(await dryRun({ databaseUrl: url, schema: "public" })).toBe("");
  expect(await catalog(sql)).toEqual(before);
});

test.each(["", "-- breaking: DROP TABLE", "-- breaking before 1.0: x", "-- Safe: x", "SELECT 1;"])(
  "a migration that begins with %j is refused",
  async (first) => {
    const folder = await createMigrationsFolder(1);
    cleanups.push(folder.remove);
    await folder.add("0002_mute", `${first}\nSELECT 1;\n`);
    const { url, sql } = await setUp();
    const target = { databaseUrl: url, schema: "public", dir: folder.dir };
    await expect(migrate(target)).rejects.toThrow("migration 0002_mute: its first line begins");
    await expect(dryRun(target)).rejects.toThrow("migration 0002_mute: its first line begins");
    expect(await catalog(sql)).toEqual([]);
  },
);
