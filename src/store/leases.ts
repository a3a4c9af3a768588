import { randomUUID } from "node:crypto";
import { create } from "@bufbuild/protobuf";
import type { Timestamp } from "@bufbuild/protobuf/wkt";
import {
  type ClaimedThread,
  ClaimedThreadSchema,
  type ThreadFilter,
  ThreadFilterSchema,
  ThreadOrder,
  ThreadStatus,
} from "../../gen/checkpointd/v1/thread_service_pb.js";
import { CheckpointdError } from "../errors.js";
import { type Db, isDistributed, type Row, type Signal } from "./db.js";
import type { Bind } from "./insert.js";
import { explainKeys, type Key, mostKeyBytes } from "./keys.js";
import { readNamedThreads, readThreads } from "./read_threads.js";
import { createColumns, text } from "./rows.js";
import type { Column } from "./tables.js";
import { micros, toTimestamp } from "./thread_rows.js";

/** Which threads a worker wants leases on, and for how long. Durations in milliseconds. */
export interface WantedLeases {
  owner: string;
  leaseMs: number;
  graceMs: number;
  /** Threads at the most; never more than 100. */
  limit: number;
  filter: ThreadFilter;
  /** Only this thread; empty: any. */
  threadId: string;
  /** None of these threads. */
  except?: readonly string[];
  /** Whether to look for them in the order of their ids, so that none beyond the prefix is passed. */
  byId?: boolean;
}

/** A request that is to be carried out only while its lease on the thread is held. */
export interface UnderLease {
  threadId: string;
  leaseToken: string;
}

/**
 * Leases that one call gets. A worker runs a few threads at a time and asks again; a caller that
 * took all there are kept every other worker out with one request.
 */
const mostLeases = 100;

/**
 * Takes leases on threads that match and are free, newest first unless `byId`. Of several calls at once each
 * thread goes to one: the primary key of checkpointd_claims decides.
 *
 * Looks for candidates, takes leases, and then looks again: between the first look and the lease
 * another worker may have had the thread and have finished it, or have led it to an interrupt,
 * which must not be resumed. From the second look on nobody else moves it.
 */
export async function claimThreads(
  db: Db,
  wanted: WantedLeases,
  signal?: Signal,
): Promise<ClaimedThread[]> {
  if (wanted.threadId !== "") {
    return takeLeases(db, wanted, [wanted.threadId], wanted.filter.statuses, signal);
  }
  const leased: ClaimedThread[] = [];
  const limit = Math.min(wanted.limit, mostLeases);
  const statuses =
    wanted.filter.statuses.length > 0 ? wanted.filter.statuses : [ThreadStatus.PENDING];
  const filter = create(ThreadFilterSchema, {
    ...wanted.filter,
    statuses,
    updatedBefore: earlier(wanted.filter.updatedBefore, Date.now() - wanted.graceMs),
  });
  let after: Parameters<typeof readThreads>[1]["after"];
  do {
    const page = await readThreads(
      db,
      {
        filter,
        order: wanted.byId ? ThreadOrder.BY_ID : ThreadOrder.NEWEST_FIRST,
        withCounts: false,
        withoutMetadata: true,
        after,
        examine: 1_000,
        limit: limit - leased.length,
        unleased: true,
        except: wanted.except ?? [],
      },
      signal,
    );
    const candidates = page.threads.map((thread) => thread.threadId);
    leased.push(...(await takeLeases(db, wanted, candidates, statuses, signal)));
    after = page.next;
  } while (after && leased.length < limit);
  return leased;
}

/** How many leases are held whose owner begins so and has no other "/" after it. */
export async function countLeases(db: Db, owner: string, signal?: Signal): Promise<number> {
  const [row] = await db.run(
    `select count(*) from ${db.schema}.checkpointd_claims
     where starts_with(owner, $1) and strpos(substr(owner, length($1::text) + 1), '/') = 0
       and expires_at > clock_timestamp()`,
    [owner],
    signal,
  );
  return Number(text(row?.[0]));
}

/** How many leases are held, counted up to `most` rows. */
export async function countHeldLeases(db: Db, most: number, signal?: Signal): Promise<number> {
  const [row] = await db.runLong(
    `select count(*) filter (where expires_at > clock_timestamp())
     from (select expires_at from ${db.schema}.checkpointd_claims limit $1) as claim`,
    [most],
    signal,
  );
  return Number(text(row?.[0]));
}

