/** Threads as rows: the SQL of one, of the conditions that it has to meet, and how it is told. */
import { create } from "@bufbuild/protobuf";
import { type Timestamp, TimestampSchema } from "@bufbuild/protobuf/wkt";
import { type PendingWrite, PendingWriteSchema } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import {
  type Thread,
  ThreadClaimSchema,
  type ThreadFilter,
  ThreadOrder,
  type ThreadPosition,
  ThreadPositionSchema,
  ThreadSchema,
  ThreadStatus,
} from "../../gen/checkpointd/v1/thread_service_pb.js";
import { graphKey } from "../protocol/metadata.js";
import { countNames, toCounts } from "./counts.js";
import type { Db, Parameter, Row } from "./db.js";
import { createColumns, text } from "./rows.js";
import { threadStatus } from "./thread_status.js";
import { checkpointRows, type JsonForm, jsonBytes, tellable } from "./undeliverable.js";

/** What of a thread is told only where it is asked for. */
export interface Told {
  withCounts?: boolean | undefined;
  withReasons?: boolean | undefined;
}

/** What one page of threads asks for. */
export interface ThreadPage extends Told {
  filter?: ThreadFilter | undefined;
  order: ThreadOrder;
  after?: ThreadPosition | undefined;
  /** Threads looked at at the most. Fewer where a statement has walked far to find them. */
  examine: number;
  /** Root checkpoints walked past at the most, by time; as many as any statement may unless given. */
  walk?: number;
  /** Threads returned at the most. */
  limit: number;
  /** Whether to go without their metadata, so that none is too large to be told. */
  withoutMetadata?: boolean;
  /** Whether to leave out threads under a lease. */
  unleased?: boolean;
  /** Threads to leave out. */
  except?: readonly string[];
  /** Metadata that a thread must not contain. */
  without?: readonly string[];
}

/** Threads of a page, and where the next one begins: undefined at the end. */
export interface PageOfThreads {
  threads: Thread[];
  next: ThreadPosition | undefined;
  /** Whether it has walked as far as it might. */
  isCut: boolean;
}

/** A position in an order of threads; the time in microseconds. */
export const positionOf = (threadId: string, updatedAt: string): ThreadPosition =>
  create(ThreadPositionSchema, { threadId, updateTime: toTimestamp(updatedAt) });

/**
 * When a checkpoint was made, of a relation with checkpoint_id and created_at: the time in a
 * UUID of version 6, else the time it was stored. The expression of
 * checkpointd_threads_updated_idx (migration 0008): the planner takes the index for this text.
 */
export const updatedAt = (c: string) => `(case
    when ${c}.checkpoint_id collate "C" ~ '^[0-9a-f]{8}-[0-9a-f]{4}-6[0-9a-f]{3}-'
      then to_timestamp((
        ('x' || substr(${c}.checkpoint_id, 1, 8) || substr(${c}.checkpoint_id, 10, 4)
          || substr(${c}.checkpoint_id, 16, 3))::bit(60)::bigint - 122192928000000000
      ) / 10000000.0::float8)
    else ${c}.created_at
  end)`;

export type Bind = (value: Parameter) => string;

/** A thread's latest root checkpoint. */
export const latest = (schema: string, threadId: string, json: JsonForm) => `
    select * from ${checkpointRows(schema, json)} c
    where c.thread_id = ${threadId} and c.checkpoint_ns = ''
    order by c.checkpoint_id collate "C" desc
    limit 1`;

/** The conditions of a filter on a time of the thread. */
export function updatedWithin(
  time: string,
  filter: ThreadFilter | undefined,
  bind: Bind,
): string[] {
  const conditions: string[] = [];
  if (filter?.updatedAfter) conditions.push(`${time} >= ${bindTime(filter.updatedAfter, bind)}`);
  if (filter?.updatedBefore) conditions.push(`${time} < ${bindTime(filter.updatedBefore, bind)}`);
  return conditions;
}

/** The condition of what comes after a position, newest first. */
export const afterPosition = (time: string, after: ThreadPosition | undefined, bind: Bind) =>
  after?.updateTime
    ? [
        `(${time}, c.thread_id collate "C") < (${bindTime(after.updateTime, bind)}, ${bind(after.threadId)})`,
      ]
    : [];

