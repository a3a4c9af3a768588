import { create } from "@bufbuild/protobuf";
import {
  ChannelBlobSchema,
  type CheckpointTuple,
  CheckpointTupleSchema,
  PendingWriteSchema,
  type Value,
  ValueSchema,
} from "../../gen/checkpointd/v1/checkpoint_pb.js";
import type { GetTupleRequest } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { createBatch } from "./batch.js";
import type { Db, Row, Run } from "./db.js";

/**
 * Returns getTuple: reads the named checkpoint, or the latest of the thread and namespace,
 * with its channel values and writes, in one statement. Undefined when there is none. Calls
 * that wait for a connection travel together.
 *
 * Relies on the primary keys; the latest is the end of the primary key's range, or of
 * checkpointd_checkpoints_latest_idx where LangGraph made the table with another collation.
 */
export function createGetTuple(
  db: Db,
): (request: GetTupleRequest, signal?: AbortSignal) => Promise<CheckpointTuple | undefined> {
  const named = createBatch(db, batchOptions(namedStatement(db.schema), true));
  const latest = createBatch(db, batchOptions(latestStatement(db.schema), false));
  return (request, signal) => (request.checkpointId ? named : latest)(request, signal);
}

/** What the answers of one statement should stay below; how large they get is only known after. */
const answerBytes = 1024 * 1024;

function batchOptions(statement: string, withId: boolean) {
  let usualBytes = answerBytes / 16;
  return {
    maxItems: () => Math.max(1, Math.min(16, Math.floor(answerBytes / usualBytes))),
    maxBytes: Number.POSITIVE_INFINITY,
    maxRunning: 4,
    sizeOf: () => 0,
    run: async (run: Run, requests: readonly GetTupleRequest[], signal?: AbortSignal) => {
      const parameters = [
        requests.map((request) => request.threadId),
        requests.map((request) => request.checkpointNs),
      ];
      if (withId) parameters.push(requests.map((request) => request.checkpointId));
      const rows = await run(statement, parameters, signal);
      let bytes = 0;
      for (const row of rows) bytes += row[8]?.length ?? 0;
      usualBytes += (bytes / requests.length - usualBytes) / 8;
      const tuples = toTuples(rows);
      return requests.map((_, i) => tuples.get(i + 1));
    },
  };
}

const tupleColumns = `thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id,
    checkpoint::text as checkpoint_json, metadata::text as metadata_json,
    ${channelVersions("checkpoint")} as channel_versions, ${beforeFormat4("checkpoint")} as before_format_4`;

const namedStatement = (schema: string) => `
with page as materialized (
  select n, c.*
  from unnest($1::text[], $2::text[], $3::text[])
    with ordinality as w (thread_id, checkpoint_ns, checkpoint_id, n)
  cross join lateral (
    select ${tupleColumns} from ${schema}.checkpoints c
    where c.thread_id = w.thread_id and c.checkpoint_ns = w.checkpoint_ns
      and c.checkpoint_id = w.checkpoint_id
    limit 1
  ) as c
)
${tupleRows(schema)}`;

const latestStatement = (schema: string) => `
with page as materialized (
  select n, c.*
  from unnest($1::text[], $2::text[]) with ordinality as w (thread_id, checkpoint_ns, n)
  cross join lateral (
    select ${tupleColumns} from ${schema}.checkpoints c
    where c.thread_id = w.thread_id and c.checkpoint_ns = w.checkpoint_ns
    order by c.checkpoint_id collate "C" desc
    limit 1
  ) as c
)
${tupleRows(schema)}`;

/**
 * The channel versions of a checkpoint as an object. A client that stored something else
 * there must not make its thread unreadable: jsonb_each_text fails on anything but an object.
 */
export function channelVersions(checkpoint: string): string {
  return `case when jsonb_typeof(${checkpoint} -> 'channel_versions') = 'object'
      then ${checkpoint} -> 'channel_versions' end`;
}

/** Whether a checkpoint's pending sends are its parent's writes, as they were before format 4. */
export function beforeFormat4(checkpoint: string): string {
  return `case when jsonb_typeof(${checkpoint} -> 'v') = 'number'
      then (${checkpoint} ->> 'v')::numeric < 4 else false end`;
}

