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
 * with a column that tells an older server whether it can go on beside the migration.
 */
const createBookkeeping = (schema: string) =>
  `CREATE TABLE IF NOT EXISTS ${quoteSchema(schema)}.${BOOKKEEPING} (id serial PRIMARY KEY, name varchar(255) NOT NULL, run_on timestamp NOT NULL, safe boolean NOT NULL DEFAULT false)`;
const addSafe = (schema: string) =>
  `ALTER TABLE ${quoteSchema(schema)}.${BOOKKEEPING} ADD COLUMN IF NOT EXISTS safe boolean NOT NULL DEFAULT false`;
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
    const pending = await findPending(client, target.schema);
    if (pending.files.length === 0 && pending.unmarked.length === 0) return "";
    const schema = quoteSchema(target.schema);
    const script: string[] = [];
    if (!pending.hasSchema) script.push(`CREATE SCHEMA IF NOT EXISTS ${schema};`);
    script.push(`SET search_path TO ${schema};`);
    if (!pending.hasBookkeeping) script.push(`${createBookkeeping(target.schema)};`);
    else if (!pending.hasSafe) script.push(`${addSafe(target.schema)};`);
    if (pending.unmarked.length > 0) {
      const names = pending.unmarked.map((name) => `'${name}'`).join(", ");
      script.push(`UPDATE ${BOOKKEEPING} SET safe = true WHERE name IN (${names});`);
    }
    await client.query(`SET LOCAL search_path TO ${schema}`);
    for (const { name, text, inTransaction, safe } of pending.files) {
      const record = `INSERT INTO ${BOOKKEEPING} (name, run_on, safe) VALUES ('${name}', now(), ${safe});`;
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
  { schema, lockWaitMs = LOCK_WAIT_MS, signal }: MigrateOptions,
  applied: string[],
  onProgress: (line: string) => void,
): Promise<void> {
  // The usual start: nothing to do, no lock taken, no privilege needed but to read.
  const before = await findPending(client, schema);
  if (before.files.length === 0) return markSafe(client, schema, before);
  if (await sharesSessions(client, () => newClient(url))) {
    throw new Error(
      `schema ${schema} needs ${before.files.map(({ name }) => name).join(", ")}, and migrations do not work through a transaction pooler such as PgBouncer: give checkpointd migrate the URL of Postgres itself, then serve through the pooler with --no-prepare`,
    );
  }
  await client.query("SET statement_timeout = 0");
  await takeLock(client, schema, lockWaitMs, onProgress, signal);
  const pending = await findPending(client, schema);
  const { files, hasSchema, hasBookkeeping } = pending;
  if (files.length === 0) return;
  // Not the runner's createSchema: it issues the statement for a schema that exists, too, which
  // Postgres refuses to a role that may not create schemas.
  if (!hasSchema) await client.query(`CREATE SCHEMA IF NOT EXISTS ${quoteSchema(schema)}`);
  if (!hasBookkeeping) await client.query(createBookkeeping(schema));
  else await markSafe(client, schema, pending);
  const silent = () => {};
  const options: RunnerOption = {
    dbClient: client,
    dir: findMigrationsDir(),
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
 * Makes the runner's own INSERT say whether the migration is safe, by the column's default:
 * marked afterwards, an older server that looks in between would take it for a breaking one.
 */
async function recordAs(client: pg.Client, schema: string, { safe }: MigrationFile) {
  const { rows } = await client.query<{ now: string }>(
    `SELECT pg_get_expr(adbin, adrelid) AS now FROM pg_attrdef
     JOIN pg_attribute ON attrelid = adrelid AND attnum = adnum AND attname = 'safe'
     WHERE adrelid = $1::regclass`,
    [`${quoteSchema(schema)}.${BOOKKEEPING}`],
  );
  if (rows[0]?.now === `${safe}`) return;
  await withLockTimeout(client, [
    `ALTER TABLE ${quoteSchema(schema)}.${BOOKKEEPING} ALTER COLUMN safe SET DEFAULT ${safe}`,
  ]);
}

/** Tells servers of other versions which migrations of ours are safe, where we may. */
async function markSafe(client: pg.Client, schema: string, pending: Pending): Promise<void> {
  const { hasSafe, unmarked, files, ownsBookkeeping } = pending;
  // Where others serve or migrate, a role that may only read has nothing to do here.
  if (unmarked.length === 0 || (!ownsBookkeeping && files.length === 0)) return;
  const names = unmarked.map((name) => `'${name}'`).join(", ");
  try {
    await withLockTimeout(client, [
      ...(hasSafe ? [] : [addSafe(schema)]),
      `UPDATE ${quoteSchema(schema)}.${BOOKKEEPING} SET safe = true WHERE name IN (${names})`,
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
  hasSafe: boolean;
  ownsBookkeeping: boolean;
  /** Applied migrations that are safe and not marked so. */
  unmarked: string[];
}

async function findPending(client: pg.Client, schema: string): Promise<Pending> {
  const { rows } = await client.query<Omit<Pending, "files" | "unmarked">>(
    `SELECT n.oid IS NOT NULL AS "hasSchema", c.oid IS NOT NULL AS "hasBookkeeping",
       EXISTS (SELECT FROM pg_attribute WHERE attrelid = c.oid AND attname = 'safe') AS "hasSafe",
       coalesce(pg_has_role(c.relowner, 'USAGE'), false) AS "ownsBookkeeping"
     FROM (VALUES (1)) AS one
     LEFT JOIN pg_namespace n ON nspname = $1
     LEFT JOIN pg_class c ON relname = $2 AND relnamespace = n.oid`,
    [schema, BOOKKEEPING],
  );
  const found = rows[0] as Omit<Pending, "files" | "unmarked">;
  const done = new Map<string, boolean>();
  if (found.hasBookkeeping) {
    const names = await client.query<{ name: string; safe: boolean }>(
      `SELECT name, ${found.hasSafe ? "safe" : "false AS safe"} FROM ${quoteSchema(schema)}.${BOOKKEEPING}`,
    );
    for (const { name, safe } of names.rows) done.set(name, safe);
  }
  const all = await readMigrationFiles();
  const files = all.filter(({ name }) => !done.has(name));
  const unmarked = all.filter(({ name, safe }) => safe && done.get(name) === false);
  return { ...found, files, unmarked: unmarked.map(({ name }) => name) };
}
