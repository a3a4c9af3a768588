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
  const some = Array.from({ length: Math.ceil(runIds.length / runsAtOnce) }, (_, i) =>
    runIds.slice(i * runsAtOnce, (i + 1) * runsAtOnce),
  );
  const threadIds = new Set<string>();
  for (const ids of some) {
    const rows = await db.runLong(threadsStatement(db.schema), [ids], signal);
    for (const [threadId = null] of rows) threadIds.add(text(threadId));
  }
  for (const threadId of threadIds) {
    const [needed] = await db.runLong(neededStatement(db.schema), [threadId, runIds], signal);
    if (!needed) continue;
    throw new CheckpointdError(
      "failed_precondition",
      "run_ids: a checkpoint of another run rebuilds a delta channel from one of these runs",
      { reason: "STILL_NEEDED", field: "run_ids" },
    );
  }
  for (const ids of some) add(removed, await deleteSome(db, ids, signal));
  return removed;
}

async function deleteSome(
  db: Db,
  runIds: readonly string[],
  signal: Signal | undefined,
): Promise<ThreadCounts> {
  const removed = create(ThreadCountsSchema);
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
 * Runs that one statement looks for. Of more Postgres expects a good part of the table and reads all
 * of it, and a look-up for each in one statement is refused by Citus.
 */
const runsAtOnce = 16;

/** The checkpoints of these runs. Relies on checkpointd_runs_idx, on each node where it is a fan-out. */
const isOfRuns = (runIds: string) =>
  `c.metadata ? 'run_id' and c.metadata ->> 'run_id' = any(${runIds}::text[])`;

const threadsStatement = (schema: string) => `
select distinct c.thread_id from ${schema}.checkpoints c where ${isOfRuns("$1")}`;

const found = createColumns("thread_id", "checkpoint_ns", "checkpoint_id");

const findStatement = (schema: string) => `
select ${found.names}
from ${schema}.checkpoints c
where ${isOfRuns("$1")}
order by c.thread_id collate "C"
limit $2`;

/** A child in thread $1 that stays and rebuilds a delta channel from one of the runs. */
const neededStatement = (schema: string) => `
with going as materialized (
  select c.checkpoint_ns, c.checkpoint_id from ${schema}.checkpoints c
  where c.thread_id = $1 and ${isOfRuns("$2")}
)
select 1
from ${schema}.checkpoints c
where c.thread_id = $1
  and not coalesce(c.metadata ->> 'run_id' = any($2::text[]), false)
  and (c.checkpoint_ns, c.parent_checkpoint_id) in (select * from going)
  and ${rebuildsFromParent(schema, "c", "$1")}
limit 1`;
