import { setTimeout as sleep } from "node:timers/promises";
import { type MigrationBuilder, type RunnerOption, runner } from "node-pg-migrate";
import type pg from "pg";
import { newClient, withClient } from "./client.js";
import { keepDistributed } from "./distribute.js";
import {
  BOOKKEEPING,
  findMigrationsDir,
  type MigrationFile,
  readMigrationFile,
  readMigrationFiles,
} from "./migration_files.js";
import { sharesSessions } from "./pooler.js";
import { checkSchemaName, quoteSchema } from "./schema_name.js";
import { toStatements } from "./statements.js";

/**
 * node-pg-migrate's table as it would make it, made here because its errors lose their code, and
 * with two columns that tell an older server whether it can go on beside the migration: `safe`, and
 * from which version on where it is not (`min_server`). The second alone would do, were there no
 * servers that look for the first only, and refuse to go on where it is not true.
 */
const createBookkeeping = (schema: string) =>
  `CREATE TABLE IF NOT EXISTS ${quoteSchema(schema)}.${BOOKKEEPING} (id serial PRIMARY KEY, name varchar(255) NOT NULL, run_on timestamp NOT NULL, safe boolean NOT NULL DEFAULT false, min_server text)`;
const addColumns = (schema: string) =>
  `ALTER TABLE ${quoteSchema(schema)}.${BOOKKEEPING} ADD COLUMN IF NOT EXISTS safe boolean NOT NULL DEFAULT false, ADD COLUMN IF NOT EXISTS min_server text`;
/** As SQL. The files were read strictly: there is nothing to escape. */
const toLiteral = (minServer: string | null) => (minServer === null ? "NULL" : `'${minServer}'`);
const correct = (schema: string, misrecorded: readonly MigrationFile[]) => {
  const rows = misrecorded.map(
    ({ name, minServer }) => `('${name}', ${minServer === null}, ${toLiteral(minServer)}::text)`,
  );
  return `UPDATE ${quoteSchema(schema)}.${BOOKKEEPING} AS recorded SET safe = file.safe, min_server = file.min_server FROM (VALUES ${rows.join(", ")}) AS file (name, safe, min_server) WHERE recorded.name = file.name`;
};
const LOCK_WAIT_MS = 600_000;
const TRIES = 10;
/**
 * What a direct saver's setup() or its traffic can make us run into, gone at the next try: two
 * CREATE … IF NOT EXISTS at once (23505, 42P06, 42P07, 42710, XX000 "tuple concurrently
 * updated"), a deadlock (40P01), and a lock_timeout of ours behind a long statement (55P03).
 */
const PASSING = new Set(["23505", "42P06", "42P07", "42710", "XX000", "40P01", "55P03"]);

/** Where to migrate. */
export interface Target {
  /**
   * A postgres:// URL, of one host or several, of a direct connection: a transaction pooler cannot
   * hold the lock. Through one, all that works is to find that there is nothing to do.
   */
  databaseUrl: string;
  /** The schema of LangGraph's tables, created when it does not exist. */
  schema: string;
  /** The folder of the migrations; this package's unless given. */
  dir?: string;
  /** Gives up when it aborts: the running statement is cancelled, its migration undone. */
  signal?: AbortSignal;
}

/** What `migrate` takes besides. */
export interface MigrateOptions extends Target {
  /** Receives one line for each step. */
  onProgress?: (line: string) => void;
  /** How long to wait for another process that is migrating, in ms; 10 minutes by default. */
  lockWaitMs?: number;
}

/**
 * Brings the schema's tables up to date and answers the names of the migrations it applied, in
 * order: none when there was nothing to do.
 *
 * Safe to call again and from any number of processes at once: one migrates, the others wait
 * for it. Each migration is applied whole or not at all (an index build that was cut short is
 * repeated). Rows of the direct JS and Python savers are kept, and their setup() finds nothing
 * left to do. Needs CREATE in the schema and, on tables that exist, their ownership; CREATE on
 * the database only if the schema is missing; and when there is nothing to do, SELECT on
 * `checkpointd_migrations`.
 *
 * Throws the connection's error when the database is out of reach (after 10 s at the most) and
 * Postgres' error when it refuses, an error naming the wait when the lock is not
 * obtained in time, and the signal's reason when it aborts.
 */
