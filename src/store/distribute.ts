import type pg from "pg";
import { withClient } from "./client.js";
import type { Target } from "./migrate.js";
import { BOOKKEEPING, readMigrationFiles } from "./migration_files.js";
import { routedFunctions } from "./routed_writes.js";
import { checkSchemaName, quoteSchema } from "./schema_name.js";

/** The first decides where a thread lies; the others lie with it. */
const tables = ["checkpoints", "checkpoint_blobs", "checkpoint_writes", "checkpointd_claims"];

/**
 * Spreads the tables over the nodes of Citus by thread_id, so that all of a thread is on one node,
 * and answers the names of those that were not distributed yet: none when there was nothing to do.
 * All tables are or none is. Then makes the functions that puts call there (see routed_writes.ts).
 *
 * Needs what `migrate` does, on the coordinator. Writes wait meanwhile. Throws an error that names what to do where
 * Citus is missing, the schema is not there, its tables are older than this version, or a direct saver
 * made them in another collation.
 */
export async function distribute(
  target: Target & { onProgress?: (line: string) => void },
): Promise<{ distributed: string[] }> {
  const { onProgress = () => {} } = target;
  checkSchemaName(target.schema);
  return withClient(target, async (client) => {
    const schema = quoteSchema(target.schema);
    await client.query("SET statement_timeout = 0");
    // Until the session ends: another process that distributes waits, and finds it done.
    await client.query(
      "SELECT pg_advisory_lock(hashtextextended('checkpointd distribute ' || $1, 0))",
      [target.schema],
    );
    await check(client, target.schema);
    const before = await findDistributed(client, target.schema);
    const distributed = tables.filter((table) => !before.has(table));
    await client.query("BEGIN");
    for (const table of tables) {
      const column = before.get(table);
      if (column !== undefined) {
        if (column === "thread_id") continue;
        throw new Error(
          `${schema}.${table} is distributed by ${column ?? "no column"} already, and not by thread_id: undistribute_table takes that back`,
        );
      }
      onProgress(`distributing: ${table}`);
      await client.query(
        "SELECT create_distributed_table($1::regclass, 'thread_id', colocate_with := $2)",
        [`${schema}.${table}`, table === tables[0] ? "none" : `${schema}.${tables[0]}`],
      );
    }
    await client.query("COMMIT");
    // Not in the same transaction, where Citus would have to copy the rows one table after the other.
    await createFunctions(client, schema);
    // What was copied is still on the coordinator too, where nothing reads it.
    for (const table of distributed) {
      await client.query("SELECT truncate_local_data_after_distributing_table($1::regclass)", [
        `${schema}.${table}`,
      ]);
    }
    return { distributed };
  });
}

/** To be called after migrations: where the tables are distributed, makes the functions of this version. */
export async function keepDistributed(client: pg.Client, schemaName: string): Promise<void> {
  const distributed = await findDistributed(client, schemaName);
  if (!distributed.has("checkpoints")) return;
  await createFunctions(client, quoteSchema(schemaName));
}

async function createFunctions(client: pg.Client, schema: string): Promise<void> {
  for (const { name, types, create } of routedFunctions(schema)) {
    const { rows } = await client.query("SELECT to_regproc($1) IS NOT NULL AS is_there", [name]);
    if (rows[0].is_there) continue;
    await client.query("BEGIN");
    await client.query(create);
    await client.query(
      "SELECT create_distributed_function($1::regprocedure, '$1', colocate_with := $2)",
      [`${name}(${types.join(", ")})`, `${schema}.${tables[0]}`],
    );
    await client.query("COMMIT");
  }
}

/** The column by which each table of the schema is distributed; null: by none, a reference table. */
async function findDistributed(
  client: pg.Client,
  schema: string,
): Promise<Map<string, string | null>> {
  const { rows: citus } = await client.query(
    "SELECT to_regclass('pg_catalog.pg_dist_partition') IS NOT NULL AS is_there",
  );
  if (!citus[0].is_there) return new Map();
  const { rows } = await client.query(
    `SELECT c.relname, CASE WHEN d.partmethod = 'h'
       THEN column_to_column_name(d.logicalrelid, d.partkey) END AS key
     FROM pg_catalog.pg_dist_partition d
     JOIN pg_catalog.pg_class c ON c.oid = d.logicalrelid
     JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname = $1`,
    [schema],
  );
  return new Map(rows.map(({ relname, key }) => [relname, key]));
}

/** Throws what keeps the tables from being distributed. */
async function check(client: pg.Client, schema: string): Promise<void> {
  const { rows } = await client.query(
    `SELECT EXISTS (SELECT FROM pg_extension WHERE extname = 'citus') AS "hasCitus",
       to_regnamespace($1) IS NOT NULL AS "hasSchema",
       to_regclass($1 || '.${BOOKKEEPING}') IS NOT NULL AS "hasTables"`,
    [quoteSchema(schema)],
  );
  const [{ hasCitus, hasSchema, hasTables }] = rows;
  if (!hasSchema) {
    throw new Error(
      `the database has no schema ${schema}: name the one of the tables with --schema`,
    );
  }
  if (!hasTables) {
    throw new Error(
      `the schema ${schema} has no tables of checkpointd: name theirs with --schema, or run checkpointd migrate first`,
    );
  }
  const { rows: applied } = await client.query<{ name: string }>(
    `SELECT name FROM ${quoteSchema(schema)}.${BOOKKEEPING}`,
  );
  const done = new Set(applied.map(({ name }) => name));
  const missing = (await readMigrationFiles()).filter(({ name }) => !done.has(name));
  if (missing.length > 0) {
    throw new Error(
      `the tables of schema ${schema} are older than this version (without ${missing.map(({ name }) => name).join(", ")}): run checkpointd migrate first`,
    );
  }
  const { rows: other } = await client.query<{ relname: string }>(
    `SELECT c.relname FROM pg_catalog.pg_class c
     JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attname = 'thread_id'
     WHERE c.relnamespace = to_regnamespace($1) AND c.relname = ANY ($2)
       AND a.attcollation <> '"C"'::regcollation
     ORDER BY 1`,
    [quoteSchema(schema), tables],
  );
  if (other.length > 0) {
    throw new Error(
      `${other.map(({ relname }) => relname).join(", ")} of schema ${schema} were made by a direct saver in a collation other than "C", and threads can be found across nodes only in "C": move the threads into a schema that checkpointd migrate makes, with checkpointd threads export and import`,
    );
  }
  if (!hasCitus) {
    throw new Error(
      "this database has no Citus: create the extension on every node and add the workers first, see docs/citus.md",
    );
  }
}
