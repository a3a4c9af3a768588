/** Checkpoints as tuples: the rows of what belongs to them, and how these become tuples. */
import { create } from "@bufbuild/protobuf";
import {
  ChannelBlobSchema,
  type CheckpointTuple,
  CheckpointTupleSchema,
  OmittedValueSchema,
  PendingWriteSchema,
  type Value,
  ValueSchema,
} from "../../gen/checkpointd/v1/checkpoint_pb.js";
import type { Row } from "./db.js";
import { bytes, type Cell, createColumns, text } from "./rows.js";
import { tellable } from "./undeliverable.js";

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
 * The columns of the row of a tuple itself, which has `n`. They are as many as those of `partRow`
 * and have their types, because a union has both (`bytes` is null here): with a column of its own
 * for each name a lone getTuple took 3 % longer.
 */
export const tupleRow = createColumns(
  "n",
  "thread_id",
  "checkpoint_ns",
  "checkpoint_id",
  "parent_checkpoint_id",
  "checkpoint_json",
  "metadata_json",
  "bytes",
  "candidates",
);

/**
 * The columns of a row of what belongs to the tuple before it; `n` is null. A blob has a version, a
 * write a task, an unchanged channel only its name, and a pending send only its value. Of a value that
 * is left out the size is told, and no bytes.
 */
export const partRow = createColumns(
  "n",
  "channel",
  "version",
  "task_id",
  "task_path",
  "type",
  "omitted",
  "bytes",
  "idx",
);

/**
 * The rows of the tuples in the CTE `page` (n, the key, parent_checkpoint_id,
 * checkpoint_json, metadata_json, channel_versions, before_format_4), for `toTuples`:
 * ordered by n, then the tuple itself, its blobs by channel, its writes and its pending sends by
 * path, task and idx (in which order LangGraph applied them), its unchanged channels. `parts` has all
 * but the first, as `partRows` does. The SQL expression `candidates` is added to the rows of the
 * tuples themselves. JSON is null where it is too large to be told. With `end`, a relation with a key
 * and `candidates`, its row comes last, without an n. `omitted` is the SQL expression of the size, as text,
 * of a value that is left out.
 */
export function tupleRows(
  parts: string,
  candidates = "null",
  end?: string,
  omitted = "null",
): string {
  const tuple = tupleRow.some({
    n: "n",
    thread_id: "thread_id",
    checkpoint_ns: "checkpoint_ns",
    checkpoint_id: "checkpoint_id",
    parent_checkpoint_id: "parent_checkpoint_id",
    checkpoint_json: tellable("checkpoint_json"),
    metadata_json: tellable("metadata_json"),
    candidates,
  });
  const part = partRow.union({
    channel: "channel",
    version: "version",
    task_id: "task_id",
    task_path: "task_path",
    type: "type",
    omitted,
    bytes: "blob",
    idx: "idx",
  });
  return `
select ${tupleRow.names}
from (
  select ${tuple}, n as tuple_n, 0 as kind, null collate "C" as sort_path,
    null collate "C" as sort_key, null as sort_idx
  from page
  union all
  select ${part}, n, kind, sort_path, sort_key, idx
  from ${parts} as part${end === undefined ? "" : endRow(end)}
) as tuple_row
order by tuple_n, kind, sort_path, sort_key, sort_idx`;
}

const endRow = (end: string) => `
  union all
  select ${tupleRow.union(endColumns)}, null, 0, null, null, null
  from ${end} as e`;

/** Of the row that tells how far a statement came. */
export const endColumns = {
  n: "null::bigint",
  thread_id: "e.thread_id",
  checkpoint_ns: "e.checkpoint_ns",
  checkpoint_id: "e.checkpoint_id",
  candidates: "e.candidates",
};

/** The columns of `partRows`; `kind` is there for the order of what belongs to a tuple. */
export const partColumns = createColumns(
  "n",
  "kind",
  "channel",
  "version",
  "task_id",
  "task_path",
  "idx",
  "type",
  "blob",
  "sort_path",
  "sort_key",
);

/**
 * What belongs to the tuples of the CTE `page`, their values not yet touched; of the blobs only
 * those for whose channel (`v.key`) and version (`v.value`) the SQL condition `isWanted` holds.
 *
 * The look-ups are lateral with a bound of their own so that the planner cannot turn them
 * into a scan of the whole table, whatever it believes about the number of channels. Where all
 * tuples are of one thread, `thread` is the parameter that names it: through the join alone Postgres
 * looks into each partition of a table, and Citus refuses the statement.
 */
