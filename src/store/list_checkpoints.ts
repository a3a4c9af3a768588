import { create } from "@bufbuild/protobuf";
import {
  type CheckpointKey,
  CheckpointKeySchema,
  type CheckpointTuple,
} from "../../gen/checkpointd/v1/checkpoint_pb.js";
import { type ListRequest, ListView } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { CheckpointdError } from "../errors.js";
import { type Db, isDistributed, type Parameter, type Row, type Signal } from "./db.js";
import { explainJson } from "./json.js";
import {
  inlinedOf,
  type Omission,
  omissionOf,
  withOmitted,
  withoutInlined,
} from "./omitted_values.js";
import { createReadNamed } from "./read.js";
import { mostResultBytes } from "./results.js";
import { text } from "./rows.js";
import {
  beforeFormat4,
  channelVersions,
  endColumns,
  isLeftOut,
  partColumns,
  partRows,
  toTuples,
  tupleRow,
  tupleRows,
  valueBytes,
} from "./tuples.js";
import { guarded, type JsonForm, printable, tellable } from "./undeliverable.js";

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
 * Of the pages behind a stream, of which a reader that stalls holds two in memory: 10,000 tuples
 * of 5 KB grew a cold process by 48 MB with 64 KiB a page, by 52 with 128.
 */
export const streamBounds: PageBounds = { firstRows: 16, maxRows: 64, maxBytes: 64 * 1024 };

/**
 * Of a page that is asked for by itself, of which nothing stays here. Lists of 1,000 in a second:
 * 4.1 with 64 KiB, 5.2 with 256, 5.5 with 1024.
 */
const pageBounds: PageBounds = { firstRows: 16, maxRows: 128, maxBytes: 256 * 1024 };

/**
 * Yields the checkpoints that match the request, newest first. From the second page on the
 * next page is read while one is consumed, unless that is large, and no further: a consumer that
 * stalls costs two pages of memory, no connection and no snapshot. postgres.js's cursors are no alternative:
 * they hold a connection, and can end early without an error (porsager/postgres#1166).
 */
export async function* list(
  db: Db,
  request: ListRequest,
  signal?: Signal,
  bounds: PageBounds = streamBounds,
): AsyncGenerator<CheckpointTuple, void> {
  const abandoned = new AbortController();
  if (signal?.ran) Object.assign(abandoned.signal, { ran: signal.ran });
  const onAbort = () => abandoned.abort(signal?.reason);
  signal?.throwIfAborted();
  signal?.addEventListener("abort", onAbort);
  let left = request.limit;
  const read = (maxTuples: number, last?: LastSent) => {
    const rest = left === undefined ? request : { ...request, limit: left };
    return listPage(db, rest, maxTuples, last, abandoned.signal, bounds);
  };
  try {
    let page = await read(0);
    for (let pages = 1; ; pages++) {
      const { tuples, nextMaxTuples } = page;
      const found = tuples.length;
      if (left !== undefined) left -= found;
      const done = nextMaxTuples === 0;
      // Not the tuple, which may be large.
      const { key, checkpointJson = "" } = tuples[found - 1] ?? {};
      const last = key && { key, checkpointJson };
      const readsAhead = !done && pages > 1 && sum(tuples.map(valueBytes)) <= mostBytesAhead;
      const next = readsAhead ? read(nextMaxTuples, last) : undefined;
      // Its error is thrown when its turn comes; until then it must not count as unhandled.
      next?.catch(() => {});
      for (let i = 0; i < found; i++) {
        const tuple = tuples[i] as CheckpointTuple;
        // A long history must not be held by its consumer's last page: hand over and forget.
        tuples[i] = undefined as never;
        yield tuple;
      }
      if (done) return;
      page = await (next ?? read(nextMaxTuples, last));
    }
  } finally {
    signal?.removeEventListener("abort", onAbort);
    abandoned.abort();
  }
}

/** The values of a page that another one is read beside: what stalls is not to hold large ones twice. */
const mostBytesAhead = 1024 * 1024;

const sum = (numbers: readonly number[]) => numbers.reduce((total, each) => total + each, 0);

