import type { CheckpointKey, CheckpointTuple } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import { type ListRequest, ListView } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import type { Db, Parameter, Row } from "./db.js";
import { explainJson } from "./json.js";
import {
  beforeFormat4,
  channelVersions,
  readValues,
  toTuples,
  tupleRows,
  type ValueForm,
} from "./read.js";

/** The bounds of one page of a list. */
export interface PageBounds {
  /** Checkpoints of the first page: few, so that the first tuple leaves soon. */
  firstRows: number;
  /** Checkpoints of any page at the most. */
  maxRows: number;
  /** Bytes of a page at the most; a single larger checkpoint is a page of its own. */
  maxBytes: number;
}

/**
 * What each stalled reader costs twice, and what a first stream adds to a cold process:
 * 10,000 tuples of 5 KB grew it by 48 MB with 64 KiB a page, by 52 with 128, which was a tenth
 * faster.
 */
export const defaultPageBounds: PageBounds = { firstRows: 8, maxRows: 64, maxBytes: 64 * 1024 };

/**
 * Yields the checkpoints that match the request, newest first. From the second page on the
 * next page is read while one is consumed, and no further: a consumer that stalls costs two
 * pages of memory, no connection and no snapshot. postgres.js's cursors are no alternative:
 * they hold a connection, and can end early without an error (porsager/postgres#1166).
 */
export async function* list(
  db: Db,
  request: ListRequest,
  signal?: AbortSignal,
  bounds: PageBounds = defaultPageBounds,
): AsyncGenerator<CheckpointTuple, void> {
  if (request.limit === 0) return;
  const abandoned = new AbortController();
  const anySignal = signal ? AbortSignal.any([signal, abandoned.signal]) : abandoned.signal;
  const read = (last: LastSent | undefined, rows: number, left: number) =>
    readPage(db, request, last, Math.min(rows, left), bounds.maxBytes, anySignal);
  try {
    let left = request.limit ?? Number.POSITIVE_INFINITY;
    let page = await read(undefined, bounds.firstRows, left);
    for (let pages = 1; ; pages++) {
      const { tuples, isLast, cut } = page;
      const found = tuples.length;
      left -= found;
      const done = isLast || left === 0;
      // Not the tuple, which may be large.
      const { key, checkpointJson = "" } = tuples[found - 1] ?? {};
      const last = { key, checkpointJson };
      // A page that was cut for its bytes tells how many rows fit: ask for few more.
      const rows = Math.min(bounds.maxRows, cut ? found + 1 + (found >> 3) : found * 2);
      const next = !done && pages > 1 ? read(last, rows, left) : undefined;
      // Its error is thrown when its turn comes; until then it must not count as unhandled.
      next?.catch(() => {});
      for (let i = 0; i < found; i++) {
        const tuple = tuples[i] as CheckpointTuple;
        // A long history must not be held by its consumer's last page: hand over and forget.
        tuples[i] = undefined as never;
        yield tuple;
      }
      if (done) return;
      page = await (next ?? read(last, rows, left));
    }
  } finally {
    abandoned.abort();
  }
}

/** Of the last tuple of a page what the next page is read with. */
type LastSent = Pick<CheckpointTuple, "checkpointJson"> & { key: CheckpointKey | undefined };

interface Page {
  tuples: CheckpointTuple[];
  /** Whether rows that matched were left out for their bytes. */
  cut: boolean;
  /** Whether nothing comes after it. */
  isLast: boolean;
}

async function readPage(
  db: Db,
  request: ListRequest,
  last: LastSent | undefined,
  rows: number,
  maxBytes: number,
  signal: AbortSignal | undefined,
): Promise<Page> {
  const { statement, parameters } = pageStatement(db.schema, request, last, rows, maxBytes);
  const result: Row[] = await explainJson(
    db.run,
    { metadata_filter_json: request.metadataFilterJson },
    readValues(db.run, statement, parameters, signal),
  );
  const tuples = [...toTuples(result).values()];
  const candidates = Number(result[0]?.[candidatesColumn] ?? 0);
  const cut = candidates > tuples.length;
  return { tuples, cut, isLast: !cut && candidates < rows };
}