export function partRows(
  schema: string,
  page: string,
  isWanted = "true",
  thread = "page.thread_id",
): string {
  const blob = {
    n: "n",
    kind: "1",
    channel: "v.key",
    version: "v.value",
    type: "b.type",
    blob: "b.blob",
    sort_key: `v.key collate "C"`,
  };
  const write = {
    n: "n",
    kind: "2",
    channel: "w.channel",
    task_id: "w.task_id",
    task_path: "nullif(w.task_path, '')",
    idx: "w.idx",
    type: "w.type",
    blob: "w.blob",
    sort_path: `w.task_path collate "C"`,
    sort_key: `w.task_id collate "C"`,
  };
  const send = {
    n: "n",
    kind: "3",
    idx: "s.idx",
    type: "s.type",
    blob: "s.blob",
    sort_path: `s.task_path collate "C"`,
    sort_key: `s.task_id collate "C"`,
  };
  return `
select ${partColumns.some(blob)}
from ${page} as page
cross join lateral (select * from jsonb_each_text(channel_versions) as v where ${isWanted}) as v
cross join lateral (
  select type, blob from ${schema}.checkpoint_blobs b
  where b.thread_id = ${thread} and b.checkpoint_ns = page.checkpoint_ns
    and b.channel = v.key and b.version = v.value
  limit 1
) as b
where b.type <> 'empty'
union all
select ${partColumns.union(write)}
from ${page} as page
cross join lateral (
  select task_id, task_path, idx, channel, type, blob from ${schema}.checkpoint_writes w
  where w.thread_id = ${thread} and w.checkpoint_ns = page.checkpoint_ns
    and w.checkpoint_id = page.checkpoint_id
  offset 0
) as w
union all
select ${partColumns.union(send)}
from ${page} as page
cross join lateral (
  select task_path, task_id, idx, type, blob from ${schema}.checkpoint_writes s
  where page.before_format_4 and s.thread_id = ${thread}
    and s.checkpoint_ns = page.checkpoint_ns and s.checkpoint_id = page.parent_checkpoint_id
    and s.channel = '__pregel_tasks'
  offset 0
) as s`;
}

/** Puts the rows of `tupleRows` back together, by n: the one place where rows become tuples. */
export function toTuples(rows: readonly Row[]): Map<number, CheckpointTuple> {
  const { at } = partRow;
  const tuples = new Map<number, CheckpointTuple>();
  let tuple: CheckpointTuple | undefined;
  for (const row of rows) {
    if (row[tupleRow.at.n] || !tuple) {
      tuple = toTuple(row);
      tuples.set(Number(text(row[tupleRow.at.n])), tuple);
    } else if (row[at.omitted]) {
      tuple.omitted.push(
        create(OmittedValueSchema, {
          channel: text(row[at.channel]),
          version: text(row[at.version]),
          taskId: text(row[at.task_id]),
          idx: Number(text(row[at.idx])),
          taskPath: text(row[at.task_path]),
          type: text(row[at.type]),
          bytes: Number(text(row[at.omitted])),
        }),
      );
    } else if (row[at.version]) {
      tuple.blobs.push(
        create(ChannelBlobSchema, {
          channel: text(row[at.channel]),
          version: text(row[at.version]),
          value: toValue(row[at.type], row[at.bytes]),
        }),
      );
    } else if (row[at.task_id]) {
      tuple.pendingWrites.push(
        create(PendingWriteSchema, {
          taskId: text(row[at.task_id]),
          channel: text(row[at.channel]),
          idx: Number(text(row[at.idx])),
          value: toValue(row[at.type], row[at.bytes]),
          taskPath: text(row[at.task_path]),
        }),
      );
    } else if (row[at.channel]) {
      tuple.unchangedChannels.push(text(row[at.channel]));
    } else {
      tuple.pendingSends.push(toValue(row[at.type], row[at.bytes]));
    }
  }
  return tuples;
}

/** Whether a row is of a tuple whose JSON, or of a header whose metadata, is too large to be told. */
export function isLeftOut(row: Row, isHeader = false): boolean {
  const { n, checkpoint_json, metadata_json } = tupleRow.at;
  if (!row[n]) return false;
  return row[metadata_json] === null || (!isHeader && row[checkpoint_json] === null);
}

/** About how many bytes a row of `tupleRows` has: those of its JSON or its value. */
export function bytesOfRow(row: Row): number {
  const { n, checkpoint_json, metadata_json } = tupleRow.at;
  const { bytes } = partRow.at;
  if (!row[n]) return row[bytes]?.length ?? 0;
  return (row[checkpoint_json]?.length ?? 0) + (row[metadata_json]?.length ?? 0);
}

/** How many bytes the values of a tuple have. */
export function valueBytes({ blobs, pendingWrites }: CheckpointTuple): number {
  let bytes = 0;
  for (const { value } of blobs) bytes += value?.data.length ?? 0;
  for (const { value } of pendingWrites) bytes += value?.data.length ?? 0;
  return bytes;
}

function toTuple(row: Row): CheckpointTuple {
  const { at } = tupleRow;
  const tuple = create(CheckpointTupleSchema, {
    key: {
      threadId: text(row[at.thread_id]),
      checkpointNs: text(row[at.checkpoint_ns]),
      checkpointId: text(row[at.checkpoint_id]),
    },
    checkpointJson: text(row[at.checkpoint_json]),
    metadataJson: text(row[at.metadata_json]),
  });
  // Some old savers stored '' for "no parent".
  if (row[at.parent_checkpoint_id]?.length) {
    tuple.parentCheckpointId = text(row[at.parent_checkpoint_id]);
  }
  return tuple;
}

/** A value from the columns of its type and its bytes. */
export function toValue(type: Cell, data: Cell): Value {
  return create(ValueSchema, { type: text(type), data: bytes(data) });
}