/** Of the last tuple of a page what the next page is read with. */
export interface LastSent {
  key: CheckpointKey;
  checkpointJson: string;
}

/** Checkpoints of a list that follow each other. */
export interface Page {
  tuples: CheckpointTuple[];
  /** How many the next page should have, 0 when nothing comes after this one. */
  nextMaxTuples: number;
}

/**
 * Checkpoints that one statement of a filtered list looks at, whatever the filter lets through: few
 * at first, four times as many while that does not fill the page. So none runs long, however much
 * is stored, and lists that find nothing take turns with those of others.
 */
const leastExamined = 128;
const mostExamined = 2_048;
/** The same of one thread in all namespaces, whose keys each statement sorts. */
const mostExaminedOfThread = 8_192;

/**
 * Reads the checkpoints that match the request and come after `last` (or `request.after`), in the
 * order of `list`: at most `maxTuples`, or few if it is 0; one at least, unless nothing comes after
 * it. Checkpoints too large to be told are left out and reported. Throws INVALID_ARGUMENT if the
 * metadata filter is no JSON that Postgres takes.
 */
export async function listPage(
  db: Db,
  request: ListRequest,
  maxTuples: number,
  last: LastSent | undefined,
  signal?: Signal,
  bounds: PageBounds = pageBounds,
): Promise<Page> {
  const { limit = Number.POSITIVE_INFINITY } = request;
  if (limit === 0) return { tuples: [], nextMaxTuples: 0 };
  const rows = Math.min(maxTuples || bounds.firstRows, bounds.maxRows, limit);
  const isHeader = request.view === ListView.METADATA;
  if (isDistributed(db) && request.threadId === undefined && !isHeader) {
    return readDistributedPage(db, request, rows, last, signal, bounds);
  }
  let after = last?.key ?? request.after;
  const mostToExamine = isOfThread(request) ? mostExaminedOfThread : mostExamined;
  for (let examine = leastExamined; ; examine = Math.min(examine * 4, mostToExamine)) {
    const page = { after, last, rows, examine, maxBytes: bounds.maxBytes };
    const { statement, parameters } = pageStatement(db.schema, request, page);
    const result: Row[] = await explainJson(
      db.runLong,
      {
        metadata_filter_json: request.metadataFilterJson,
        after_checkpoint_json: last?.checkpointJson ?? "",
      },
      guarded(db, (json) => db.runLong(statement(json), parameters, signal)),
    );
    const end = isFiltered(request) ? result.pop() : undefined;
    const read = toTuples(result);
    const found = read.size;
    const candidates = Number(text(result[0]?.[tupleRow.at.candidates]));
    const lastKey = [...read.values()].at(-1)?.key;
    const untold = result.filter((row) => isLeftOut(row, isHeader));
    if (untold.length > 0 && request.omitUnchanged) {
      // What comes after one of them would refer to what is not sent.
      const complete = { ...request, omitUnchanged: false };
      return listPage(db, complete, maxTuples, last, signal, bounds);
    }
    for (const row of untold) {
      db.leaveOut(toKey(row));
      read.delete(Number(text(row[tupleRow.at.n])));
    }
    const tuples = [...read.values()];
    const isCut = candidates > found;
    const isFull = isCut || found === rows;
    if (tuples.length === limit || (!isFull && !hasMore(end, examine))) {
      return { tuples, nextMaxTuples: 0 };
    }
    if (tuples.length > 0) {
      // Reads these again: that costs less than a page for each few.
      if (!isFull && examine < mostToExamine) continue;
      // A page that was cut for its bytes tells how many rows fit: ask for few more.
      const more = isCut ? found + 1 + (found >> 3) : Math.max(found * 2, rows);
      return { tuples, nextMaxTuples: Math.min(bounds.maxRows, more) };
    }
    // Nothing to be told of them: go on after what was looked at.
    after = lastKey ?? toKey(end);
  }
}

/**
 * A page over all threads where they are distributed: the keys by a fan-out, which each node answers
 * in order and up to the limit, and then each tuple, complete, from the node that has it.
 */
