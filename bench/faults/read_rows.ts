import pg from "pg";
import type { Rows } from "./call_history.js";

/** What is stored of the threads whose names begin so, in one snapshot. */
export async function readRows(databaseUrl: string, prefix: string): Promise<Rows> {
  const client = new pg.Client({ connectionString: databaseUrl });
  client.on("error", () => {});
  await client.connect();
  const read = async <Row extends pg.QueryResultRow>(text: string) =>
    (await client.query<Row>(`${text} where starts_with(thread_id, $1)`, [prefix])).rows;
  try {
    await client.query("begin isolation level repeatable read");
    return {
      checkpoints: await read(
        `select thread_id as thread, checkpoint_ns as ns, checkpoint_id as id,
           parent_checkpoint_id as parent, checkpoint -> 'channel_versions' as channel_versions
         from checkpoints`,
      ),
      blobs: await read(
        `select thread_id as thread, checkpoint_ns as ns, channel, version, md5(blob) as sum
         from checkpoint_blobs`,
      ),
      writes: await read(
        `select thread_id as thread, checkpoint_ns as ns, checkpoint_id as checkpoint,
           task_id as task, idx, md5(blob) as sum
         from checkpoint_writes`,
      ),
    };
  } finally {
    await client.end();
  }
}
