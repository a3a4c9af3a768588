import type { ChannelBlob } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import type { PutRequest } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { CheckpointdError } from "../errors.js";
import { createBatch } from "./batch.js";
import { type Db, isDistributed, type Run, type Signal } from "./db.js";
import {
  type Batch,
  createStatement,
  insertInto,
  keepStored,
  replaceStored,
  type Statement,
  select,
  sentRequests,
  sentRows,
  sentValues,
} from "./insert.js";
import { createPutOne, putOne, runPuts } from "./put.js";
import { compareChannels, compareKeys, sizeOfPut } from "./put_requests.js";
import {
  createRoutedPut,
  type ExtendingBlob,
  isNotStored,
  type PutExtending,
  prefixColumns,
} from "./routed_writes.js";
import { createColumns, text } from "./rows.js";
import { type Column, checkpointBlobs, checkpoints } from "./tables.js";
import { mostSingleValues, unpacked } from "./values.js";

/**
 * Returns put with stored prefixes: Postgres makes each value of a part of a stored one and of the
 * bytes that came, so that a long value neither travels nor passes through this process. The
 * same is stored as put stores, all or nothing. Returns the id of the transaction that stored it.
 * Throws FAILED_PRECONDITION (NOT_STORED), and stores nothing, where a value that is extended was
 * not stored by that transaction or ends before the part does.
 *
 * The transaction that inserted a row is its xmin for as long as the row lives. Rows of blobs are
 * never updated, so the same version with the same xmin is the same value: not that of a thread
 * that was deleted and begun anew, nor what somebody else stored under the same version. (After a failover that lost transactions an id can be given a second
 * time; that the version is the same as well takes a saver whose versions are not random.) A dump
 * that is restored has new ids, and the prefix is refused.
 *
 * Puts travel together as those of createPut do. Relies on the primary keys of checkpoints and
 * checkpoint_blobs.
 */
export function createPutExtending(
  db: Db,
): (request: PutExtending, signal?: Signal) => Promise<string> {
  const statement = batchStatement(db.schema);
  const sizeOf = ({ put, prefixes }: PutExtending) =>
    prefixes.reduce((bytes, { offset, length }) => bytes + offset + length, sizeOfPut(put));
  const putRouted = createRoutedPut(db.schema);
  /** Of several of which one is refused each is run again alone. */
  const putOfThread = async (run: Run, requests: readonly PutExtending[], signal?: Signal) => {
    try {
      const transactionId = await putRouted(run, requests, signal);
      return requests.map(() => transactionId);
    } catch (error) {
      if (requests.length > 1 || !isNotStored(error)) throw error;
      return [undefined];
    }
  };
  const statementOf = createPutOne(db.schema, `returning ${transactionIdNow}`);
  const batch = createBatch<PutExtending, string | undefined>(db, {
    maxItems: () => 32,
    maxBytes: 1024 * 1024,
    sizeOf,
    // Two that bring the same version of a channel would share a transaction, and one of them lose.
    keyOf: ({ put }) => `${put.threadId}\0${put.checkpointNs}`,
    groupOf: ({ put }) => put.threadId,
    run: async (run, requests, signal) => {
      if (isDistributed(db)) return putOfThread(run, requests, signal);
      const [only] = requests.length === 1 ? requests : [];
      if (!only || only.prefixes.length > 0 || only.put.blobs.length > mostSingleValues) {
        return putAll(statement, run, requests, signal);
      }
      const rows = await putOne(statementOf, run, only.put, signal);
      return rows.map(([transactionId]) => text(transactionId));
    },
  });
  return async (request, signal) => {
    const isLong = request.prefixes.length > 0 && sizeOf(request) > longBytes;
    const [transactionId] = isLong
      ? await (isDistributed(db)
          ? putOfThread(db.runLong, [request], signal)
          : putAll(statement, db.runLong, [request], signal))
      : [await batch(request, signal)];
    if (transactionId === undefined) throw notStored();
    return transactionId;
  };
}