/** Of those named, leases on the ones that are free and stand as wanted, in the order of the names. */
async function takeLeases(
  db: Db,
  wanted: WantedLeases,
  threadIds: readonly string[],
  statuses: readonly ThreadStatus[],
  signal: Signal | undefined,
): Promise<ClaimedThread[]> {
  // Together they cost the database a sixth of what they cost one by one.
  const groups = isDistributed(db) ? threadIds.map((threadId) => [threadId]) : [threadIds];
  const taken = await Promise.all(
    groups.map((group) => takeTogether(db, wanted, group, statuses, signal)),
  );
  return taken.flat();
}

async function takeTogether(
  db: Db,
  wanted: WantedLeases,
  threadIds: readonly string[],
  statuses: readonly ThreadStatus[],
  signal: Signal | undefined,
): Promise<ClaimedThread[]> {
  if (threadIds.length === 0) return [];
  const tokens = threadIds.map(() => randomUUID());
  const isOne = threadIds.length === 1;
  const names = isOne ? [threadIds[0] as string, tokens[0] as string] : [threadIds, tokens];
  const rows = await explainKeys(
    () => threadIds.map(claimKey),
    db.run(takeStatement(db.schema, isOne), [...names, wanted.owner, wanted.leaseMs], signal),
  );
  const leases = new Map(
    rows.map((row) => [
      text(row[taken.at.thread_id]),
      { token: text(row[taken.at.token]), expires: text(row[taken.at.expires_at]) },
    ]),
  );
  if (leases.size === 0) return [];
  const threads = await readNamedThreads(db, [...leases.keys()], signal);
  const matching = new Map(
    threads
      .filter((thread) => statuses.length === 0 || statuses.includes(thread.status))
      .map((thread) => [thread.threadId, thread]),
  );
  const dropped = [...leases].filter(([threadId]) => !matching.has(threadId));
  await Promise.all(
    dropped.map(([threadId, { token }]) => releaseLease(db, threadId, token, signal)),
  );
  return threadIds.flatMap((threadId) => {
    const [thread, lease] = [matching.get(threadId), leases.get(threadId)];
    if (!thread || !lease) return [];
    const expireTime = toTimestamp(lease.expires);
    return [create(ClaimedThreadSchema, { thread, leaseToken: lease.token, expireTime })];
  });
}

/**
 * Makes a lease that is still held end in so many milliseconds, by the database's clock, and returns
 * when that is. Throws LEASE_LOST if it is not held.
 */
export async function renewLease(
  db: Db,
  threadId: string,
  token: string,
  leaseMs: number,
  signal?: Signal,
): Promise<Timestamp> {
  const [row] = await db.run(renewStatement(db.schema), [threadId, token, leaseMs], signal);
  if (!row) throw leaseLost();
  const [expires] = row;
  return toTimestamp(text(expires));
}

/** Ends a lease. Does nothing if it is not held, so it may be repeated. */
export async function releaseLease(
  db: Db,
  threadId: string,
  token: string,
  signal?: Signal,
): Promise<void> {
  await db.run(releaseStatement(db.schema), [threadId, token], signal);
}

/**
 * Ends the lease on a thread, whoever holds it, and returns who did and until when; undefined where
 * nobody does. What its holder stores under it from then on is refused.
 */
export async function endLease(
  db: Db,
  threadId: string,
  signal?: Signal,
): Promise<{ owner: string; expires: Timestamp } | undefined> {
  const [row] = await db.run(endStatement(db.schema), [threadId], signal);
  if (!row) return undefined;
  const [owner, expires] = row;
  return { owner: text(owner), expires: toTimestamp(text(expires)) };
}

/** Returns the error of a request whose lease is not held any more: nothing of it was stored. */
export function leaseLost(): CheckpointdError {
  return new CheckpointdError(
    "failed_precondition",
    "lease_token: the lease on this thread expired, was released or never was; stop working on it",
    { reason: "LEASE_LOST", field: "lease_token" },
  );
}

