import { Buffer } from "node:buffer";
import type { ThreadCounts } from "../../gen/checkpointd/v1/thread_service_pb.js";
import { CheckpointdError, invalidArgument } from "../errors.js";
import { countsOf, toCounts } from "./counts.js";
import type { Db, Signal } from "./db.js";
import { createColumns, text } from "./rows.js";
import {
  checkpointBlobs,
  checkpoints,
  checkpointWrites,
  columnNames,
  type Table,
} from "./tables.js";
import { type JsonForm, jsonBytes, runGuarded } from "./undeliverable.js";

/** What one call copies at the most: bytes as they are stored, and some for each row. */
const mostCopiedBytes = 256 * 1024 * 1024;
const bytesOfRow = 256;

/**
 * Copies everything of a thread under another name in one statement, so all or nothing, and
 * returns how much. Throws TARGET_NOT_EMPTY if anything is stored under that name, also when two
 * copies to it run at once, and TOO_LONG if it makes a key that Postgres cannot index. Throws
 * TOO_LONG, before anything is written, for a thread of more than 256 MiB: a request of 60 bytes
 * must not be worth any amount of writing.
 *
 * Relies on the primary keys.
 */
export async function copyThread(
  db: Db,
  source: string,
  target: string,
  signal?: Signal,
): Promise<ThreadCounts> {
  const copied = runGuarded(
    db,
    db.runLong,
    (json) => statement(db.schema, json),
    [source, target, mostCopiedBytes],
    signal,
  );
  const [row] = await copied.catch((error) => {
    const { code } = error as { code?: string };
    if (code === "23505") throw targetNotEmpty();
    // The source's keys are stored, so it is the other name that makes one too long.
    if (code === "54000") throw targetTooLong(source, target);
    throw error;
  });
  if (text(row?.[answer.at.is_taken]) === "t") throw targetNotEmpty();
  const bytes = Number(text(row?.[answer.at.source_bytes]));
  if (bytes > mostCopiedBytes) throw sourceTooLong(bytes);
  return toCounts(row, answer.at);
}

function targetNotEmpty(): CheckpointdError {
  return new CheckpointdError(
    "failed_precondition",
    "target_thread_id: something is stored under this name already",
    { reason: "TARGET_NOT_EMPTY", field: "target_thread_id" },
  );
}

function sourceTooLong(bytes: number): CheckpointdError {
  return new CheckpointdError(
    "resource_exhausted",
    `source_thread_id: the thread has ${bytes} bytes, more than the ${mostCopiedBytes} that one call ` +
      "copies; prune it first, or use checkpointd threads export and import",
    { reason: "TOO_LONG", field: "source_thread_id", limit: mostCopiedBytes },
  );
}

function targetTooLong(source: string, target: string): CheckpointdError {
  const [most, bytes] = [source, target].map((name) => Buffer.byteLength(name));
  const message =
    `has ${bytes} bytes, which make a key too long for Postgres; ` +
    `use a name that is no longer than the source's, of ${most} bytes`;
  return invalidArgument("target_thread_id", "TOO_LONG", message, most);
}

const answer = createColumns(
  "checkpoints",
  "blobs",
  "writes",
  "stored_bytes",
  "is_taken",
  "source_bytes",
);

// Sizes come from the rows and their TOAST pointers: nothing is read that is not copied.
const statement = (schema: string, json: JsonForm) => `
with target as materialized (
  select exists (select from ${schema}.checkpoints where thread_id = $2::text)
    or exists (select from ${schema}.checkpoint_blobs where thread_id = $2::text)
    or exists (select from ${schema}.checkpoint_writes where thread_id = $2::text) as is_taken
), source as materialized (
  select coalesce(sum(bytes), 0) as bytes from (
    select pg_column_size(checkpoint) + pg_column_size(metadata) + ${bytesOfRow} as bytes
    from ${schema}.checkpoints where thread_id = $1::text
    union all
    select coalesce(octet_length(blob), 0) + ${bytesOfRow}
    from ${schema}.checkpoint_blobs where thread_id = $1::text
    union all
    select octet_length(blob) + ${bytesOfRow}
    from ${schema}.checkpoint_writes where thread_id = $1::text
  ) as stored
), allowed as materialized (
  select true as yes where not (select is_taken from target) and (select bytes from source) <= $3::bigint
), checkpoints as (
  ${copyRows(schema, checkpoints, ["type", "created_at"])}
  returning ${jsonBytes("checkpoints", json)} as bytes
), blobs as (
  ${copyRows(schema, checkpointBlobs)}
  returning octet_length(blob) as bytes
), writes as (
  ${copyRows(schema, checkpointWrites)}
  returning octet_length(blob) as bytes
)
select ${answer.all({
  ...countsOf("checkpoints", "blobs", "writes"),
  is_taken: "(select is_taken from target)",
  source_bytes: "(select bytes from source)",
})}`;

/** Inserts the rows of the source as those of the target; `more` are columns that no put writes. */
function copyRows(schema: string, table: Table<never, never>, more: readonly string[] = []) {
  const columns = [...columnNames(table), ...more].filter((name) => name !== "thread_id");
  return `insert into ${schema}.${table.name} (thread_id, ${columns.join(", ")})
  select $2::text, ${columns.join(", ")}
  from ${schema}.${table.name} where thread_id = $1::text and exists (select from allowed)`;
}
