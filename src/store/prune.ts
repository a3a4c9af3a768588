import { create } from "@bufbuild/protobuf";
import { type Timestamp, timestampFromMs } from "@bufbuild/protobuf/wkt";
import {
  type PruneThreadsResponse,
  PruneThreadsResponseSchema,
  type ThreadCounts,
  ThreadCountsSchema,
  type ThreadFilter,
  ThreadOrder,
  ThreadPositionSchema,
} from "../../gen/checkpointd/v1/thread_service_pb.js";
import { add, countColumns, countsOf, toCounts } from "./counts.js";
import type { Db, Parameter, Signal } from "./db.js";
import { rebuildsFromParent } from "./delta_channels.js";
import { readThreads } from "./read_threads.js";
import {
  batchRows,
  namedBlobs,
  type Place,
  removeCheckpoints,
  removeUnusedBlobs,
} from "./remove.js";
import { createColumns, text } from "./rows.js";
import { isUnderLease, type ThreadPage, updatedAt } from "./thread_rows.js";
import { isTooLarge, type JsonForm, jsonBytes, runGuarded } from "./undeliverable.js";

/** What to remove. */
export interface Prune {
  filter?: ThreadFilter | undefined;
  /** Only these; empty: those that match the filter. */
  threadIds: readonly string[];
  /** Checkpoints that stay in each namespace; 0: the whole thread goes. */
  keepLast: number;
  /** Only what is older than so many milliseconds. */
  olderThanMs?: number | undefined;
  dryRun: boolean;
  /** Only threads whose ids come after this one, byte by byte; empty: all. */
  afterThreadId?: string;
  /** Metadata of threads to leave alone. */
  without?: readonly string[];
  /** Waited after each batch and each page of threads. */
  pause?: () => Promise<unknown>;
}

/** Threads looked at until a message says how far the call has come. */
const progressEvery = 1_000;

/**
 * Removes what the rule of PruneThreadsRequest lets go, thread by thread in the order of their
 * ids, and yields what was removed of each. Threads under a lease are left alone.
 *
 * What is to go is found in one statement with one snapshot and removed by name in batches: a
 * checkpoint stored meanwhile is never among them. Values go last, when no checkpoint names them.
 */
export async function* pruneThreads(
  db: Db,
  prune: Prune,
  signal?: Signal,
): AsyncGenerator<PruneThreadsResponse, void> {
  const cutoff =
    prune.olderThanMs === undefined ? undefined : timestampFromMs(Date.now() - prune.olderThanMs);
  let examined = 0;
  let reported = 0;
  for await (const threadId of threadIds(db, prune, cutoff, signal)) {
    examined++;
    const removed = await (prune.dryRun ? countOne : pruneOne)(
      db,
      threadId,
      prune,
      cutoff,
      signal,
    ).catch((error) => {
      if (!isTooLarge(error)) throw error;
      // What the rule reads of it cannot be printed: the others' turn is not to end with it.
      db.leaveOut({ threadId, checkpointNs: "", checkpointId: "" });
      return create(ThreadCountsSchema);
    });
    const isEmpty = removed.checkpoints + removed.blobs + removed.writes === 0n;
    if (isEmpty && examined - reported < progressEvery) continue;
    reported = examined;
    yield create(PruneThreadsResponseSchema, {
      ...(isEmpty ? {} : { threadId, removed }),
      threadsExamined: BigInt(examined),
    });
  }
  if (reported < examined) {
    yield create(PruneThreadsResponseSchema, { threadsExamined: BigInt(examined) });
  }
}