export async function migrate(options: MigrateOptions): Promise<{ applied: string[] }> {
  const { signal, onProgress = () => {} } = options;
  checkSchemaName(options.schema);
  const applied: string[] = [];
  for (let tries = 1; ; tries += 1) {
    try {
      await withClient(options, async (client, url) => {
        await migrateOnce(client, url, options, applied, onProgress);
        await keepDistributed(client, options.schema);
      });
      return { applied };
    } catch (error) {
      signal?.throwIfAborted();
      const code = (error as { code?: string }).code ?? "";
      if (tries >= TRIES || !PASSING.has(code)) throw error;
      onProgress(`trying again: ${(error as Error).message}`);
      const pause = 100 * tries + 100 * Math.random();
      await sleep(pause, undefined, signal ? { signal } : {}).catch(() => {});
      signal?.throwIfAborted();
    }
  }
}

/**
 * The SQL that `migrate` would run now, as a script for psql, without running any of it. Empty
 * text when there is nothing to do. Reads only, in a read-only transaction.
 */
export async function dryRun(target: Target): Promise<string> {
  checkSchemaName(target.schema);
  return withClient(target, async (client) => {
    await client.query("BEGIN READ ONLY");
    const pending = await findPending(client, target);
    if (pending.files.length === 0 && pending.misrecorded.length === 0) return "";
    const schema = quoteSchema(target.schema);
    const script: string[] = [];
    if (!pending.hasSchema) script.push(`CREATE SCHEMA IF NOT EXISTS ${schema};`);
    script.push(`SET search_path TO ${schema};`);
    if (!pending.hasBookkeeping) script.push(`${createBookkeeping(target.schema)};`);
    else if (!pending.hasColumns) script.push(`${addColumns(target.schema)};`);
    if (pending.misrecorded.length > 0) {
      script.push(`${correct(target.schema, pending.misrecorded)};`);
    }
    await client.query(`SET LOCAL search_path TO ${schema}`);
    for (const { name, text, inTransaction, minServer } of pending.files) {
      const record = `INSERT INTO ${BOOKKEEPING} (name, run_on, safe, min_server) VALUES ('${name}', now(), ${minServer === null}, ${toLiteral(minServer)});`;
      script.push(`\n-- ${name}`);
      if (inTransaction) {
        script.push("BEGIN;", text.trim(), record, "COMMIT;");
      } else {
        const comment = text.split("\n").filter((line) => line.startsWith("--"));
        const { rows } = await client.query<[string]>({ text, rowMode: "array" });
        script.push(...comment, ...rows.map(([statement]) => `${statement};`), record);
      }
    }
    return `${script.join("\n")}\n`;
  });
}