/** Where `pageStatement` adds the number of candidates to the columns of `tupleRows`. */
const candidatesColumn = 12;

/**
 * The id as checkpointd_checkpoints_newest_idx has it. If that index were on the plain column
 * the planner would also walk it for the latest checkpoints of one thread, reading everybody
 * else's to find them (seen with 110,000 rows).
 */
const newestId = `(checkpoint_id || '') collate "C"`;

/**
 * The statement of one page. Its access path by the conditions given:
 * - thread and namespace: the primary key backwards (or checkpointd_checkpoints_latest_idx,
 *   see getTuple), a range that starts at the cursor;
 * - thread alone: the primary key's range of the thread, sorted (the key is ordered by
 *   namespace first);
 * - neither: checkpointd_checkpoints_newest_idx backwards.
 * A metadata filter is applied to the rows these deliver.
 */
export function pageStatement(
  schema: string,
  request: ListRequest,
  last: LastSent | undefined,
  rows: number,
  maxBytes: number,
): { statement: (values: ValueForm) => string; parameters: Parameter[] } {
  const after = last?.key ?? request.after;
  const parameters: Parameter[] = [];
  const bind = (value: Parameter) => `$${parameters.push(value)}`;
  const id = request.threadId === undefined ? newestId : `checkpoint_id collate "C"`;
  const conditions: string[] = [];
  if (request.threadId !== undefined) conditions.push(`thread_id = ${bind(request.threadId)}`);
  if (request.checkpointNs !== undefined) {
    conditions.push(`checkpoint_ns = ${bind(request.checkpointNs)}`);
  }
  if (request.checkpointId !== undefined) conditions.push(`${id} = ${bind(request.checkpointId)}`);
  if (request.beforeCheckpointId !== undefined) {
    conditions.push(`${id} < ${bind(request.beforeCheckpointId)}`);
  }
  if (request.metadataFilterJson !== "") {
    const filter = `${bind(request.metadataFilterJson)}::text::jsonb`;
    // The second condition is evaluated once and always: a filter that is not JSON must be
    // refused also where no row is compared with it.
    conditions.push(`metadata @> ${filter}`, `${filter} is not null`);
  }
  let order = `${id} desc`;
  if (request.threadId === undefined) {
    order = `${id} desc, thread_id collate "C" desc, checkpoint_ns collate "C" desc`;
    if (after) {
      conditions.push(
        `(${id}, thread_id collate "C", checkpoint_ns collate "C")
          < (${bind(after.checkpointId)}, ${bind(after.threadId)}, ${bind(after.checkpointNs)})`,
      );
    }
  } else if (request.checkpointNs === undefined) {
    order = `${id} desc, checkpoint_ns collate "C" desc`;
    if (after) {
      conditions.push(
        `(${id}, checkpoint_ns collate "C") < (${bind(after.checkpointId)}, ${bind(after.checkpointNs)})`,
      );
    }
  } else if (after) {
    conditions.push(`${id} < ${bind(after.checkpointId)}`);
  }
  const candidates = `
  select thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata
  from ${schema}.checkpoints
  ${conditions.length > 0 ? `where ${conditions.join(" and ")}` : ""}
  order by ${order}
  limit ${bind(rows)}`;
  const limitBytes = `where preceding_bytes < ${bind(maxBytes)}`;
  if (request.view === ListView.METADATA) {
    return { statement: () => headersStatement(candidates, order, limitBytes), parameters };
  }
  const before = request.omitUnchanged
    ? {
        threadId: bind(last?.key?.threadId ?? null),
        checkpointNs: bind(last?.key?.checkpointNs ?? null),
        checkpointJson: bind(last?.checkpointJson ?? null),
      }
    : undefined;
  const statement = (values: ValueForm) =>
    tuplesStatement(schema, candidates, order, limitBytes, before, values);
  return { statement, parameters };
}