async function* threadIds(
  db: Db,
  prune: Prune,
  cutoff: Timestamp | undefined,
  signal: Signal | undefined,
): AsyncGenerator<string> {
  const { afterThreadId = "" } = prune;
  if (prune.threadIds.length > 0) {
    const ids = prune.threadIds.map((id) => Buffer.from(id)).sort(Buffer.compare);
    const last = Buffer.from(afterThreadId);
    for (const id of ids) if (Buffer.compare(id, last) > 0) yield id.toString();
    return;
  }
  let after: ThreadPage["after"] =
    afterThreadId === "" ? undefined : create(ThreadPositionSchema, { threadId: afterThreadId });
  do {
    const page = await readThreads(
      db,
      {
        filter: prune.filter,
        order: ThreadOrder.BY_ID,
        withCounts: false,
        withoutMetadata: true,
        after,
        examine: 500,
        limit: 500,
        unleased: true,
        ...(prune.without ? { without: prune.without } : {}),
      },
      signal,
    );
    await prune.pause?.();
    for (const { threadId, updateTime } of page.threads) {
      // A whole thread goes by its last update; the statement looks again.
      if (prune.keepLast === 0 && cutoff && updateTime && updateTime.seconds > cutoff.seconds)
        continue;
      yield threadId;
    }
    after = page.next;
  } while (after);
}

async function pruneOne(
  db: Db,
  threadId: string,
  prune: Prune,
  cutoff: Timestamp | undefined,
  signal: Signal | undefined,
): Promise<ThreadCounts> {
  const removed = create(ThreadCountsSchema);
  const parameters = ruleParameters(threadId, prune, cutoff);
  for (;;) {
    const rows = await db.runLong(
      goingStatement(db.schema),
      [...parameters, batchRows * 8],
      signal,
    );
    await prune.pause?.();
    const places = rows.map(
      (row): Place => ({
        checkpointNs: text(row[going.at.ns]),
        checkpointId: text(row[going.at.id]),
      }),
    );
    for (let i = 0; i < places.length; i += batchRows) {
      add(removed, await removeCheckpoints(db, threadId, places.slice(i, i + batchRows), signal));
      await prune.pause?.();
    }
    if (places.length < batchRows * 8) break;
  }
  // Asked for by name, a thread is cleared of what an interrupted call left, too.
  if (removed.checkpoints > 0n || prune.threadIds.length > 0) {
    add(removed, await removeUnusedBlobs(db, threadId, signal));
    await prune.pause?.();
  }
  if (prune.keepLast === 0 && cutoff === undefined) {
    const [row] = await db.runLong(leftoversStatement(db.schema), [threadId], signal);
    add(removed, toCounts(row, countColumns.at));
  }
  return removed;
}

async function countOne(
  db: Db,
  threadId: string,
  prune: Prune,
  cutoff: Timestamp | undefined,
  signal: Signal | undefined,
): Promise<ThreadCounts> {
  const parameters = ruleParameters(threadId, prune, cutoff);
  const statement = (json: JsonForm) => countStatement(db.schema, json);
  const [row] = await runGuarded(db, db.runLong, statement, parameters, signal);
  return toCounts(row, countColumns.at);
}

const ruleParameters = (
  threadId: string,
  prune: Prune,
  cutoff: Timestamp | undefined,
): Parameter[] => [
  threadId,
  prune.keepLast,
  cutoff ? new Date(Number(cutoff.seconds) * 1000 + cutoff.nanos / 1e6).toISOString() : null,
];

/**
 * CTEs for thread $1 where the newest $2 checkpoints of each namespace, and what was made at $3
 * or later, stay: `stored` is all of it (ns, id), `kept` what stays. Nothing is stored if the
 * thread is under a lease, or if all of it would go ($2 is 0) and it was updated at $3 or later.
 *
 * Kept besides, because something kept needs it:
 * - the parent of a checkpoint that holds no value of a delta channel, and so on until one does;
 * - in a subgraph with a memory of its own (a namespace without ":") what was current at any of
 *   the root checkpoints kept.
 * A subgraph's call goes with the root checkpoint it belongs to (metadata's parents).
 *
 * Relies on the primary keys.
 */
