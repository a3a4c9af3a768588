import { create } from "@bufbuild/protobuf";
import {
  type ThreadCounts,
  ThreadCountsSchema,
} from "../../gen/checkpointd/v1/thread_service_pb.js";
import { CheckpointdError } from "../errors.js";
import { add } from "./counts.js";
import type { Db, Signal } from "./db.js";
import { rebuildsFromParent } from "./delta_channels.js";
import { batchRows, type Place, removeCheckpoints, removeUnusedBlobs } from "./remove.js";
import { createColumns, text } from "./rows.js";

/**
 * Deletes the checkpoints of these runs with their writes and the values that nothing names any
 * more, and returns how much. Throws STILL_NEEDED, before anything is deleted, if a checkpoint of
 * another run rebuilds a delta channel from one of them.
 */
export async function deleteRuns(
  db: Db,
  runIds: readonly string[],
  signal?: Signal,
): Promise<ThreadCounts> {
  const removed = create(ThreadCountsSchema);
  if (runIds.length === 0) return removed;
  const [needed] = await db.runLong(neededStatement(db.schema), [runIds], signal);
  if (needed) {
    throw new CheckpointdError(
      "failed_precondition",
      "run_ids: a checkpoint of another run rebuilds a delta channel from one of these runs",
      { reason: "STILL_NEEDED", field: "run_ids" },
    );
  }
  for (;;) {
    const rows = await db.runLong(findStatement(db.schema), [runIds, batchRows], signal);
    const places = new Map<string, Place[]>();
    for (const row of rows) {
      const threadId = text(row[found.at.thread_id]);
      const place = {
        checkpointNs: text(row[found.at.checkpoint_ns]),
        checkpointId: text(row[found.at.checkpoint_id]),
      };
      places.set(threadId, [...(places.get(threadId) ?? []), place]);
    }
    for (const [threadId, each] of places) {
      add(removed, await removeCheckpoints(db, threadId, each, signal));
      add(removed, await removeUnusedBlobs(db, threadId, signal));
    }
    if (rows.length < batchRows) return removed;
  }
}

/**
 * The checkpoints of the runs. Relies on checkpointd_runs_idx: a look-up for each run, since for
 * `= any` of many the planner expects a good part of the table and reads all of it.
 */
const ofRuns = (schema: string) => `(
  select c.*
  from unnest($1::text[]) as run (id)
  cross join lateral (
    select thread_id, checkpoint_ns, checkpoint_id from ${schema}.checkpoints c
    where c.metadata ? 'run_id' and c.metadata ->> 'run_id' = run.id
    offset 0
  ) as c
)`;

const found = createColumns("thread_id", "checkpoint_ns", "checkpoint_id");

const findStatement = (schema: string) => `
select ${found.names}
from ${ofRuns(schema)} as c
order by c.thread_id collate "C"
limit $2`;

/** A child that stays and rebuilds a delta channel from one of the runs. */
const neededStatement = (schema: string) => `
with going as materialized (
  select c.thread_id, c.checkpoint_ns, c.checkpoint_id from ${ofRuns(schema)} as c
), places as materialized (
  select distinct thread_id, checkpoint_ns from going
)
select 1
from places
cross join lateral (
  select * from ${schema}.checkpoints c
  where c.thread_id = places.thread_id and c.checkpoint_ns = places.checkpoint_ns
  offset 0
) as c
where not coalesce(c.metadata ->> 'run_id' = any($1::text[]), false)
  and (c.thread_id, c.checkpoint_ns, c.parent_checkpoint_id) in (select * from going)
  and ${rebuildsFromParent(schema, "c")}
limit 1`;
