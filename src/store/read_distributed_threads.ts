import { ThreadOrder, type ThreadPosition } from "../../gen/checkpointd/v1/thread_service_pb.js";
import type { Db, Parameter, Row, Signal } from "./db.js";
import { explainJson } from "./json.js";
import { createColumns, text } from "./rows.js";
import {
  afterPosition,
  type Bind,
  conditionsOf,
  micros,
  oneStatement,
  type PageOfThreads,
  positionOf,
  statusesOf,
  type ThreadPage,
  threadColumns,
  toThreads,
  updatedAt,
  updatedWithin,
} from "./thread_rows.js";
import { type JsonForm, runGuarded } from "./undeliverable.js";

/** Root checkpoints that one fan-out by time returns at the most. */
const mostWalked = 2_000;
/** Threads that are read side by side; each read waits its turn among the long statements besides. */
const readAtOnce = 16;

/**
 * Reads a page of threads whose tables are distributed: their names by a fan-out, which each node
 * answers in order and up to the limit from the indexes of one table, and then each thread from the
 * node that has it. Promises what `readThreads` does.
 */
export async function readDistributedThreads(
  db: Db,
  page: ThreadPage,
  signal: Signal | undefined,
): Promise<PageOfThreads> {
  const byId = page.order === ThreadOrder.BY_ID;
  const walk = Math.min(page.walk ?? mostWalked, mostWalked);
  const json = page.filter?.metadataFilterJson ?? "";
  if (json !== "") {
    // Also where nothing is compared with it: a filter that is not JSON is refused.
    const cast = db.runLong("select $1::text::jsonb is null", [json], signal);
    await explainJson(db.runLong, { "filter.metadata_filter_json": json }, cast);
  }
  const keys = createParameters();
  const statement = byId
    ? namesById(db.schema, page, keys.bind)
    : namesByTime(db.schema, page, walk, keys.bind);
  const rows = await db.runLong(statement, keys.parameters, signal);
  const candidates = toCandidates(rows);
  const examined = candidates.slice(0, page.examine);
  const one = createParameters("");
  const conditions = conditionsOf(db.schema, page, one.bind, "$1");
  const statuses = statusesOf(page.filter);
  if (statuses.length > 0) conditions.push(`t.status = any(${one.bind(statuses)}::text[])`);
  const metadata = page.withoutMetadata ? "'{}'" : undefined;
  const { withCounts, withReasons } = page;
  const ofThread = (json: JsonForm) =>
    oneStatement(db.schema, json, { withCounts, withReasons, metadata, conditions });
  const readOne = async (candidate: Candidate): Promise<Row[]> => {
    const parameters = [candidate.threadId, ...one.parameters.slice(1)];
    const found = await runGuarded(db, db.runLong, ofThread, parameters, signal);
    return byId ? found : found.filter((row) => isLatest(candidate, row));
  };
  const found: Row[] = [];
  let done = 0;
  while (done < examined.length && found.length < page.limit) {
    const some = examined.slice(done, done + Math.min(readAtOnce, page.limit - found.length));
    done += some.length;
    found.push(...(await Promise.all(some.map(readOne))).flat());
  }
  const isFull = rows.length === (byId ? page.examine : walk);
  const isWhole = done >= examined.length && examined.length === candidates.length;
  const last = rows.at(-1);
  let next: ThreadPosition | undefined;
  if (!isWhole) {
    const { threadId, time } = examined[done - 1] as Candidate;
    next = positionOf(threadId, time);
  } else if (isFull) {
    next = positionOf(text(last?.[name.at.thread_id]), text(last?.[name.at.updated_at]));
  }
  return { threads: toThreads(db, found), next, isCut: isWhole && isFull && !byId };
}

const name = createColumns("thread_id", "checkpoint_id", "updated_at");

/** A thread of which a fan-out found root checkpoints, and where the first of them stands. */
interface Candidate {
  threadId: string;
  ids: Set<string>;
  time: string;
}

function toCandidates(rows: readonly Row[]): Candidate[] {
  const byName = new Map<string, Candidate>();
  for (const row of rows) {
    const threadId = text(row[name.at.thread_id]);
    const time = text(row[name.at.updated_at]);
    const candidate = byName.get(threadId) ?? { threadId, ids: new Set(), time };
    candidate.ids.add(text(row[name.at.checkpoint_id]));
    byName.set(threadId, candidate);
  }
  return [...byName.values()];
}

/**
 * Whether it stands where it was found: a thread whose latest checkpoint comes elsewhere in the order
 * is told there. Of several with its time the page may have ended with another.
 */
const isLatest = ({ ids, time }: Candidate, row: Row) =>
  ids.has(text(row[threadColumns.at.checkpoint_id])) ||
  time === text(row[threadColumns.at.updated_at]);

function createParameters(...parameters: Parameter[]) {
  return { parameters, bind: (value: Parameter) => `$${parameters.push(value)}` };
}

/** Relies on checkpointd_threads_updated_idx of each node. */
function namesByTime(schema: string, page: ThreadPage, walk: number, bind: Bind): string {
  const time = updatedAt("c");
  const conditions = [
    "c.checkpoint_ns = ''",
    ...updatedWithin(time, page.filter, bind),
    ...afterPosition(time, page.after, bind),
  ];
  return `
select ${name.all({
    thread_id: "c.thread_id",
    checkpoint_id: "c.checkpoint_id",
    updated_at: micros(time),
  })}
from ${schema}.checkpoints c
where ${conditions.join("\n  and ")}
order by ${time} desc, c.thread_id collate "C" desc
limit ${bind(walk)}`;
}

/** Relies on the primary key of each node. */
function namesById(schema: string, { filter, after, examine }: ThreadPage, bind: Bind): string {
  const conditions = ["c.checkpoint_ns = ''"];
  if (filter?.threadIdPrefix) {
    const prefix = bind(filter.threadIdPrefix);
    conditions.push(`c.thread_id collate "C" >= ${prefix}`, `starts_with(c.thread_id, ${prefix})`);
  }
  if (after) conditions.push(`c.thread_id collate "C" > ${bind(after.threadId)}`);
  return `
select ${name.some({ thread_id: "c.thread_id", updated_at: "'0'" })}
from ${schema}.checkpoints c
where ${conditions.join(" and ")}
group by c.thread_id
order by c.thread_id collate "C"
limit ${bind(examine)}`;
}
