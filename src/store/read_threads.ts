import { create } from "@bufbuild/protobuf";
import { type Timestamp, TimestampSchema } from "@bufbuild/protobuf/wkt";
import { type PendingWrite, PendingWriteSchema } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import {
  type GetThreadRequest,
  type ListThreadsRequest,
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
import type { Db, Parameter, Row, Signal } from "./db.js";
import { explainJson } from "./json.js";
import { createColumns, text } from "./rows.js";
import { threadStatus } from "./thread_status.js";
import {
  checkpointRows,
  type JsonForm,
  jsonBytes,
  runGuarded,
  tellable,
  undeliverable,
} from "./undeliverable.js";

/** Threads that one statement looks at: few at first, so that the first page is there soon. */
const firstExamined = 100;
const mostExamined = 2_000;
/** The same where what is stored of each is counted, which reads every row of it. */
const mostCounted = 50;

/**
 * Root checkpoints that a statement by time walks past: few at first, more where they are not of
 * enough threads, since one long thread, at work, has more than all others.
 */
const firstWalked = 400;
const mostWalked = 8_000;

/**
 * Yields the threads that match, in the order asked for. Each statement looks at so many threads
 * at the most, whatever the filter lets through, so none runs long and the stream holds neither
 * a connection nor a snapshot between them.
 */
export async function* listThreads(
  db: Db,
  request: ListThreadsRequest,
  signal?: Signal,
): AsyncGenerator<Thread, void> {
  let left = request.limit ?? Number.POSITIVE_INFINITY;
  let after: ThreadPosition | undefined = request.after;
  const most = request.withCounts ? mostCounted : mostExamined;
  let walk = firstWalked;
  let examinable = request.examineLimit ?? Number.POSITIVE_INFINITY;
  for (let examine = firstExamined; left > 0 && examinable > 0; examine *= 2) {
    examine = Math.min(examine, most, examinable);
    const page = await readThreads(
      db,
      {
        filter: request.filter,
        order: request.order,
        withCounts: request.withCounts,
        withReasons: request.withReasons,
        after,
        examine,
        walk,
        limit: Math.min(left, examine),
      },
      signal,
    );
    yield* page.threads;
    left -= page.threads.length;
    examinable -= examine;
    if (!page.next) return;
    after = page.next;
    walk = page.isCut ? Math.min(walk * 2, mostWalked) : Math.max(walk / 2, firstWalked);
  }
}

/** Reads one thread; undefined when there is none. Throws UNDELIVERABLE where it is too large to be told. */
export async function getThread(
  db: Db,
  request: Pick<GetThreadRequest, "threadId" | "withCounts"> & Partial<Told>,
  signal?: Signal,
): Promise<Thread | undefined> {
  const { threadId, withCounts, withReasons = false } = request;
  // To count reads the size of every row, which takes long for a long thread.
  const run = withCounts ? db.runLong : db.run;
  const statement = (json: JsonForm) =>
    namedStatement(db.schema, { withCounts, withReasons }, json);
  const [row] = await runGuarded(db, run, statement, [[threadId]], signal);
  if (row && !row[at.metadata]) throw undeliverable(text(row[at.checkpoint_id]));
  return row && toThread(row);
}

/**
 * Reads the threads of these names that exist, in no particular order; those too large to be told are
 * left out and reported.
 */
export async function readNamedThreads(
  db: Db,
  threadIds: readonly string[],
  signal?: Signal,
): Promise<Thread[]> {
  const statement = (json: JsonForm) => namedStatement(db.schema, {}, json);
  return toThreads(db, await runGuarded(db, db.runLong, statement, [threadIds], signal));
}

function toThreads(db: Db, rows: readonly Row[]): Thread[] {
  return rows.flatMap((row) => {
    if (row[at.metadata]) return [toThread(row)];
    const [threadId, checkpointId] = [text(row[at.thread_id]), text(row[at.checkpoint_id])];
    db.leaveOut({ threadId, checkpointNs: "", checkpointId });
    return [];
  });
}

/** What one page of threads asks for. */
export interface ThreadPage {
  filter?: ThreadFilter | undefined;
  order: ThreadOrder;
  withCounts: boolean;
  withReasons?: boolean;
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

/**
 * Reads a page, and where the next one begins: undefined at the end. `isCut` where it has walked as
 * far as it might. Threads too large to be told are left out and reported. Throws INVALID_ARGUMENT if the metadata filter is no JSON that Postgres takes.
 */
export async function readThreads(
  db: Db,
  page: ThreadPage,
  signal: Signal | undefined,
): Promise<{ threads: Thread[]; next: ThreadPosition | undefined; isCut: boolean }> {
  const { statement, parameters } = pageStatement(db.schema, page);
  const rows = await explainJson(
    db.runLong,
    { "filter.metadata_filter_json": page.filter?.metadataFilterJson ?? "" },
    runGuarded(db, db.runLong, statement, parameters, signal),
  );
  // The last row says how far the statement came.
  const end = rows[rows.length - 1];
  const found = rows.slice(0, -1);
  const threads = toThreads(db, found);
  const last = found[found.length - 1];
  let next: ThreadPosition | undefined;
  if (last && found.length === page.limit) {
    next = position(text(last[at.thread_id]), toTimestamp(text(last[at.updated_at])));
  } else if (text(end?.[at.is_more]) !== "") {
    next = position(text(end?.[at.thread_id]), toTimestamp(text(end?.[at.updated_at])));
  }
  return { threads, next, isCut: text(end?.[at.is_more]) === "walked" };
}

const position = (threadId: string, updateTime: Timestamp) =>
  create(ThreadPositionSchema, { threadId, updateTime });

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

/**
 * The statement of one page. It walks checkpointd_threads_updated_idx backwards past what is not its
 * thread's latest checkpoint (a look-up in the primary key for each thread, or in
 * checkpointd_checkpoints_latest_idx), or, by id, steps from thread to thread through the primary
 * key (or checkpointd_threads_id_idx). Its last row tells how far it came.
 */
function pageStatement(
  schema: string,
  page: ThreadPage,
): { statement: (json: JsonForm) => string; parameters: Parameter[] } {
  const { filter, order } = page;
  const parameters: Parameter[] = [];
  const bind = (value: Parameter) => `$${parameters.push(value)}`;
  const byId = order === ThreadOrder.BY_ID;
  const examined = byId ? threadsById(schema, page, bind) : threadsByTime(schema, page, bind);
  const metadata = page.withoutMetadata ? "'{}'" : undefined;
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
    conditions.push(`not ${isUnderLease(schema, "t.thread_id")}`);
  }
  const statuses = (filter?.statuses ?? []).map((status) => statusNames[status] ?? "");
  const [sort, reverse] = byId
    ? [`t.thread_id collate "C"`, `t.thread_id collate "C" desc`]
    : [`t.updated_at desc, t.thread_id collate "C" desc`, `t.updated_at, t.thread_id collate "C"`];
  const statuses$ = statuses.length > 0 ? bind(statuses) : undefined;
  const limit$ = bind(page.limit);
  const isFull = `(select count(*) from examined) = ${bind(page.examine)}::bigint`;
  const [walked, farthest, isCut] = byId
    ? ["", "", ""]
    : [
        `${examined.walked}, `,
        // Nobody's thread, but as far as it came.
        `select thread_id, ${updatedAt("t")} as updated_at
      from (select * from walked order by n desc limit 1) as t
      where not ${isFull}
      union all `,
        `when (select count(*) from walked) = ${bind(page.walk ?? mostWalked)}::bigint then 'walked'`,
      ];
  const statement = (json: JsonForm) => `
with ${walked}examined as materialized (${examined.threads(json)}
), matching as materialized (
  select t.*, s.status, s.pending_nodes
  from (
    select * from examined t
    ${conditions.length > 0 ? `where ${conditions.join(" and ")}` : ""}
    order by ${sort}
  ) as t
  cross join lateral ${threadStatus(schema, "t")} as s
  ${statuses$ ? `where s.status = any(${statuses$}::text[])` : ""}
  order by ${sort}
  limit ${limit$}
)
select ${threadColumns.names} from (
  select ${selectThread(schema, page, json, metadata)}, row_number() over (order by ${sort}) as n
  from matching t
  union all
  select ${threadColumns.union({
    thread_id: "t.thread_id",
    updated_at: micros("t.updated_at"),
    is_more: `case when ${isFull} then 'threads' ${isCut} end`,
  })}, null
  from (select) as always
  left join lateral (
    ${farthest}(select thread_id, updated_at from examined t ${byId ? "" : `where ${isFull}`}
      order by ${reverse} limit 1)
  ) as t on true
) as rows
order by n`;
  return { statement, parameters };
}

type Bind = (value: Parameter) => string;

/** The SQL of the threads that a page looks at, and of a relation `walked` that they are taken from. */
interface ExaminedThreads {
  walked: string;
  threads: (json: JsonForm) => string;
}

function threadsByTime(
  schema: string,
  { filter, after, examine, walk = mostWalked }: ThreadPage,
  bind: Bind,
): ExaminedThreads {
  const time = updatedAt("c");
  const conditions = updatedWithin(time, filter, bind);
  if (after?.updateTime) {
    conditions.push(
      `(${time}, c.thread_id collate "C") < (${bindTime(after.updateTime, bind)}, ${bind(after.threadId)})`,
    );
  }
  const last = `(select * from walked order by n desc limit 1)`;
  return {
    // Their times are not told: to make them of the ids takes longer than to walk past them.
    walked: `walked as materialized (
  select *, row_number() over () as n
  from (
    select c.thread_id, c.checkpoint_id, c.created_at
    from ${schema}.checkpoints c
    where ${["c.checkpoint_ns = ''", ...conditions].join("\n      and ")}
    order by ${time} desc, c.thread_id collate "C" desc
    limit ${bind(walk)}
  ) as c
)`,
    // One look-up for each thread, however many of its checkpoints were walked past. The next page
    // begins after the time and the thread of the last, of which there may be more: then any of that
    // time stands for the thread.
    threads: (json) => `
  select c.thread_id, c.checkpoint_id, c.checkpoint, c.metadata, ${time} as updated_at
  from (
    select thread_id, array_agg(checkpoint_id) as ids from walked group by thread_id
  ) as t
  cross join lateral (${latest(schema, "t.thread_id", json)}) as c
  where c.checkpoint_id = any(t.ids)
    or (c.thread_id, ${time}) in (select last.thread_id, ${updatedAt("last")} from ${last} as last)
  order by updated_at desc, c.thread_id collate "C" desc
  limit ${bind(examine)}`,
  };
}

function threadsById(
  schema: string,
  { filter, after, examine }: ThreadPage,
  bind: Bind,
): ExaminedThreads {
  const prefix = filter?.threadIdPrefix ? bind(filter.threadIdPrefix) : undefined;
  const bounds: string[] = [];
  if (prefix) bounds.push(`c.thread_id collate "C" >= ${prefix}`);
  if (after) bounds.push(`c.thread_id collate "C" > ${bind(after.threadId)}`);
  const next = (conditions: readonly string[]) => `
      select c.thread_id collate "C" as thread_id from ${schema}.checkpoints c
      where ${["c.checkpoint_ns = ''", ...conditions].join(" and ")}
      order by c.thread_id collate "C"
      limit 1`;
  // The end of a prefix is where the first id has another: looked at outside of the look-up,
  // which would go on searching.
  const within = (id: string) => (prefix ? `and starts_with(${id}, ${prefix})` : "");
  const examine$ = bind(examine);
  const first = next(bounds);
  const threads = (json: JsonForm) => `
  select c.thread_id, c.checkpoint_id, c.checkpoint, c.metadata, ${updatedAt("c")} as updated_at
  from (
    with recursive step (thread_id, n) as (
      select first.thread_id, 1 from (${first}
      ) as first
      where true ${within("first.thread_id")}
      union all
      select following.thread_id, step.n + 1
      from step
      cross join lateral (${next([`c.thread_id collate "C" > step.thread_id`])}
      ) as following
      where step.n < ${examine$} ${within("following.thread_id")}
    )
    select thread_id from step
  ) as name
  cross join lateral (
    -- By way of jsonb, which takes the collation off: with it a key of another is of no use.
    ${latest(schema, "(to_jsonb(name.thread_id) #>> '{}')", json)}
  ) as c`;
  return { walked: "", threads };
}

/** A thread's latest root checkpoint. */
const latest = (schema: string, threadId: string, json: JsonForm) => `
    select * from ${checkpointRows(schema, json)} c
    where c.thread_id = ${threadId} and c.checkpoint_ns = ''
    order by c.checkpoint_id collate "C" desc
    limit 1`;

function updatedWithin(time: string, filter: ThreadFilter | undefined, bind: Bind): string[] {
  const conditions: string[] = [];
  if (filter?.updatedAfter) conditions.push(`${time} >= ${bindTime(filter.updatedAfter, bind)}`);
  if (filter?.updatedBefore) conditions.push(`${time} < ${bindTime(filter.updatedBefore, bind)}`);
  return conditions;
}

const namedStatement = (schema: string, told: Partial<Told>, json: JsonForm) => `
select ${selectThread(schema, told, json)}
from (
  select t.*, s.status, s.pending_nodes
  from (
    select c.thread_id, c.checkpoint_id, c.checkpoint, c.metadata, ${updatedAt("c")} as updated_at
    from unnest($1::text[]) as name (thread_id)
    cross join lateral (${latest(schema, "name.thread_id", json)}) as c
  ) as t
  cross join lateral ${threadStatus(schema, "t")} as s
) as t`;

/**
 * The columns of a thread, times in microseconds. `lease` is JSON, null where there is none;
 * `is_more` is only in the last row of a page.
 */
const threadColumns = createColumns(
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
 * or the checkpoint, is too large to be told.
 */
const selectThread = (
  schema: string,
  { withCounts, withReasons }: Partial<Told>,
  json: JsonForm,
  metadata = `(select case when t.checkpoint is not null then ${tellable("printed")} end
      from (select t.metadata::text as printed offset 0) as m)`,
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
      from ${schema}.checkpointd_claims l where ${holds("t.thread_id")})`,
    reasons: withReasons ? reasons(schema) : "null",
    ...(withCounts ? counts(schema, json) : withoutCounts),
    is_more: "null",
  });

/** A condition in SQL: whether somebody holds a lease on the thread. Relies on the primary key. */
export const isUnderLease = (schema: string, threadId: string) =>
  `exists (select from ${schema}.checkpointd_claims l where ${holds(threadId)})`;

const holds = (threadId: string) =>
  `l.thread_id = ${threadId} collate "C" and l.expires_at > clock_timestamp()`;

/** What of a thread is told only where it is asked for. */
interface Told {
  withCounts: boolean;
  withReasons: boolean;
}

const mostReasons = 20;
const mostReasonBytes = 65_536;

/** What the tasks left that did not end well, as JSON. Relies on the primary key of checkpoint_writes. */
const reasons = (schema: string) => `(
      select json_agg(json_build_array(task_id, idx, channel, type, data, task_path))::text
      from (
        select w.task_id, w.idx, w.channel, w.type, w.task_path,
          case when octet_length(w.blob) <= ${mostReasonBytes} then encode(w.blob, 'base64') end as data
        from ${schema}.checkpoint_writes w
        where w.thread_id = t.thread_id and w.checkpoint_ns = '' and w.checkpoint_id = t.checkpoint_id
          and w.channel in ('__error__', '__interrupt__')
        order by w.task_path collate "C", w.task_id collate "C", w.idx
        limit ${mostReasons}
      ) as w
    )`;

const withoutCounts = { checkpoints: "null", blobs: "null", writes: "null", stored_bytes: "null" };

/** How much is stored of a thread. Sizes of values come from the rows and their TOAST pointers. */
const counts = (schema: string, json: JsonForm) => ({
  checkpoints: `(select count(*) from ${schema}.checkpoints c where c.thread_id = t.thread_id)`,
  blobs: `(select count(*) from ${schema}.checkpoint_blobs b where b.thread_id = t.thread_id)`,
  writes: `(select count(*) from ${schema}.checkpoint_writes w where w.thread_id = t.thread_id)`,
  stored_bytes: `(
      (select sum(${jsonBytes("c", json)})
        from ${schema}.checkpoints c where c.thread_id = t.thread_id)
      + coalesce((select sum(octet_length(blob))
        from ${schema}.checkpoint_blobs b where b.thread_id = t.thread_id), 0)
      + coalesce((select sum(octet_length(blob))
        from ${schema}.checkpoint_writes w where w.thread_id = t.thread_id), 0)
    )`,
});

/** SQL that tells a time in microseconds since 1970, the database's precision, as text. */
export const micros = (time: string) => `(extract(epoch from ${time}) * 1000000)::bigint::text`;

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
