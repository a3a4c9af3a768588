/** Makes statements of a server wait in Postgres, and watches them do so. */
import { setTimeout as sleep } from "node:timers/promises";
import pg from "pg";

/** A second session that stands in the way of the server's. */
export interface Blocker {
  /** Runs a statement in the session's open transaction. */
  query(text: string): Promise<pg.QueryResult>;
  /** Commits, which lets everybody else go on, and closes the session. Idempotent. */
  release(): Promise<void>;
}

/** Opens a transaction and runs a statement that takes a lock. */
export async function block(databaseUrl: string, statement: string): Promise<Blocker> {
  const client = new pg.Client({ connectionString: databaseUrl });
  client.on("error", () => {});
  await client.connect();
  await client.query("begin");
  await client.query(statement);
  let released = false;
  return {
    query: (text) => client.query(text),
    async release() {
      if (released) return;
      released = true;
      await client.query("commit");
      await client.end();
    },
  };
}

/**
 * The pids of statements of calls that wait for a lock. The server's own look at its tables
 * (`limit 0`), which has no deadline, does not count.
 */
export async function blocked(sql: pg.Client): Promise<number[]> {
  const { rows } = await sql.query({
    text: `select pid from pg_stat_activity
      where datname = current_database() and application_name = 'checkpointd'
        and state = 'active' and wait_event_type = 'Lock' and query not like '%limit 0'`,
    rowMode: "array",
  });
  return rows.flat() as number[];
}

/** Waits until exactly `count` statements of calls wait for a lock; answers their pids. */
export async function untilBlocked(sql: pg.Client, count: number): Promise<number[]> {
  for (;;) {
    const pids = await blocked(sql);
    if (pids.length === count) return pids;
    await sleep(10);
  }
}