async function migrateOnce(
  client: pg.Client,
  url: string,
  target: MigrateOptions,
  applied: string[],
  onProgress: (line: string) => void,
): Promise<void> {
  const { schema, dir = findMigrationsDir(), lockWaitMs = LOCK_WAIT_MS, signal } = target;
  // The usual start: nothing to do, no lock taken, no privilege needed but to read.
  const before = await findPending(client, target);
  if (before.files.length === 0) return correctRecords(client, schema, before);
  if (await sharesSessions(client, () => newClient(url))) {
    throw new Error(
      `schema ${schema} needs ${before.files.map(({ name }) => name).join(", ")}, and migrations do not work through a transaction pooler such as PgBouncer: give checkpointd migrate the URL of Postgres itself, then serve through the pooler with --no-prepare`,
    );
  }
  await client.query("SET statement_timeout = 0");
  await takeLock(client, schema, lockWaitMs, onProgress, signal);
  const pending = await findPending(client, target);
  const { files, hasSchema, hasBookkeeping } = pending;
  if (files.length === 0) return;
  // Not the runner's createSchema: it issues the statement for a schema that exists, too, which
  // Postgres refuses to a role that may not create schemas.
  if (!hasSchema) await client.query(`CREATE SCHEMA IF NOT EXISTS ${quoteSchema(schema)}`);
  if (!hasBookkeeping) await client.query(createBookkeeping(schema));
  else await correctRecords(client, schema, pending);
  const silent = () => {};
  const options: RunnerOption = {
    dbClient: client,
    dir,
    ignorePattern: "(?!\\d{4}_\\w+\\.sql).*",
    direction: "up",
    migrationsTable: BOOKKEEPING,
    schema,
    // One transaction each: what succeeded stays, and CONCURRENTLY can stand between them.
    singleTransaction: false,
    noLock: true,
    logger: { info: silent, warn: silent, error: silent },
    migrationLoaderStrategies: [
      { extensions: [".sql"], loader: (paths) => loadMigrations(paths, onProgress) },
    ],
    count: 1,
  };
  // One at a time: the runner does not tell what it had applied when a later one fails.
  for (const file of files) {
    await recordAs(client, schema, file);
    const [done] = await runner(options);
    if (done === undefined) return;
    applied.push(done.name);
  }
}

/**
 * Makes the runner's own INSERT say which servers can go on, by the columns' defaults: corrected
 * afterwards, an older server that looks in between would take it for one that nobody can serve.
 */
async function recordAs(client: pg.Client, schema: string, { minServer }: MigrationFile) {
  const table = `${quoteSchema(schema)}.${BOOKKEEPING}`;
  const { rows } = await client.query<{ safe: string; minServer: string | null }>(
    `SELECT pg_get_expr(s.adbin, s.adrelid) AS safe, pg_get_expr(m.adbin, m.adrelid) AS "minServer"
     FROM pg_attribute a JOIN pg_attribute b USING (attrelid)
     LEFT JOIN pg_attrdef s ON s.adrelid = attrelid AND s.adnum = a.attnum
     LEFT JOIN pg_attrdef m ON m.adrelid = attrelid AND m.adnum = b.attnum
     WHERE attrelid = $1::regclass AND a.attname = 'safe' AND b.attname = 'min_server'`,
    [table],
  );
  const safe = `${minServer === null}`;
  const asText = minServer === null ? null : `${toLiteral(minServer)}::text`;
  if (rows[0]?.safe === safe && rows[0].minServer === asText) return;
  await withLockTimeout(client, [
    `ALTER TABLE ${table} ALTER COLUMN safe SET DEFAULT ${safe}, ALTER COLUMN min_server SET DEFAULT ${toLiteral(minServer)}`,
  ]);
}

/** Tells servers of other versions which of our migrations they can go on beside, where we may. */
async function correctRecords(client: pg.Client, schema: string, pending: Pending): Promise<void> {
  const { hasColumns, misrecorded, files, ownsBookkeeping } = pending;
  const isDue = misrecorded.length > 0 || (files.length > 0 && !hasColumns);
  // Where others serve or migrate, a role that may only read has nothing to do here.
  if (!isDue || (!ownsBookkeeping && files.length === 0)) return;
  try {
    await withLockTimeout(client, [
      ...(hasColumns ? [] : [addColumns(schema)]),
      ...(misrecorded.length === 0 ? [] : [correct(schema, misrecorded)]),
    ]);
  } catch (error) {
    // Read-only, or a dump holds the table: the next start does it.
    if (files.length > 0) throw error;
    await client.query("ROLLBACK");
  }
}

/** Who reads the table, servers that look whether they are ready too, waits behind our wait. */
async function withLockTimeout(client: pg.Client, statements: string[]): Promise<void> {
  await client.query("BEGIN; SET LOCAL lock_timeout = '2s'");
  for (const statement of statements) await client.query(statement);
  await client.query("COMMIT");
}

/**
 * A lock of this session, one for each schema. It is polled: a session that blocks in
 * pg_advisory_lock holds a snapshot, and CREATE INDEX CONCURRENTLY in the session that has the
 * lock waits for every older snapshot, so the two would wait for each other.
 */
