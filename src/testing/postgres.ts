import { randomBytes } from "node:crypto";
import { setTimeout as sleep } from "node:timers/promises";
import pg from "pg";
import { inject } from "vitest";
import { type Db, type DbOptions, openDb } from "../store/db.js";

/** The migrated database that `createDatabase` clones. */
export const templateDatabase = "checkpointd_template";

/** A database of one test file. */
export interface TestDatabase {
  /** The superuser's URL of this database, for pg and postgres.js. */
  url: string;
  /** Removes the database, ending whatever is still connected to it. */
  drop(): Promise<void>;
}

/**
 * Creates a database with a name of its own on the run's Postgres: a copy of the migrated
 * template, or an empty one with `template: false`.
 */
export async function createDatabase(options?: { template?: boolean }): Promise<TestDatabase> {
  const server = inject("postgresUrl");
  const name = `test_${randomBytes(8).toString("hex")}`;
  const template = options?.template === false ? "template0" : templateDatabase;
  // CREATE DATABASE fails while another session copies the same template, hence one at a time.
  await asAdmin(server, async (client) => {
    await client.query("SELECT pg_advisory_lock(7261)");
    await client.query(`CREATE DATABASE ${name} TEMPLATE ${template}`);
  });
  return {
    url: withDatabase(server, name),
    drop: () =>
      asAdmin(server, async (client) => {
        // A pool of pg has ended before its connections have: one that is cut then ends the process.
        for (let i = 0; i < 20; i++) {
          const left = "select from pg_stat_activity where datname = $1";
          if ((await client.query(left, [name])).rows.length === 0) break;
          await sleep(25);
        }
        await client.query(`DROP DATABASE IF EXISTS ${name} WITH (FORCE)`);
      }),
  };
}

/** The same server's URL for another database. */
export function withDatabase(url: string, database: string): string {
  const changed = new URL(url);
  changed.pathname = `/${database}`;
  return changed.href;
}

async function asAdmin(server: string, use: (client: pg.Client) => Promise<void>): Promise<void> {
  const client = new pg.Client({ connectionString: server });
  client.on("error", () => {});
  await client.connect();
  try {
    await use(client);
  } finally {
    await client.end();
  }
}

/** A pool of the store's own on a test's database, which is the test's to close. */
export function openPool(databaseUrl: string, options: Partial<DbOptions> = {}): Db {
  return openDb({
    databaseUrl,
    schema: "public",
    poolSize: 4,
    queueLimit: 1000,
    queueTimeoutMs: 10_000,
    prepare: true,
    ...options,
  });
}
