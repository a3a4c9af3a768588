import { randomBytes } from "node:crypto";
import { PostgresSaver } from "@langchain/langgraph-checkpoint-postgres";
import pg from "pg";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import { createDatabase, openPool, type TestDatabase } from "../testing/postgres.js";
import { distribute } from "./distribute.js";
import { migrate } from "./migrate.js";
import { BOOKKEEPING } from "./migration_files.js";

async function withSql<T>(url: string, use: (sql: pg.Client) => Promise<T>): Promise<T> {
  const sql = new pg.Client({ connectionString: url });
  await sql.connect();
  try {
    return await use(sql);
  } finally {
    await sql.end();
  }
}

describe("on plain Postgres", () => {
  let database: TestDatabase;
  beforeAll(async () => {
    database = await createDatabase();
  });
  afterAll(() => database?.drop());
  const attempt = (schema: string) => distribute({ databaseUrl: database.url, schema });

  it("names what is missing, and changes nothing", async () => {
    await expect(attempt("public")).rejects.toThrow("this database has no Citus");
    await expect(attempt("elsewhere")).rejects.toThrow(
      "no schema elsewhere: name the one of the tables with --schema",
    );
    await withSql(database.url, (sql) => sql.query("create schema empty"));
    await expect(attempt("empty")).rejects.toThrow("the schema empty has no tables of checkpointd");
    await expect(attempt("")).rejects.toThrow("1 to 63 bytes");
    await withSql(database.url, async (sql) => {
      await sql.query(`delete from ${BOOKKEEPING} where name = '0010_compress_writes'`);
      await expect(attempt("public")).rejects.toThrow(
        "are older than this version (without 0010_compress_writes): run checkpointd migrate first",
      );
      await sql.query(`alter table checkpoint_blobs alter thread_id type text collate "default"`);
    });
    await migrate({ databaseUrl: database.url, schema: "public" });
    await expect(attempt("public")).rejects.toThrow(
      "checkpoint_blobs of schema public were made by a direct saver",
    );
  });
});

const citusUrl = process.env.CITUS_URL;

// Skipped where CITUS_URL names no coordinator to try it on.
describe.runIf(citusUrl)("on Citus (CITUS_URL)", () => {
  const databaseUrl = citusUrl as string;
  const schema = `test_${randomBytes(6).toString("hex")}`;
  const target = { databaseUrl, schema };
  const options = { connectionString: databaseUrl, options: `-c search_path=${schema}` };
  let sql: pg.Client;
  beforeAll(async () => {
    sql = new pg.Client(options);
    sql.on("error", () => {});
    await sql.connect();
    await migrate(target);
  });
  afterAll(async () => {
    await sql?.query(`drop schema if exists ${schema} cascade`);
    await sql?.end();
  });

  it("keeps what is stored, once, and does nothing the second time", {
    timeout: 60_000,
  }, async () => {
    await sql.query(
      `insert into checkpoints (thread_id, checkpoint_id, checkpoint)
       select 'thread-' || i, 'c', '{}' from generate_series(1, 100) as i`,
    );
    const both = await Promise.all([distribute(target), distribute(target)]);
    expect(both.map(({ distributed }) => distributed.length).sort()).toEqual([0, 4]);
    expect(await distribute(target)).toEqual({ distributed: [] });
    const { rows } = await sql.query("select count(*)::int as all from checkpoints");
    expect(rows[0].all).toBe(100);
    const { rows: places } = await sql.query(
      `select count(distinct colocationid)::int as places, count(*)::int as tables
       from pg_dist_partition join pg_class on oid = logicalrelid
       where relnamespace = $1::regnamespace`,
      [schema],
    );
    expect(places).toEqual([{ places: 1, tables: 4 }]);
    const { rows: local } = await sql.query("select pg_relation_size('checkpoints') as bytes");
    expect(Number(local[0].bytes)).toBe(0);
  });

  it("lets every migration run again on distributed tables", { timeout: 60_000 }, async () => {
    await sql.query(`delete from ${BOOKKEEPING} where name > '0002'`);
    await sql.query("drop index checkpointd_runs_idx");
    const { applied } = await migrate(target);
    expect(applied.length).toBeGreaterThan(8);
    expect(await migrate(target)).toEqual({ applied: [] });
  });

  it("makes functions anew that a newer version would call", { timeout: 60_000 }, async () => {
    const { rows } = await sql.query(
      `select oid::regprocedure::text as name from pg_proc
       where pronamespace = $1::regnamespace and proname like 'checkpointd_%'`,
      [schema],
    );
    expect(rows).toHaveLength(3);
    for (const { name } of rows) await sql.query(`drop function ${name}`);
    await migrate(target);
    const { rows: again } = await sql.query(
      "select 1 from pg_proc where pronamespace = $1::regnamespace and proname like 'checkpointd_%'",
      [schema],
    );
    expect(again).toHaveLength(3);
  });

  it("is seen by each pool, of its own schema only", async () => {
    const plain = `${schema}_plain`;
    await migrate({ databaseUrl, schema: plain });
    const db = openPool(databaseUrl, { schema });
    await db.run("select 1", []);
    expect([...db.distributed]).toContain(`"${schema}"`);
    expect([...db.distributed]).not.toContain(`"${plain}"`);
    const [[mode = null] = []] = await db.run("show plan_cache_mode", []);
    expect(String(mode)).toBe("force_custom_plan");
    await db.close(1000);
    await sql.query(`drop schema ${plain} cascade`);
  });

  it("refuses tables of a direct saver", async () => {
    const other = `${schema}_direct`;
    await sql.query(`create schema ${other}`);
    const saver = PostgresSaver.fromConnString(databaseUrl, { schema: other });
    await saver.setup();
    await saver.end();
    await migrate({ databaseUrl, schema: other });
    await expect(distribute({ databaseUrl, schema: other })).rejects.toThrow('other than "C"');
    await sql.query(`drop schema ${other} cascade`);
  });
});