const rule = (schema: string) => `
stored as materialized (
  select c.checkpoint_ns as ns, c.checkpoint_id as id, c.parent_checkpoint_id as parent,
    c.metadata -> 'parents' ->> '' as root,
    row_number() over (
      partition by c.checkpoint_ns order by c.checkpoint_id collate "C" desc
    ) <= $2::int or coalesce(${updatedAt("c")} >= $3::timestamptz, false) as is_recent
  from ${schema}.checkpoints c
  where c.thread_id = $1
    and not ${isUnderLease(schema, "$1")}
    and ($2::int > 0 or $3::timestamptz is null or not exists (
      select from ${schema}.checkpoints c
      where c.thread_id = $1 and ${updatedAt("c")} >= $3::timestamptz
    ))
), root as materialized (
  select id from stored where ns = '' and is_recent
), oldest_root as materialized (
  select min(id collate "C") as id from root
), kept as (
  select ns, id, parent from stored
  where $2::int > 0 and case
    when ns = '' then is_recent
    when ns like '%:%' and root in (select id from stored where ns = '') then
      is_recent and root in (select id from root)
    when ns like '%:%' then is_recent
    else is_recent
      or id collate "C" >= (
        select max(earlier.id collate "C") from stored earlier
        where earlier.ns = stored.ns and earlier.id collate "C" <= (select id from oldest_root)
      )
  end
  union
  select kept.ns, p.checkpoint_id, p.parent_checkpoint_id
  from kept
  cross join lateral (
    select p.checkpoint_id, p.parent_checkpoint_id from ${schema}.checkpoints p
    where p.thread_id = $1 and p.checkpoint_ns = kept.ns and p.checkpoint_id = kept.parent
    limit 1
  ) as p
  where exists (
    select from ${schema}.checkpoints c
    where c.thread_id = $1 and c.checkpoint_ns = kept.ns and c.checkpoint_id = kept.id
      and ${rebuildsFromParent(schema, "c", "$1")}
    offset 0
  )
)`;

const going = createColumns("ns", "id");

/** The oldest first, so that a call that is cut off leaves the latest in place. */
const goingStatement = (schema: string) => `
with recursive ${rule(schema)}
select ${going.names} from stored
where not exists (select from kept where kept.ns = stored.ns and kept.id = stored.id)
order by id collate "C", ns
limit $4`;

const countStatement = (schema: string, json: JsonForm) => `
with recursive ${rule(schema)}, going as materialized (
  select ns, id from stored
  where not exists (select from kept where kept.ns = stored.ns and kept.id = stored.id)
), named as materialized (
  ${namedBlobs(schema, "(c.checkpoint_ns, c.checkpoint_id) not in (select ns, id from going)")}
), blobs as (
  select octet_length(b.blob) as bytes from ${schema}.checkpoint_blobs b
  where b.thread_id = $1 and exists (select from going)
    and not exists (
      select from named n
      where n.checkpoint_ns = b.checkpoint_ns and n.channel = b.channel and n.version = b.version
    )
), writes as (
  select octet_length(w.blob) as bytes from ${schema}.checkpoint_writes w
  where w.thread_id = $1 and (w.checkpoint_ns, w.checkpoint_id) in (select ns, id from going)
), checkpoints as (
  select ${jsonBytes("c", json)} as bytes
  from ${schema}.checkpoints c
  where c.thread_id = $1 and (c.checkpoint_ns, c.checkpoint_id) in (select ns, id from going)
)
select ${countColumns.all(countsOf("checkpoints", "blobs", "writes"))}`;

/** Writes of a thread that has no checkpoint any more, for a whole thread that goes. */
const leftoversStatement = (schema: string) => `
with gone as (
  delete from ${schema}.checkpoint_writes w
  where w.thread_id = $1
    and not exists (select from ${schema}.checkpoints c where c.thread_id = $1)
  returning octet_length(blob) as bytes
)
select ${countColumns.all({
  checkpoints: "0",
  blobs: "0",
  writes: "count(*)",
  stored_bytes: "coalesce(sum(bytes), 0)",
})} from gone`;