/** What a thread `t` of a page has to meet besides its status. `thread` is its name in a lease. */
export function conditionsOf(
  schema: string,
  page: ThreadPage,
  bind: Bind,
  thread = `t.thread_id collate "C"`,
): string[] {
  const { filter, order } = page;
  const byId = order === ThreadOrder.BY_ID;
  const conditions: string[] = [];
  if (filter?.metadataFilterJson) {
    const json = `${bind(filter.metadataFilterJson)}::text::jsonb`;
    // The second is evaluated once and always, see list_checkpoints.ts.
    conditions.push(`t.metadata @> ${json}`, `${json} is not null`);
  }
  if (filter?.graph !== undefined) {
    conditions.push(
      filter.graph === ""
        ? `not t.metadata ? '${graphKey}'`
        : `t.metadata ->> '${graphKey}' = ${bind(filter.graph)}`,
    );
  }
  if (page.except && page.except.length > 0) {
    conditions.push(`t.thread_id <> all(${bind(page.except)}::text[])`);
  }
  for (const json of page.without ?? []) {
    conditions.push(`not t.metadata @> ${bind(json)}::text::jsonb`);
  }
  if (byId) {
    conditions.push(...updatedWithin("t.updated_at", filter, bind));
  } else if (filter?.threadIdPrefix) {
    conditions.push(`starts_with(t.thread_id, ${bind(filter.threadIdPrefix)})`);
  }
  if (page.unleased) {
    conditions.push(`not ${isUnderLease(schema, thread)}`);
  }
  return conditions;
}

/**
 * Thread $1 as it stands, if it meets the conditions. Each table is read by the thread's name, see
 * partRows.
 */
export const oneStatement = (
  schema: string,
  json: JsonForm,
  {
    metadata,
    conditions = [],
    ...told
  }: Told & { metadata?: string | undefined; conditions?: readonly string[] } = {},
) => `
select ${selectThread(schema, told, json, metadata, "$1")}
from ${withStatus(schema, `(${latest(schema, "$1", json)}) as c`, "$1")}
${conditions.length > 0 ? `where ${conditions.join(" and ")}` : ""}`;

/** The threads of the list $1 as they stand. */
export const namedStatement = (schema: string, json: JsonForm) => `
select ${selectThread(schema, {}, json)}
from ${withStatus(
  schema,
  `unnest($1::text[]) as name (thread_id)
    cross join lateral (${latest(schema, "name.thread_id", json)}) as c`,
)}`;

/** The relation `t` of selectThread, of latest checkpoints `c`. */
const withStatus = (schema: string, checkpoints: string, thread?: string) => `(
  select t.*, s.status, s.pending_nodes
  from (
    select c.thread_id, c.checkpoint_id, c.checkpoint, c.metadata, ${updatedAt("c")} as updated_at
    from ${checkpoints}
  ) as t
  cross join lateral ${threadStatus(schema, "t", thread)} as s
) as t`;

/**
 * The columns of a thread, times in microseconds. `lease` is JSON, null where there is none;
 * `is_more` is only in the last row of a page.
 */
export const threadColumns = createColumns(
  "thread_id",
  "checkpoint_id",
  "updated_at",
  "step",
  "source",
  "status",
  "pending_nodes",
  "metadata",
  "lease",
  "reasons",
  ...countNames,
  "is_more",
);
const { at } = threadColumns;

/**
 * The columns of `toThread`, of a relation `t` of threads with their status. Metadata is null where it,
 * or the checkpoint, is too large to be told. `thread` is a parameter where there is one (see partRows).
 */
export const selectThread = (
  schema: string,
  { withCounts, withReasons }: Told,
  json: JsonForm,
  metadata = `(select case when t.checkpoint is not null then ${tellable("printed")} end
      from (select t.metadata::text as printed offset 0) as m)`,
  thread?: string,
) =>
  threadColumns.all({
    thread_id: "t.thread_id",
    checkpoint_id: "t.checkpoint_id",
    updated_at: micros("t.updated_at"),
    step: "case when t.metadata ->> 'step' ~ '^-?[0-9]{1,9}$' then t.metadata ->> 'step' end",
    source: "t.metadata ->> 'source'",
    status: "t.status",
    pending_nodes: "array_to_json(t.pending_nodes)::text",
    metadata,
    lease: `(select json_build_array(l.owner, ${micros("l.expires_at")})::text
      from ${schema}.checkpointd_claims l where ${holds(thread ?? `t.thread_id collate "C"`)})`,
    reasons: withReasons ? reasons(schema, thread ?? "t.thread_id") : "null",
    ...(withCounts ? counts(schema, json, thread ?? "t.thread_id") : withoutCounts),
    is_more: "null",
  });

/** A condition in SQL: whether somebody holds a lease on the thread. Relies on the primary key. */
export const isUnderLease = (schema: string, threadId: string) =>
  `exists (select from ${schema}.checkpointd_claims l where ${holds(threadId)})`;

const holds = (threadId: string) =>
  `l.thread_id = ${threadId} and l.expires_at > clock_timestamp()`;

const mostReasons = 20;
const mostReasonBytes = 65_536;