/**
 * The rows of the tuples in the CTE `page` (n, the key, parent_checkpoint_id,
 * checkpoint_json, metadata_json, channel_versions, before_format_4), for `toTuples`:
 * ordered by n, then the tuple itself, its blobs, its writes, its pending sends. The SQL
 * expression `candidates` is added to the rows of the tuples themselves.
 *
 * The look-ups are lateral with a bound of their own so that the planner cannot turn them
 * into a scan of the whole table, whatever it believes about the number of channels.
 */
export function tupleRows(schema: string, candidates = "null::bigint"): string {
  return `
select n, 0 as kind, thread_id as a, checkpoint_ns as b, checkpoint_id as c,
  parent_checkpoint_id as d, checkpoint_json as e, metadata_json as f, null::bytea as data,
  0 as idx, '' collate "C" as sort_path, '' collate "C" as sort_task, ${candidates} as candidates
from page
union all
select n, 1, v.key, v.value, b.type, null, null, null, b.blob, 0, '', '', null
from page
cross join lateral jsonb_each_text(channel_versions) as v
cross join lateral (
  select type, blob from ${schema}.checkpoint_blobs b
  where b.thread_id = page.thread_id and b.checkpoint_ns = page.checkpoint_ns
    and b.channel = v.key and b.version = v.value
  limit 1
) as b
where b.type <> 'empty'
union all
select n, 2, w.task_id, w.channel, w.type, null, null, null, w.blob, w.idx,
  '', w.task_id collate "C", null
from page
cross join lateral (
  select task_id, idx, channel, type, blob from ${schema}.checkpoint_writes w
  where w.thread_id = page.thread_id and w.checkpoint_ns = page.checkpoint_ns
    and w.checkpoint_id = page.checkpoint_id
  offset 0
) as w
union all
select n, 3, null, null, s.type, null, null, null, s.blob, s.idx,
  s.task_path collate "C", s.task_id collate "C", null
from page
cross join lateral (
  select task_path, task_id, idx, type, blob from ${schema}.checkpoint_writes s
  where page.before_format_4 and s.thread_id = page.thread_id
    and s.checkpoint_ns = page.checkpoint_ns and s.checkpoint_id = page.parent_checkpoint_id
    and s.channel = '__pregel_tasks'
  offset 0
) as s
order by n, kind, sort_path, sort_task, idx`;
}

/** Puts the rows of `tupleRows` back together, by n: the one place where rows become tuples. */
export function toTuples(rows: readonly Row[]): Map<number, CheckpointTuple> {
  const tuples = new Map<number, CheckpointTuple>();
  let tuple: CheckpointTuple | undefined;
  for (const row of rows) {
    const kind = row[1]?.[0];
    if (kind === tupleRow || !tuple) {
      tuple = toTuple(row);
      tuples.set(Number(text(row[0])), tuple);
    } else if (kind === blobRow) {
      tuple.blobs.push(
        create(ChannelBlobSchema, {
          channel: text(row[2]),
          version: text(row[3]),
          value: toValue(row),
        }),
      );
    } else if (kind === writeRow) {
      tuple.pendingWrites.push(
        create(PendingWriteSchema, {
          taskId: text(row[2]),
          channel: text(row[3]),
          idx: Number(text(row[9])),
          value: toValue(row),
        }),
      );
    } else {
      tuple.pendingSends.push(toValue(row));
    }
  }
  return tuples;
}

// `kind` is one digit, so its first byte tells.
const tupleRow = 0x30;
const blobRow = 0x31;
const writeRow = 0x32;

function toTuple(row: Row): CheckpointTuple {
  const tuple = create(CheckpointTupleSchema, {
    key: { threadId: text(row[2]), checkpointNs: text(row[3]), checkpointId: text(row[4]) },
    checkpointJson: text(row[6]),
    metadataJson: text(row[7]),
  });
  // Some old savers stored '' for "no parent".
  if (row[5]?.length) tuple.parentCheckpointId = text(row[5]);
  return tuple;
}

function toValue(row: Row): Value {
  return create(ValueSchema, { type: text(row[4]), data: bytes(row[8]) });
}

function text(column: Buffer | null | undefined): string {
  return column ? column.toString("utf8") : "";
}

/** Decodes bytea's text form, `\x` and two hex digits a byte. */
function bytes(column: Buffer | null | undefined): Uint8Array {
  return column ? Buffer.from(column.toString("latin1", 2), "hex") : new Uint8Array(0);
}