/**
 * Reads the sizes of all candidates and the contents of those that fit. Sizes come from the
 * rows and from TOAST pointers, so what does not fit is not read.
 *
 * With `before`, parameters that hold the last tuple of the page before this one (or null),
 * channels in the version of the tuple before are told by name (`unchanged`) instead of read.
 * Not looked up by its key: the client has that tuple as it was sent.
 */
const tuplesStatement = (
  schema: string,
  candidates: string,
  order: string,
  limitBytes: string,
  before: { threadId: string; checkpointNs: string; checkpointJson: string } | undefined,
  values: ValueForm,
) => `
with listed as materialized (
  select row_number() over (order by ${order}) as n, thread_id, checkpoint_ns, checkpoint_id,
    parent_checkpoint_id, checkpoint::text as checkpoint_json, metadata::text as metadata_json,
    ${channelVersions("checkpoint")} as channel_versions,
    ${beforeFormat4("checkpoint")} as before_format_4
  from (${candidates}) as c
)${before ? withoutUnchanged(before) : ", candidate as (select * from listed)"}, page as materialized (
  select * from (
    select candidate.*, sum(size.bytes) over (order by n) - size.bytes as preceding_bytes
    from candidate
    cross join lateral (
      select octet_length(checkpoint_json) + octet_length(metadata_json)
        + coalesce((
            select sum(octet_length(b.blob))
            from jsonb_each_text(channel_versions) as v
            cross join lateral (
              select blob from ${schema}.checkpoint_blobs b
              where b.thread_id = candidate.thread_id
                and b.checkpoint_ns = candidate.checkpoint_ns
                and b.channel = v.key and b.version = v.value
              limit 1
            ) as b
          ), 0)
        + coalesce((
            select sum(octet_length(w.blob)) from ${schema}.checkpoint_writes w
            where w.thread_id = candidate.thread_id
              and w.checkpoint_ns = candidate.checkpoint_ns
              and w.checkpoint_id = candidate.checkpoint_id
          ), 0) as bytes
      -- Without it the sizes are looked up twice, once for each use.
      offset 0
    ) as size
  ) as sized
  ${limitBytes}
)
${tupleRows(schema, values, "(select count(*) from listed)", before !== undefined)}`;

/** `listed` with only the versions that differ from those of the row before, and `unchanged`. */
const withoutUnchanged = (before: {
  threadId: string;
  checkpointNs: string;
  checkpointJson: string;
}) => `, previous as (
  select listed.*, case
    when n > 1 then case
      when lag(thread_id) over stream = thread_id and lag(checkpoint_ns) over stream = checkpoint_ns
        then lag(channel_versions) over stream
    end
    when thread_id = ${before.threadId}::text and checkpoint_ns = ${before.checkpointNs}::text
      then ${channelVersions(`${before.checkpointJson}::text::jsonb`)}
  end as versions_before
  from listed
  window stream as (order by n)
), candidate as materialized (
  select n, thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint_json,
    metadata_json, before_format_4, versions.changed as channel_versions, versions.unchanged
  from previous
  cross join lateral (
    select
      jsonb_object_agg(v.key, v.value) filter (where not same.version) as changed,
      array_agg(v.key) filter (where same.version) as unchanged
    from jsonb_each_text(channel_versions) as v
    cross join lateral (select coalesce(versions_before ->> v.key = v.value, false)) as same (version)
  ) as versions
)`;

const headersStatement = (candidates: string, order: string, limitBytes: string) => `
with candidate as materialized (
  select row_number() over (order by ${order}) as n, thread_id, checkpoint_ns, checkpoint_id,
    parent_checkpoint_id, metadata::text as metadata_json
  from (${candidates}) as c
), page as (
  select *, sum(octet_length(metadata_json)) over (order by n)
    - octet_length(metadata_json) as preceding_bytes
  from candidate
)
select n, 0, thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, null, metadata_json,
  null, 0, '', '', (select count(*) from candidate)
from page
${limitBytes}
order by n`;