/** What the tasks left that did not end well, as JSON. Relies on the primary key of checkpoint_writes. */
const reasons = (schema: string, thread: string) => `(
      select json_agg(json_build_array(task_id, idx, channel, type, data, task_path))::text
      from (
        select w.task_id, w.idx, w.channel, w.type, w.task_path,
          case when octet_length(w.blob) <= ${mostReasonBytes} then encode(w.blob, 'base64') end as data
        from ${schema}.checkpoint_writes w
        where w.thread_id = ${thread} and w.checkpoint_ns = '' and w.checkpoint_id = t.checkpoint_id
          and w.channel in ('__error__', '__interrupt__')
        order by w.task_path collate "C", w.task_id collate "C", w.idx
        limit ${mostReasons}
      ) as w
    )`;

const withoutCounts = { checkpoints: "null", blobs: "null", writes: "null", stored_bytes: "null" };

/** How much is stored of a thread. Sizes of values come from the rows and their TOAST pointers. */
const counts = (schema: string, json: JsonForm, thread: string) => ({
  checkpoints: `(select count(*) from ${schema}.checkpoints c where c.thread_id = ${thread})`,
  blobs: `(select count(*) from ${schema}.checkpoint_blobs b where b.thread_id = ${thread})`,
  writes: `(select count(*) from ${schema}.checkpoint_writes w where w.thread_id = ${thread})`,
  stored_bytes: `(
      (select sum(${jsonBytes("c", json)})
        from ${schema}.checkpoints c where c.thread_id = ${thread})
      + coalesce((select sum(octet_length(blob))
        from ${schema}.checkpoint_blobs b where b.thread_id = ${thread}), 0)
      + coalesce((select sum(octet_length(blob))
        from ${schema}.checkpoint_writes w where w.thread_id = ${thread}), 0)
    )`,
});

/**
 * SQL that tells a time in microseconds since 1970, the database's precision, as text. Immutable, as
 * Citus wants it beside a write, by way of a time without a zone.
 */
export const micros = (time: string) =>
  `(extract(epoch from (${time}) at time zone 'UTC') * 1000000)::bigint::text`;

function bindTime(time: Timestamp, bind: Bind): string {
  const iso = new Date(Number(time.seconds) * 1000).toISOString();
  return `${bind(iso.replace(/\.000Z$/, `.${String(time.nanos).padStart(9, "0").slice(0, 6)}Z`))}::timestamptz`;
}

/** Returns the time that so many microseconds after 1970 are, which `micros` makes of a time. */
export function toTimestamp(microseconds: string): Timestamp {
  const all = BigInt(microseconds);
  const fraction = ((all % 1_000_000n) + 1_000_000n) % 1_000_000n;
  return create(TimestampSchema, {
    seconds: (all - fraction) / 1_000_000n,
    nanos: Number(fraction) * 1000,
  });
}

/** The statuses of a filter as `threadStatus` names them. */
export const statusesOf = (filter: ThreadFilter | undefined): string[] =>
  (filter?.statuses ?? []).map((status) => statusNames[status] ?? "");

const statusNames: Record<ThreadStatus, string | undefined> = {
  [ThreadStatus.UNSPECIFIED]: undefined,
  [ThreadStatus.COMPLETED]: "completed",
  [ThreadStatus.PENDING]: "pending",
  [ThreadStatus.INTERRUPTED]: "interrupted",
  [ThreadStatus.FAILED]: "failed",
};

function toThread(row: Row): Thread {
  const status = text(row[at.status]);
  const thread = create(ThreadSchema, {
    threadId: text(row[at.thread_id]),
    checkpointId: text(row[at.checkpoint_id]),
    updateTime: toTimestamp(text(row[at.updated_at])),
    source: text(row[at.source]),
    status: Number(Object.entries(statusNames).find(([, name]) => name === status)?.[0] ?? 0),
    pendingNodes: JSON.parse(text(row[at.pending_nodes])) as string[],
    metadataJson: text(row[at.metadata]),
  });
  if (row[at.step]) thread.step = Number(text(row[at.step]));
  if (row[at.lease]) {
    const [owner, expires] = JSON.parse(text(row[at.lease])) as [string, string];
    thread.claim = create(ThreadClaimSchema, { owner, expireTime: toTimestamp(expires) });
  }
  if (row[at.checkpoints]) thread.counts = toCounts(row, at);
  if (row[at.reasons]) {
    thread.reasons = (JSON.parse(text(row[at.reasons])) as ReasonJson[]).map(toReason);
  }
  return thread;
}

type ReasonJson = [string, number, string, string, string | null, string];

function toReason([taskId, idx, channel, type, data, taskPath]: ReasonJson): PendingWrite {
  const value = { type, data: Buffer.from(data ?? "", "base64") };
  return create(PendingWriteSchema, { taskId, idx, channel, value, taskPath });
}

/** Threads too large to be told are left out and reported. */
export function toThreads(db: Db, rows: readonly Row[]): Thread[] {
  return rows.flatMap((row) => {
    if (row[at.metadata]) return [toThread(row)];
    const [threadId, checkpointId] = [text(row[at.thread_id]), text(row[at.checkpoint_id])];
    db.leaveOut({ threadId, checkpointNs: "", checkpointId });
    return [];
  });
}