async function readDistributedPage(
  db: Db,
  request: ListRequest,
  rows: number,
  last: LastSent | undefined,
  signal: Signal | undefined,
  bounds: PageBounds,
): Promise<Page> {
  const headers = { ...request, view: ListView.METADATA, omitUnchanged: false };
  const page = await listPage(db, headers, rows, last, signal, bounds);
  const keys = page.tuples.map(({ key }) => key as CheckpointKey);
  const read = createReadNamed(db);
  const tuples: CheckpointTuple[] = [];
  let bytes = 0;
  let done = 0;
  for (; done < keys.length && bytes < bounds.maxBytes; done++) {
    const key = keys[done] as CheckpointKey;
    const tuple = await read(key, signal);
    if (tuple instanceof CheckpointdError) db.leaveOut(key);
    else if (tuple) {
      tuples.push(tuple);
      bytes += valueBytes(tuple) + tuple.checkpointJson.length + tuple.metadataJson.length;
    }
  }
  if (done === keys.length && page.nextMaxTuples === 0) return { tuples, nextMaxTuples: 0 };
  if (tuples.length === 0) {
    // What there was is gone or too large: go on behind it.
    const key = keys[done - 1] as CheckpointKey;
    return listPage(db, request, rows, { key, checkpointJson: "" }, signal, bounds);
  }
  const isCut = done < keys.length;
  const more = isCut ? done + 1 + (done >> 3) : page.nextMaxTuples;
  return { tuples, nextMaxTuples: Math.min(bounds.maxRows, more) };
}

/** Whether rows that the conditions of the keys deliver are looked at and may not be returned. */
const isFiltered = ({ metadataFilterJson, threadId, checkpointNs }: ListRequest) =>
  metadataFilterJson !== "" || (threadId === undefined && checkpointNs !== undefined);

/** Whether a list is of one thread in all its namespaces. */
const isOfThread = ({ threadId, checkpointNs }: ListRequest) =>
  threadId !== undefined && checkpointNs === undefined;

/** Whether a statement looked at all that it was to, so that more may follow. */
const hasMore = (end: Row | undefined, examine: number) =>
  Number(text(end?.[tupleRow.at.candidates])) === examine;

const toKey = (row: Row | undefined) =>
  create(CheckpointKeySchema, {
    threadId: text(row?.[tupleRow.at.thread_id]),
    checkpointNs: text(row?.[tupleRow.at.checkpoint_ns]),
    checkpointId: text(row?.[tupleRow.at.checkpoint_id]),
  });

/** Which page of a list is read. */
interface WantedPage {
  /** What it comes after. */
  after: CheckpointKey | undefined;
  /** The last tuple that was sent. */
  last: LastSent | undefined;
  /** Checkpoints at the most. */
  rows: number;
  /** Checkpoints that a filter is applied to at the most. */
  examine: number;
  maxBytes: number;
}

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
 * - thread alone: the primary key's range of the thread, without its rows, sorted (the key is ordered
 *   by namespace first), and then the rows of the first. From the rows themselves the planner would
 *   sort everybody's: 84 ms instead of 7 for a thread of 20,000 beside 200,000;
 * - neither: checkpointd_checkpoints_newest_idx backwards.
 * A metadata filter, and a namespace without a thread, are applied to the first so many rows that
 * these deliver, and the last row tells how far that was.
 */
