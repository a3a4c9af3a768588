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
import type { Db, Parameter, Row, Run, Signal } from "./db.js";

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
): (request: GetTupleRequest, signal?: Signal) => Promise<CheckpointTuple | undefined> {
  const named = createBatch(
    db,
    batchOptions((values) => namedStatement(db.schema, values), true),
  );
  const latest = createBatch(
    db,
    batchOptions((values) => latestStatement(db.schema, values), false),
  );
  return (request, signal) => (request.checkpointId ? named : latest)(request, signal);
}

/** What the answers of one statement should stay below; how large they get is only known after. */
const answerBytes = 1024 * 1024;

function batchOptions(statement: (values: ValueForm) => string, withId: boolean) {
  let usualBytes = answerBytes / 32;
  return {
    maxItems: () => Math.max(1, Math.min(32, Math.floor(answerBytes / usualBytes))),
    maxBytes: Number.POSITIVE_INFINITY,
    sizeOf: () => 0,
    run: async (run: Run, requests: readonly GetTupleRequest[], signal?: Signal) => {
      const parameters = [
        requests.map((request) => request.threadId),
        requests.map((request) => request.checkpointNs),
      ];
      if (withId) parameters.push(requests.map((request) => request.checkpointId));
      const rows = await readValues(run, statement, parameters, signal);
      let bytes = 0;
      for (const row of rows) bytes += (row[6]?.length ?? 0) + (row[8]?.length ?? 0);
      usualBytes += (bytes / requests.length - usualBytes) / 8;
      const tuples = toTuples(rows);
      return requests.map((_, i) => tuples.get(i + 1));
    },
  };
}

const tupleColumns = `thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id,
    checkpoint::text as checkpoint_json, metadata::text as metadata_json,
    ${channelVersions("checkpoint")} as channel_versions, ${beforeFormat4("checkpoint")} as before_format_4`;

const namedStatement = (schema: string, values: ValueForm) => `
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
${tupleRows(values, `(${partRows(schema, "page")})`)}`;

const latestStatement = (schema: string, values: ValueForm) => `
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
${tupleRows(values, `(${partRows(schema, "page")})`)}`;

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
 * How values come: "text" has those of type json as they are and the others in hexadecimal,
 * two bytes for one; "bytes" has all in hexadecimal.
 */
export type ValueForm = "text" | "bytes";

/**
 * Reads with values as text, which is cheaper. A client may have stored as json what is no
 * UTF-8, which must not make its thread unreadable: then reads again with all of them as bytes.
 */
export async function readValues(
  run: Run,
  statement: (values: ValueForm) => string,
  parameters: readonly Parameter[],
  signal: Signal | undefined,
): Promise<Row[]> {
  try {
    return await run(statement("text"), parameters, signal);
  } catch (error) {
    if ((error as { code?: string }).code !== "22021") throw error;
    return run(statement("bytes"), parameters, signal);
  }
}

/**
 * The rows of the tuples in the CTE `page` (n, the key, parent_checkpoint_id,
 * checkpoint_json, metadata_json, channel_versions, before_format_4), for `toTuples`:
 * ordered by n, then the tuple itself, its blobs, its writes, its pending sends, its unchanged
 * channels. `parts` has all but the first, as `partRows` does. The SQL expression `candidates`
 * is added to the rows of the tuples themselves.
 */
export function tupleRows(values: ValueForm, parts: string, candidates = "null::bigint"): string {
  const [text, bytes] = valueColumns("part", values);
  // Every column of a row that is not null costs an object here.
  return `
select case when kind = 0 then n end, kind, a, b, c, d, e, f, data, idx, candidates
from (
  select n, 0 as kind, thread_id as a, checkpoint_ns as b, checkpoint_id as c,
    parent_checkpoint_id as d, checkpoint_json as e, metadata_json as f, null::bytea as data,
    null::integer as idx, null collate "C" as sort_path, null collate "C" as sort_task,
    ${candidates} as candidates
  from page
  union all
  select n, kind, a, b, type, d, ${text}, null, ${bytes}, idx, sort_path, sort_task, null
  from ${parts} as part
) as tuple_row
order by n, kind, sort_path, sort_task, idx`;
}

