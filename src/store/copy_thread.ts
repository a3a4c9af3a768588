import type { ThreadCounts } from "../../gen/checkpointd/v1/thread_service_pb.js";
import { CheckpointdError } from "../errors.js";
import type { Db, Signal } from "./db.js";
import { toCounts } from "./threads.js";

/**
 * Copies everything of a thread under another name in one statement, so all or nothing, and
 * returns how much. Throws TARGET_NOT_EMPTY if anything is stored under that name, also when two
 * copies to it run at once. Relies on the primary keys.
 */
export async function copyThread(
  db: Db,
  source: string,
  target: string,
  signal?: Signal,
): Promise<ThreadCounts> {
  const [row] = await db.run(statement(db.schema), [source, target], signal).catch((error) => {
    if ((error as { code?: string }).code === "23505") throw targetNotEmpty();
    throw error;
  });
  if (row?.[4]?.toString() === "t") throw targetNotEmpty();
  return toCounts(row, 0);
}

function targetNotEmpty(): CheckpointdError {
  return new CheckpointdError(
    "failed_precondition",
    "target_thread_id: something is stored under this name already",
    { reason: "TARGET_NOT_EMPTY", field: "target_thread_id" },
  );
}

const statement = (schema: string) => `
with target as materialized (
  select exists (select from ${schema}.checkpoints where thread_id = $2::text)
    or exists (select from ${schema}.checkpoint_blobs where thread_id = $2::text)
    or exists (select from ${schema}.checkpoint_writes where thread_id = $2::text) as is_taken
), checkpoints as (
  insert into ${schema}.checkpoints (thread_id, checkpoint_ns, checkpoint_id,
    parent_checkpoint_id, type, checkpoint, metadata, created_at)
  select $2::text, checkpoint_ns, checkpoint_id,
    parent_checkpoint_id, type, checkpoint, metadata, created_at
  from ${schema}.checkpoints where thread_id = $1::text and not (select is_taken from target)
  returning octet_length(checkpoint::text) + octet_length(metadata::text) as bytes
), blobs as (
  insert into ${schema}.checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
  select $2::text, checkpoint_ns, channel, version, type, blob
  from ${schema}.checkpoint_blobs where thread_id = $1::text and not (select is_taken from target)
  returning octet_length(blob) as bytes
), writes as (
  insert into ${schema}.checkpoint_writes
    (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
  select $2::text, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob
  from ${schema}.checkpoint_writes where thread_id = $1::text and not (select is_taken from target)
  returning octet_length(blob) as bytes
)
select (select count(*) from checkpoints), (select count(*) from blobs),
  (select count(*) from writes),
  (select coalesce(sum(bytes), 0) from checkpoints)
    + (select coalesce(sum(bytes), 0) from blobs) + (select coalesce(sum(bytes), 0) from writes),
  (select is_taken from target)`;