async function takeLock(
  client: pg.Client,
  schema: string,
  waitMs: number,
  onProgress: (line: string) => void,
  signal: AbortSignal | undefined,
): Promise<void> {
  const end = Date.now() + waitMs;
  for (let polls = 0; ; polls += 1) {
    const { rows } = await client.query<{ taken: boolean }>(
      "SELECT pg_try_advisory_lock(hashtextextended('checkpointd migrate ' || $1, 0)) AS taken",
      [schema],
    );
    if (rows[0]?.taken) return;
    if (Date.now() >= end) {
      throw new Error(
        `another process has been migrating schema ${schema} for ${waitMs / 1000} s: look for it in pg_stat_activity, or try again later`,
      );
    }
    if (polls === 0) onProgress(`waiting for another process that migrates schema ${schema}`);
    await sleep(100, undefined, signal ? { signal } : {});
  }
}

async function loadMigrations(paths: readonly string[], onProgress: (line: string) => void) {
  const files = await Promise.all(paths.map(readMigrationFile));
  return files.map(({ name, text, inTransaction }, index) => {
    const file = paths[index] as string;
    const up = async (pgm: MigrationBuilder) => {
      onProgress(`migrating: ${name}`);
      if (inTransaction) {
        for (const statement of toStatements(text)) pgm.sql(statement);
        return;
      }
      pgm.noTransaction();
      const { rows } = await pgm.db.query({ text, rowMode: "array" });
      for (const [statement] of rows as [string][]) pgm.sql(statement);
    };
    return { id: file, filePaths: [file], actions: { up, down: false as const } };
  });
}

/** What is left to do. */
interface Pending {
  files: MigrationFile[];
  hasSchema: boolean;
  hasBookkeeping: boolean;
  /** Whether the bookkeeping has the columns that versions before this one did not make. */
  hasColumns: boolean;
  ownsBookkeeping: boolean;
  /** Applied migrations of which something else is recorded than their first lines say. */
  misrecorded: MigrationFile[];
}

async function findPending(client: pg.Client, { schema, dir }: Target): Promise<Pending> {
  const { rows } = await client.query<Omit<Pending, "files" | "misrecorded">>(
    `SELECT n.oid IS NOT NULL AS "hasSchema", c.oid IS NOT NULL AS "hasBookkeeping",
       (SELECT count(*) = 2 FROM pg_attribute
        WHERE attrelid = c.oid AND attname IN ('safe', 'min_server')) AS "hasColumns",
       coalesce(pg_has_role(c.relowner, 'USAGE'), false) AS "ownsBookkeeping"
     FROM (VALUES (1)) AS one
     LEFT JOIN pg_namespace n ON nspname = $1
     LEFT JOIN pg_class c ON relname = $2 AND relnamespace = n.oid`,
    [schema, BOOKKEEPING],
  );
  const found = rows[0] as Omit<Pending, "files" | "misrecorded">;
  const done = new Map<string, string>();
  const record = (safe: boolean, minServer: string | null) => JSON.stringify([safe, minServer]);
  if (found.hasBookkeeping) {
    // A column that is not there is null in the row's JSON.
    const recorded = await client.query<{ name: string; safe: boolean; minServer: string | null }>(
      `SELECT name, coalesce((to_jsonb(recorded) ->> 'safe')::boolean, false) AS safe,
         to_jsonb(recorded) ->> 'min_server' AS "minServer"
       FROM ${quoteSchema(schema)}.${BOOKKEEPING} AS recorded`,
    );
    for (const { name, safe, minServer } of recorded.rows) done.set(name, record(safe, minServer));
  }
  const all = await readMigrationFiles(dir);
  const files = all.filter(({ name }) => !done.has(name));
  const misrecorded = all.filter(({ name, minServer }) => {
    const is = done.get(name);
    return is !== undefined && is !== record(minServer === null, minServer);
  });
  return { ...found, files, misrecorded };
}
