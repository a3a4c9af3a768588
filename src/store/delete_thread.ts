import type { Db, Signal } from "./db.js";

/**
 * Deletes everything of a thread in all namespaces, in one statement and so all or nothing,
 * and its lease: whoever holds it must not bring parts of the thread back. A thread that does
 * not exist is deleted already.
 *
 * Relies on the primary keys of the tables, which all start with thread_id.
 */
export async function deleteThread(db: Db, threadId: string, signal?: Signal): Promise<void> {
  await db.run(statement(db.schema), [threadId], signal);
}

const statement = (schema: string) => `
with
  deleted_writes as (delete from ${schema}.checkpoint_writes where thread_id = $1),
  deleted_blobs as (delete from ${schema}.checkpoint_blobs where thread_id = $1),
  ended_lease as (delete from ${schema}.checkpointd_claims where thread_id = $1)
delete from ${schema}.checkpoints where thread_id = $1`;