export function pageStatement(
  schema: string,
  request: ListRequest,
  { after, last, rows, examine, maxBytes }: WantedPage,
): { statement: (json: JsonForm) => string; parameters: Parameter[] } {
  const parameters: Parameter[] = [];
  const bind = (value: Parameter) => `$${parameters.push(value)}`;
  const id = request.threadId === undefined ? newestId : `checkpoint_id collate "C"`;
  const conditions: string[] = [];
  const filters: string[] = [];
  const thread = request.threadId === undefined ? undefined : bind(request.threadId);
  if (thread) conditions.push(`thread_id = ${thread}`);
  if (request.checkpointNs !== undefined) {
    const ofKey = request.threadId === undefined ? filters : conditions;
    ofKey.push(`checkpoint_ns = ${bind(request.checkpointNs)}`);
  }
  if (request.checkpointId !== undefined) conditions.push(`${id} = ${bind(request.checkpointId)}`);
  if (request.beforeCheckpointId !== undefined) {
    conditions.push(`${id} < ${bind(request.beforeCheckpointId)}`);
  }
  if (request.metadataFilterJson !== "") {
    const filter = `${bind(request.metadataFilterJson)}::text::jsonb`;
    // The second condition is evaluated once and always: a filter that is not JSON must be
    // refused also where no row is compared with it.
    filters.push(`metadata @> ${filter}`, `${filter} is not null`);
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
  const inOrder = (columns: string, from: string, where: readonly string[], most: number) => `
  select ${columns}
  from ${from}
  ${where.length > 0 ? `where ${where.join(" and ")}` : ""}
  order by ${order}
  limit ${bind(most)}`;
  const columns =
    "thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata";
  const ofTable = (most: number) => {
    const table = `${schema}.checkpoints`;
    if (!isOfThread(request)) return inOrder(columns, table, conditions, most);
    const keys = inOrder("thread_id, checkpoint_ns, checkpoint_id", table, conditions, most);
    return `
  select ${columns}
  from (${keys}
  ) as key
  cross join lateral (
    select parent_checkpoint_id, checkpoint, metadata from ${table} c
    where c.thread_id = ${thread} and c.checkpoint_ns = key.checkpoint_ns
      and c.checkpoint_id = key.checkpoint_id
    limit 1
  ) as c`;
  };
  const examined = filters.length > 0 ? { order, rows: ofTable(examine) } : undefined;
  const candidates = examined ? inOrder(columns, "examined", filters, rows) : ofTable(rows);
  const limitBytes = `where preceding_bytes < ${bind(maxBytes)}`;
  if (request.view === ListView.METADATA) {
    return {
      statement: (json) => headersStatement(examined, guard(candidates, json), order, limitBytes),
      parameters,
    };
  }
  const before = request.omitUnchanged
    ? {
        threadId: bind(last?.key.threadId ?? null),
        checkpointNs: bind(last?.key.checkpointNs ?? null),
        checkpointJson: bind(last?.checkpointJson ?? null),
      }
    : undefined;
  const omission = omissionOf(request, bind);
  const statement = (json: JsonForm) =>
    tuplesStatement(
      schema,
      examined,
      guard(candidates, json),
      order,
      limitBytes,
      before,
      thread,
      omission,
    );
  return { statement, parameters };
}

/** Rows that a filter is applied to, in their order. */
type Examined = { order: string; rows: string } | undefined;

const withExamined = (examined: Examined) =>
  examined ? `examined as materialized (${examined.rows}\n), ` : "";

/** The last of them and their number, where there are any; else a row without a key and 0. */
const endOf = (examined: Exclude<Examined, undefined>) => `(
    select last.*, (select count(*) from examined) as candidates
    from (select) as always
    left join (
      select thread_id, checkpoint_ns, checkpoint_id from examined
      order by ${examined.order.replaceAll(" desc", "")}
      limit 1
    ) as last on true
  )`;

const guard = (candidates: string, json: JsonForm) =>
  json === "all"
    ? candidates
    : `
  select thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id,
    ${printable("checkpoint", json)} as checkpoint, ${printable("metadata", json)} as metadata
  from (${candidates}) as c
  offset 0`;

/**
 * Finds what belongs to all candidates, and reads it for those that fit: the sizes come from the
 * rows and from TOAST pointers, so of what does not fit nothing is read but small values.
 *
 * With `before`, parameters that hold the last tuple of the page before this one (or null),
 * channels in the version of the tuple before are told by name (`unchanged`) instead of read.
 * Not looked up by its key: the client has that tuple as it was sent.
 *
 * With an omission the values that it names are told by their sizes alone.
 */
const tuplesStatement = (
  schema: string,
  examined: Examined,
  candidates: string,
  order: string,
  limitBytes: string,
  before: { threadId: string; checkpointNs: string; checkpointJson: string } | undefined,
  thread: string | undefined,
  omission: Omission | undefined,
) => {
  const parts = partRows(schema, "candidate", before && `not ${isUnchanged}`, thread);
  return `
with ${withExamined(examined)}candidate as materialized (
  select row_number() over stream as n, thread_id, checkpoint_ns, checkpoint_id,
    parent_checkpoint_id, ${omission ? withoutInlined : "checkpoint"}::text as checkpoint_json,
    metadata::text as metadata_json,${omission ? " inlined," : ""} channel_versions, ${beforeFormat4("checkpoint")} as before_format_4${
      before ? `, ${versionsBefore(before)} as versions_before` : ""
    }
  from (
    select c.*, ${channelVersions("checkpoint")} as channel_versions${
      omission ? `, ${inlinedOf(omission)} as inlined` : ""
    }
    from (${candidates}) as c${omission ? " offset 0" : ""}
  ) as c
  window stream as (order by ${order})
), part as materialized (
  ${omission ? withOmitted(parts, omission) : parts}
), sized as materialized (
  select *, bytes <= ${mostResultBytes} as is_told
  from (
    select candidate.*, coalesce(octet_length(checkpoint_json) + octet_length(metadata_json), 0)
      + coalesce(part_bytes, 0) as bytes
    from candidate
    left join (
      select n, sum(octet_length(blob)) as part_bytes from part group by n
    ) as size using (n)
  ) as candidate
), page as materialized (
  select * from (
    select n, thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, channel_versions,
      case when is_told then checkpoint_json end as checkpoint_json,
      case when is_told then metadata_json end as metadata_json${before ? ", versions_before" : ""},
      sum(told_bytes) over (order by n) - told_bytes as preceding_bytes
    from (select *, case when is_told then bytes else 0 end as told_bytes from sized) as sized
  ) as sized
  ${limitBytes}
)
${tupleRows(
  `(
    select part.* from part join page using (n) where checkpoint_json is not null${before ? unchangedRows(omission) : ""}
  )`,
  "(select count(*) from candidate)",
  examined && endOf(examined),
  omission && "omitted",
)}`;
};

const isUnchanged = "coalesce(versions_before ->> v.key = v.value, false)";

const unchangedRows = (omission: Omission | undefined) => `
    union all
    select ${partColumns.union({ n: "n", kind: "4", channel: "v.key", sort_key: `v.key collate "C"` })}${omission ? ", null" : ""}
    from page
    cross join lateral jsonb_each_text(channel_versions) as v
    where ${isUnchanged}`;

/** The versions of the tuple before in the stream, if it is of the same thread and namespace. */
const versionsBefore = (before: {
  threadId: string;
  checkpointNs: string;
  checkpointJson: string;
}) => `case
    when row_number() over stream > 1 then case
      when lag(thread_id) over stream = thread_id and lag(checkpoint_ns) over stream = checkpoint_ns
        then lag(channel_versions) over stream
    end
    when thread_id = ${before.threadId}::text and checkpoint_ns = ${before.checkpointNs}::text
      then ${channelVersions(`${before.checkpointJson}::text::jsonb`)}
  end`;

const headersStatement = (
  examined: Examined,
  candidates: string,
  order: string,
  limitBytes: string,
) => `
with ${withExamined(examined)}candidate as materialized (
  select row_number() over (order by ${order}) as n, thread_id, checkpoint_ns, checkpoint_id,
    parent_checkpoint_id, metadata::text as metadata_json
  from (${candidates}) as c
), page as (
  select *, sum(coalesce(octet_length(metadata_json), 0)) over (order by n)
    - coalesce(octet_length(metadata_json), 0) as preceding_bytes
  from candidate
)
select ${tupleRow.some({
  n: "n",
  thread_id: "thread_id",
  checkpoint_ns: "checkpoint_ns",
  checkpoint_id: "checkpoint_id",
  parent_checkpoint_id: "parent_checkpoint_id",
  metadata_json: tellable("metadata_json"),
  candidates: "(select count(*) from candidate)",
})}
from page
${limitBytes}
${examined ? `union all\nselect ${tupleRow.union(endColumns)} from ${endOf(examined)} as e` : ""}
order by n`;
