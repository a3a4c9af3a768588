/** The one Postgres of a run, with a database for each contender. */
import { rmSync } from "node:fs";
import { mkdtemp } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { PostgresSaver } from "@langchain/langgraph-checkpoint-postgres";
import pg from "pg";
import { startEmbedded } from "../src/store/embedded.js";
import type { Contender } from "./contenders.js";
import { cpuOfPostgres, parentOf } from "./cpu.js";
import type { Stored } from "./load.js";

/** Postgres as the run sees it. */
export interface Environment {
  /** As Postgres gives it, such as 18.1. */
  postgresVersion: string;
  /** The URL of the contender's database. */
  databaseUrl(contender: Contender): string;
  /**
   * Empties the contender's tables, runs the statements, brings the statistics up to date and
   * makes a checkpoint.
   */
  prepare(contender: Contender, statements: readonly string[]): Promise<void>;
  /** Rows in the contender's tables. */
  count(contender: Contender): Promise<Required<Stored>>;
  /** Connections that clients hold to the contender's database, now. */
  connections(contender: Contender): Promise<number>;
  /** Microseconds of CPU that the server has used, ended backends included. */
  cpuMicros(): number;
  /** Stops Postgres and removes its folder. */
  close(): Promise<void>;
}

const tables = ["checkpoints", "checkpoint_blobs", "checkpoint_writes"] as const;

/**
 * A new segment of the write-ahead log is filled with zeros first, for 40 ms in which nobody
 * commits. A server that has run for a while has used ones to take instead; so has this.
 */
const walSegments = 64;
const createWalSegments = `do $$ begin
  for i in 1..${walSegments} loop
    perform pg_logical_emit_message(true, 'bench', '');
    perform pg_switch_wal();
  end loop;
end $$`;

/** Starts Postgres in a folder of its own under the system's temporary folder. */
export async function startEnvironment(
  contenders: readonly Contender[],
  settings: Record<string, string>,
): Promise<Environment> {
  const folder = await mkdtemp(path.join(tmpdir(), "checkpointd-bench-"));
  const remove = () => rmSync(folder, { recursive: true, force: true });
  process.once("exit", remove);
  const embedded = await startEmbedded({
    dataDir: folder,
    onProgress: () => {},
    settings,
  });
  // One connection for all questions; it is to no contender's database, so it counts nowhere.
  const admin = new pg.Client({ connectionString: embedded.databaseUrl });
  admin.on("error", () => {});
  await admin.connect();
  const { rows } = await admin.query(
    "select pg_backend_pid() as pid, current_setting('server_version') as version",
  );
  const postmaster = parentOf(rows[0].pid);
  await admin.query(createWalSegments);
  await admin.query("checkpoint");

  const databaseOf = (contender: Contender) => `bench_${contender.replace("-", "_")}`;
  const databaseUrl = (contender: Contender) => {
    const url = new URL(embedded.databaseUrl);
    url.pathname = databaseOf(contender);
    return url.href;
  };
  for (const contender of contenders) {
    await admin.query(`create database ${databaseOf(contender)}`);
    // The service brings its own tables up to date when it starts.
    if (contender !== "direct" && contender !== "http-json") continue;
    const saver = PostgresSaver.fromConnString(databaseUrl(contender));
    await saver.setup();
    await saver.end();
  }

  async function within<T>(contender: Contender, run: (client: pg.Client) => Promise<T>) {
    const client = new pg.Client({ connectionString: databaseUrl(contender) });
    await client.connect();
    try {
      return await run(client);
    } finally {
      await client.end();
    }
  }

  return {
    postgresVersion: rows[0].version,
    databaseUrl,
    prepare: (contender, statements) =>
      within(contender, async (client) => {
        await client.query(`truncate ${tables.join()}`);
        for (const statement of statements) await client.query(statement);
        await client.query("vacuum analyze");
        await client.query("checkpoint");
      }),
    count: (contender) =>
      within(contender, async (client) => {
        const counts = tables.map((table) => `(select count(*)::int from ${table}) as ${table}`);
        return (await client.query(`select ${counts.join()}`)).rows[0];
      }),
    connections: async (contender) => {
      const found = await admin.query(
        `select count(*)::int as count from pg_stat_activity
         where datname = $1 and backend_type = 'client backend'`,
        [databaseOf(contender)],
      );
      return found.rows[0].count;
    },
    cpuMicros: () => cpuOfPostgres(postmaster),
    async close() {
      await admin.end();
      await embedded.stop();
      remove();
      process.off("exit", remove);
    },
  };
}