/**
 * A put that reads or writes more, of however few bytes that were sent, takes a turn among the long
 * statements, which leave connections to everybody else: 544 bytes can be worth 33 MB. (Where a
 * stored value is compressed, all is read up to the end of the part.)
 */
const longBytes = 8 * 1024 * 1024;

/** A blob, and the place of its put among those of the statement. */
interface NumberedBlob extends ExtendingBlob {
  item: number;
}

/** The transaction that stored each, or undefined where what it extends is not stored. */
async function putAll(
  statement: Statement<Batch<PutRequest, ChannelBlob, NumberedBlob>>,
  run: Run,
  requests: readonly PutExtending[],
  signal: Signal | undefined,
): Promise<(string | undefined)[]> {
  const sorted = [...requests].sort((a, b) => compareKeys(a.put, b.put));
  const puts = sorted.map(({ put }) => put);
  const blobs = sorted.flatMap(({ put, prefixes }, item) => {
    const byBlob = new Map(prefixes.map((prefix) => [prefix.blobIndex, prefix]));
    return put.blobs
      .map((part, i) => ({ request: put, part, item, prefix: byBlob.get(i) }))
      .sort((a, b) => compareChannels(a.part, b.part));
  });
  const [row] = await runPuts(run, statement, puts, blobs, signal);
  const transactionId = text(row?.[answer.at.transaction_id]);
  const refused = new Set<number>(JSON.parse(text(row?.[answer.at.refused_items])));
  const transactionIds = new Map(
    sorted.map((request, item) => [request, refused.has(item) ? undefined : transactionId]),
  );
  return requests.map((request) => transactionIds.get(request));
}

function notStored(): CheckpointdError {
  return new CheckpointdError(
    "failed_precondition",
    "prefixes: a stored value is not of that transaction any more, or ends before the part",
    { reason: "NOT_STORED", field: "prefixes" },
  );
}

/** An xmin has the lower half of a transaction's id. */
const transactionIdNow = "txid_current() & 4294967295";

const itemOfBlob: Column<NumberedBlob> = { name: "item", type: "integer", of: ({ item }) => item };
const itemOfPut: Column<PutRequest> = { name: "item", type: "integer", of: (_, index) => index };

const answer = createColumns("transaction_id", "refused_items");

// The subquery, unlike a join, leaves the planner the primary key or, while the table is a few
// pages, a scan of it: so only for values that are extended. `extended` is only a pointer to the
// value until the insert reads it.
const batchStatement = (schema: string) =>
  createStatement<Batch<PutRequest, ChannelBlob, NumberedBlob>>(
    (bind) => `
with new_values as materialized (
  select sent.*, (
    select stored.blob from ${schema}.checkpoint_blobs as stored
    where sent.prefix_length is not null
      and stored.thread_id = sent.thread_id and stored.checkpoint_ns = sent.checkpoint_ns
      and stored.channel = sent.channel and stored.version = sent.prefix_version
      and stored.xmin = sent.prefix_transaction_id::xid
      and octet_length(stored.blob) >= sent.prefix_offset + sent.prefix_length
  ) as extended
  from ${sentRows(bind, checkpointBlobs, [], [itemOfBlob, ...prefixColumns])}
), refused as (
  select distinct item from new_values where prefix_length is not null and extended is null
), new_blobs as (
  ${insertInto(schema, checkpointBlobs)}
  select ${select(
    checkpointBlobs,
    `case when prefix_length is null then ${unpacked}
      else overlay(${unpacked}
        placing substring(extended from prefix_offset + 1 for prefix_length)
        from head_length + 1 for 0) end`,
  )}
  from new_values as sent cross join ${sentValues(bind)}
  where item not in (select item from refused)
  ${keepStored(checkpointBlobs)}
), new_checkpoints as (
  ${insertInto(schema, checkpoints)}
  select ${select(checkpoints)}
  from ${sentRequests(bind, checkpoints, [itemOfPut])}
  where item not in (select item from refused)
  ${replaceStored(checkpoints)}
)
select ${answer.all({
      transaction_id: transactionIdNow,
      refused_items: "array_to_json(array(select item from refused))::text",
    })}`,
  );
