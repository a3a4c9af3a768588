import {
  type GetThreadRequest,
  type ListThreadsRequest,
  type Thread,
  ThreadOrder,
  type ThreadPosition,
} from "../../gen/checkpointd/v1/thread_service_pb.js";
import { type Db, isDistributed, type Parameter, type Signal } from "./db.js";
import { explainJson } from "./json.js";
import { readDistributedThreads } from "./read_distributed_threads.js";
import { text } from "./rows.js";
import {
  afterPosition,
  type Bind,
  conditionsOf,
  latest,
  micros,
  namedStatement,
  oneStatement,
  type PageOfThreads,
  positionOf,
  selectThread,
  statusesOf,
  type ThreadPage,
  type Told,
  threadColumns,
  toThreads,
  updatedAt,
  updatedWithin,
} from "./thread_rows.js";
import { threadStatus } from "./thread_status.js";
import { type JsonForm, runGuarded, undeliverable } from "./undeliverable.js";

const { at } = threadColumns;

/** Threads that one statement looks at: few at first, so that the first page is there soon. */
const firstExamined = 100;
const mostExamined = 2_000;
/** The same where what is stored of each is counted, which reads every row of it. */
const mostCounted = 50;
/** The same where more threads than that may be told with their reasons, which are megabytes of each at worst. */
const mostWithReasons = 100;

/**
 * Root checkpoints that a statement by time walks past: few at first, more where they are not of
 * enough threads, since one long thread, at work, has more than all others.
 */
const firstWalked = 400;
const mostWalked = 8_000;

/** The channel whose write makes a thread stand so. */
const stoppedBy: Record<string, string> = { failed: "__error__", interrupted: "__interrupt__" };

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
  let walk = firstWalked;
  let examinable = request.examineLimit ?? Number.POSITIVE_INFINITY;
  for (let examine = firstExamined; left > 0 && examinable > 0; examine *= 2) {
    let most = request.withCounts ? mostCounted : mostExamined;
    if (request.withReasons && left > mostWithReasons) most = Math.min(most, mostWithReasons);
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
  request: Pick<GetThreadRequest, "threadId"> & Told,
  signal?: Signal,
): Promise<Thread | undefined> {
  const { threadId, withCounts, withReasons } = request;
  // To count reads the size of every row, which takes long for a long thread.
  const run = withCounts ? db.runLong : db.run;
  const statement = (json: JsonForm) => oneStatement(db.schema, json, { withCounts, withReasons });
  const [row] = await runGuarded(db, run, statement, [threadId], signal);
  if (row && !row[at.metadata]) throw undeliverable(text(row[at.checkpoint_id]));
  return row && toThreads(db, [row])[0];
}

/**
 * Reads the threads of these names that exist, without counts and in no particular order; those too
 * large to be told are left out and reported. Of tables that are distributed one at a time.
 */
export async function readNamedThreads(
  db: Db,
  threadIds: readonly string[],
  signal?: Signal,
): Promise<Thread[]> {
  const [only] = threadIds.length === 1 ? threadIds : [];
  const rows =
    only === undefined
      ? runGuarded(db, db.runLong, (json) => namedStatement(db.schema, json), [threadIds], signal)
      : runGuarded(db, db.run, (json) => oneStatement(db.schema, json), [only], signal);
  return toThreads(db, await rows);
}

/**
 * Reads a page, and where the next one begins: undefined at the end. `isCut` where it has walked as
 * far as it might. Threads too large to be told are left out and reported. Throws INVALID_ARGUMENT if the metadata filter is no JSON that Postgres takes.
 */
export async function readThreads(
  db: Db,
  page: ThreadPage,
  signal: Signal | undefined,
): Promise<PageOfThreads> {
  if (isDistributed(db)) return readDistributedThreads(db, page, signal);
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
    next = positionOf(text(last[at.thread_id]), text(last[at.updated_at]));
  } else if (text(end?.[at.is_more]) !== "") {
    next = positionOf(text(end?.[at.thread_id]), text(end?.[at.updated_at]));
  }
  return { threads, next, isCut: text(end?.[at.is_more]) === "walked" };
}

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
  const conditions = conditionsOf(schema, page, bind);
  const statuses = statusesOf(filter);
  // How a thread stands takes most of the time. These two are told by one write, and few have it; a
  // scalar subquery, since `exists` may become a join with all writes of the table.
  if (statuses.length > 0 && statuses.every((each) => each in stoppedBy)) {
    conditions.push(`(
      select true from ${schema}.checkpoint_writes w
      where w.thread_id = t.thread_id and w.checkpoint_ns = '' and w.checkpoint_id = t.checkpoint_id
        and w.channel = any(${bind(statuses.map((each) => stoppedBy[each] ?? ""))}::text[])
      limit 1
    )`);
  }
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
  const conditions = [...updatedWithin(time, filter, bind), ...afterPosition(time, after, bind)];
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