function earlier(time: Timestamp | undefined, milliseconds: number): Timestamp {
  const limit = toTimestamp(String(BigInt(Math.floor(milliseconds)) * 1000n));
  if (!time) return limit;
  return time.seconds < limit.seconds ||
    (time.seconds === limit.seconds && time.nanos < limit.nanos)
    ? time
    : limit;
}

const claimKey = (threadId: string): Key => ({
  texts: [{ field: "thread_id", column: "thread_id", text: threadId }],
  mostBytes: mostKeyBytes(1),
});

const taken = createColumns("thread_id", "token", "expires_at");

/**
 * Who comes second finds the row taken and gets nothing. What is told of the time is immutable, and
 * "now" is the time from which the lease counts: Citus takes nothing else beside the conflict of an
 * insert, and names and values of one thread. Several are taken in the order of the key, so that two
 * callers wait for each other's rows in one order. Relies on the primary key, as the others do.
 */
const takeStatement = (schema: string, isOne: boolean) => {
  const expires = "clock_timestamp() + $4::int * interval '1 millisecond'";
  return `
insert into ${schema}.checkpointd_claims as held (thread_id, token, owner, expires_at)
${
  isOne
    ? `values ($1, $2, $3, ${expires})`
    : `select thread_id, token, $3::text, ${expires}
from unnest($1::text[], $2::text[]) as asked (thread_id, token)
order by thread_id collate "C"`
}
on conflict (thread_id) do update
  set token = excluded.token, owner = excluded.owner, expires_at = excluded.expires_at
  where held.expires_at at time zone 'UTC'
    <= excluded.expires_at at time zone 'UTC' - $4::int * interval '1 millisecond'
returning ${taken.all({ thread_id: "thread_id", token: "token", expires_at: micros("expires_at") })}`;
};

/**
 * A CTE of the leases of the requests that are held: `lease` (thread_id, token). Their rows are
 * locked until the statement ends, so that nobody else can take a thread while its last write
 * under the old lease is on its way: what the next owner reads includes it.
 */
export const heldLeases = (schema: string, bind: Bind<{ requests: readonly UnderLease[] }>) => `
lease as materialized (
  select l.thread_id, l.token
  from ${schema}.checkpointd_claims l
  where (l.thread_id, l.token) in (
      select thread_id collate "C", token
      from unnest(
        ${bind(({ requests }) => requests.map(({ threadId }) => threadId))}::text[],
        ${bind(({ requests }) => requests.map(({ leaseToken }) => leaseToken))}::text[]
      ) as asked (thread_id, token)
    )
    and l.expires_at > clock_timestamp()
  order by l.thread_id
  for share
)`;

/** Leaves of the relation `sent`, which has `leaseToken` among its columns, what is under a lease. */
export const joinLease = `join lease on lease.thread_id = sent.thread_id collate "C" and lease.token = sent.token`;

/** The lease of each request, as a column of `sent`. */
export const leaseToken: Column<UnderLease> = {
  name: "token",
  type: "text",
  of: (request) => request.leaseToken,
};

/** Ends a statement that begins with `heldLeases`: what `haveLease` wants. */
export const selectLeases = "select thread_id, token from lease";

/** Tells of each request whether its lease was held, from the rows of `selectLeases`. */
export function haveLease(rows: readonly Row[], requests: readonly UnderLease[]): boolean[] {
  const held = new Set(rows.map(([threadId, token]) => `${text(threadId)}\0${text(token)}`));
  return requests.map(({ threadId, leaseToken }) => held.has(`${threadId}\0${leaseToken}`));
}

/** By now(), which is when the statement began: Citus takes it, unlike what changes meanwhile. */
const renewStatement = (schema: string) => `
update ${schema}.checkpointd_claims
set expires_at = now() + $3::int * interval '1 millisecond'
where thread_id = $1 and token = $2 and expires_at > now()
returning ${micros("expires_at")}`;

/** A lease that has run out is taken away too, but was nobody's. */
const endStatement = (schema: string) => `
with gone as (
  delete from ${schema}.checkpointd_claims where thread_id = $1
  returning owner, expires_at
)
select owner, ${micros("expires_at")} from gone where expires_at > now()`;

const releaseStatement = (schema: string) => `
delete from ${schema}.checkpointd_claims where thread_id = $1 and token = $2`;