/**
 * What belongs to the tuples of the CTE `page`, their values not yet touched; of the blobs only
 * those for whose channel (`v.key`) and version (`v.value`) the SQL condition `isWanted` holds.
 *
 * The look-ups are lateral with a bound of their own so that the planner cannot turn them
 * into a scan of the whole table, whatever it believes about the number of channels.
 */
export function partRows(schema: string, page: string, isWanted = "true"): string {
  return `
select n, 1 as kind, v.key as a, v.value as b, b.type, null as d, b.blob, null::integer as idx,
  null collate "C" as sort_path, null collate "C" as sort_task
from ${page} as page
cross join lateral (select * from jsonb_each_text(channel_versions) as v where ${isWanted}) as v
cross join lateral (
  select type, blob from ${schema}.checkpoint_blobs b
  where b.thread_id = page.thread_id and b.checkpoint_ns = page.checkpoint_ns
    and b.channel = v.key and b.version = v.value
  limit 1
) as b
where b.type <> 'empty'
union all
select n, 2, w.task_id, w.channel, w.type, nullif(w.task_path, ''), w.blob, w.idx,
  null, w.task_id collate "C"
from ${page} as page
cross join lateral (
  select task_id, task_path, idx, channel, type, blob from ${schema}.checkpoint_writes w
  where w.thread_id = page.thread_id and w.checkpoint_ns = page.checkpoint_ns
    and w.checkpoint_id = page.checkpoint_id
  offset 0
) as w
union all
select n, 3, null, null, s.type, null, s.blob, s.idx,
  s.task_path collate "C", s.task_id collate "C"
from ${page} as page
cross join lateral (
  select task_path, task_id, idx, type, blob from ${schema}.checkpoint_writes s
  where page.before_format_4 and s.thread_id = page.thread_id
    and s.checkpoint_ns = page.checkpoint_ns and s.checkpoint_id = page.parent_checkpoint_id
    and s.channel = '__pregel_tasks'
  offset 0
) as s`;
}

/** Two columns of a row with a type and a blob, for `toValue`: the value as text, and as bytes. */
export function valueColumns(row: string, values: ValueForm): [string, string] {
  return values === "text"
    ? [
        `case when ${row}.type = 'json' then convert_from(${row}.blob, 'UTF8') end`,
        `case when ${row}.type <> 'json' then ${row}.blob end`,
      ]
    : ["null", `${row}.blob`];
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
          value: toValue(row[4], row[6], row[8]),
        }),
      );
    } else if (kind === writeRow) {
      tuple.pendingWrites.push(
        create(PendingWriteSchema, {
          taskId: text(row[2]),
          channel: text(row[3]),
          idx: Number(text(row[9])),
          value: toValue(row[4], row[6], row[8]),
          taskPath: text(row[5]),
        }),
      );
    } else if (kind === unchangedRow) {
      tuple.unchangedChannels.push(text(row[2]));
    } else {
      tuple.pendingSends.push(toValue(row[4], row[6], row[8]));
    }
  }
  return tuples;
}

// `kind` is one digit, so its first byte tells.
const tupleRow = 0x30;
const blobRow = 0x31;
const writeRow = 0x32;
const unchangedRow = 0x34;

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

type Column = Row[number] | undefined;

/** A value from its type and the two columns of `valueColumns`. */
export function toValue(type: Column, asText: Column, asBytes: Column): Value {
  return create(ValueSchema, { type: text(type), data: asText ?? bytes(asBytes) });
}

function text(column: Column): string {
  return column ? column.toString("utf8") : "";
}

/** Decodes bytea's text form, `\x` and two hex digits a byte. */
function bytes(column: Column): Uint8Array {
  return column ? Buffer.from(column.toString("latin1", 2), "hex") : new Uint8Array(0);
}
