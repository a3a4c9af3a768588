/** Removing checkpoints and what only they needed, in bounded batches while writers go on. */
import { create } from "@bufbuild/protobuf";
import {
  type ThreadCounts,
  ThreadCountsSchema,
} from "../../gen/checkpointd/v1/thread_service_pb.js";
import { add, countColumns, toCounts } from "./counts.js";
import type { Db, Row, Signal } from "./db.js";
import { createColumns, text } from "./rows.js";
import { beforeFormat4, channelVersions } from "./tuples.js";
import { type JsonForm, jsonBytes, runGuarded } from "./undeliverable.js";

/** Rows that one statement removes, and so locks, at the most. */
export const batchRows = 500;

/** A checkpoint of one thread. */
export interface Place {
  checkpointNs: string;
  checkpointId: string;
}

/**
 * Removes checkpoints of a thread with their writes, in one statement. Stays: what a checkpoint
 * of a format before 4 that stays reads from its parent's writes.
 */
export async function removeCheckpoints(
  db: Db,
  threadId: string,
  places: readonly Place[],
  signal: Signal | undefined,
): Promise<ThreadCounts> {
  const [row] = await runGuarded(
    db,
    db.runLong,
    (json) => checkpointsStatement(db.schema, json),
    [
      threadId,
      places.map((place) => place.checkpointNs),
      places.map((place) => place.checkpointId),
    ],
    signal,
  );
  return toCounts(row, countColumns.at);
}

/**
 * Removes the values of a thread that none of its checkpoints names, in transactions of at most
 * `batchRows` rows.
 *
 * A put whose value is stored already locks its row (see put.ts). The candidates are locked first
 * and looked at again after: by then each put that relied on one of them is committed, so its
 * checkpoint is seen, and a put that comes later finds the value gone and stores it. The stock
 * savers take no such lock; for them the same holds unless they store a value that is unused, in
 * these milliseconds, under a version that was used before.
 */
export async function removeUnusedBlobs(
  db: Db,
  threadId: string,
  signal: Signal | undefined,
): Promise<ThreadCounts> {
  const removed = create(ThreadCountsSchema);
  for (;;) {
    const unused = await db.runLong(unusedStatement(db.schema), [threadId, batchRows], signal);
    if (unused.length === 0) return removed;
    const { at } = blobKey;
    const parameters = [
      threadId,
      unused.map((row) => text(row[at.checkpoint_ns])),
      unused.map((row) => text(row[at.channel])),
      unused.map((row) => text(row[at.version])),
    ];
    const rows = await db.transaction<Row[]>(async (run) => {
      await run(lockStatement(db.schema), parameters);
      return run(blobsStatement(db.schema), parameters);
    }, signal);
    const batch = toCounts(rows[0], countColumns.at);
    add(removed, batch);
    // Those that are left are in use again.
    if (batch.blobs === 0n) return removed;
  }
}

/** Relies on the primary keys of checkpoints and checkpoint_writes. */
const checkpointsStatement = (schema: string, json: JsonForm) => `
with place as materialized (
  select checkpoint_ns, checkpoint_id from unnest($2::text[], $3::text[]) as p (checkpoint_ns, checkpoint_id)
), gone as (
  delete from ${schema}.checkpoints c
  where c.thread_id = $1 and (c.checkpoint_ns, c.checkpoint_id) in (select * from place)
  returning ${jsonBytes("c", json)} as bytes
), needed_sends as materialized (
  select c.checkpoint_ns, c.parent_checkpoint_id from ${schema}.checkpoints c
  where c.thread_id = $1 and ${beforeFormat4("c.checkpoint")}
    and (c.checkpoint_ns, c.checkpoint_id) not in (select * from place)
), gone_writes as (
  delete from ${schema}.checkpoint_writes w
  where w.thread_id = $1 and (w.checkpoint_ns, w.checkpoint_id) in (select * from place)
    and not (w.channel = '__pregel_tasks'
      and (w.checkpoint_ns, w.checkpoint_id) in (select * from needed_sends))
  returning octet_length(w.blob) as bytes
)
select ${countColumns.all({
  checkpoints: "(select count(*) from gone)",
  blobs: "0",
  writes: "(select count(*) from gone_writes)",
  stored_bytes:
    "(select coalesce(sum(bytes), 0) from (table gone union all table gone_writes) as gone)",
})}`;

/** What the checkpoints of thread $1 name. */
export const namedBlobs = (schema: string, condition = "true") => `
  select distinct c.checkpoint_ns, v.key as channel, v.value as version
  from ${schema}.checkpoints c
  cross join lateral jsonb_each_text(${channelVersions("c.checkpoint")}) as v
  where c.thread_id = $1 and ${condition}`;

/** Of the blobs of one thread. */
const blobKey = createColumns("checkpoint_ns", "channel", "version");

const unusedStatement = (schema: string) => `
with named as materialized (${namedBlobs(schema)})
select ${blobKey.names}
from ${schema}.checkpoint_blobs b
where b.thread_id = $1
  and not exists (
    select from named n
    where n.checkpoint_ns = b.checkpoint_ns and n.channel = b.channel and n.version = b.version
  )
limit $2`;

const given = `(select checkpoint_ns, channel, version
    from unnest($2::text[], $3::text[], $4::text[]) as g (checkpoint_ns, channel, version))`;

const lockStatement = (schema: string) => `
select 1 from ${schema}.checkpoint_blobs b
where b.thread_id = $1 and (b.checkpoint_ns, b.channel, b.version) in ${given}
order by b.checkpoint_ns, b.channel, b.version
for update`;

const blobsStatement = (schema: string) => `
with named as materialized (
  ${namedBlobs(schema, "c.checkpoint_ns = any($2::text[])")}
), gone as (
  delete from ${schema}.checkpoint_blobs b
  where b.thread_id = $1 and (b.checkpoint_ns, b.channel, b.version) in ${given}
    and not exists (
      select from named n
      where n.checkpoint_ns = b.checkpoint_ns and n.channel = b.channel and n.version = b.version
    )
  returning coalesce(octet_length(b.blob), 0) as bytes
)
select ${countColumns.all({
  checkpoints: "0",
  blobs: "count(*)",
  writes: "0",
  stored_bytes: "coalesce(sum(bytes), 0)",
})} from gone`;
