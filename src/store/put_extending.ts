import type { PutRequest } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import type { StoredPrefix } from "../../gen/checkpointd/v1/session_service_pb.js";
import { CheckpointdError } from "../errors.js";
import { createBatch } from "./batch.js";
import type { Db, Run, Signal } from "./db.js";
import {
  compareChannels,
  compareKeys,
  keepBlob,
  oneStatement,
  putOne,
  replaceCheckpoint,
  runPuts,
  sizeOfPut,
} from "./put.js";
import { createSingleStatements, mostSingleValues, unpack, unpacked } from "./values.js";

/** A put whose values may begin as stored ones do. */
export interface PutExtending {
  put: PutRequest;
  prefixes: readonly StoredPrefix[];
}

/**
 * Returns put with stored prefixes: Postgres makes each value of the first bytes of a stored one and of
 * those that came, so that a long value neither travels nor passes through this process. The same
 * is stored as put stores, all or nothing. Returns the id of the transaction that stored it. Throws
 * FAILED_PRECONDITION (NOT_STORED), and stores nothing, where a value that is extended is not
 * stored by that transaction or is shorter than what is kept of it.
 *
 * The transaction that inserted a row is its xmin for as long as the row lives. Rows of blobs are never updated, so the same version with the same xmin is the
 * same value: not that of a thread that was deleted and begun anew, nor what somebody else stored
 * under the same version. (After a failover that lost transactions an id can be given a second
 * time; that the version is the same as well takes a saver whose versions are not random.) A dump
 * that is restored has new ids, and the prefix is refused.
 *
 * Puts travel together as those of createPut do. Relies on the primary keys of checkpoints and
 * checkpoint_blobs.
 */
export function createPutExtending(
  db: Db,
): (request: PutExtending, signal?: Signal) => Promise<string> {
  const text = statement(db.schema);
  const statementOfOne = createSingleStatements(
    (blobs, bytesOf) => `${oneStatement(db.schema, blobs, bytesOf)} returning ${transactionIdNow}`,
  );
  const batch = createBatch<PutExtending, string | undefined>(db, {
    maxItems: () => 32,
    maxBytes: 1024 * 1024,
    sizeOf: ({ put, prefixes }) =>
      prefixes.reduce((bytes, { length }) => bytes + length, sizeOfPut(put)),
    // Two that bring the same version of a channel would share a transaction, and one of them lose.
    keyOf: ({ put }) => `${put.threadId}\0${put.checkpointNs}`,
    run: async (run, requests, signal) => {
      const [only] = requests.length === 1 ? requests : [];
      if (!only || only.prefixes.length > 0 || only.put.blobs.length > mostSingleValues) {
        return putAll(text, run, requests, signal);
      }
      const rows = await putOne(statementOfOne, run, only.put, signal);
      return rows.map(([transactionId]) => String(transactionId));
    },
  });
  return async (request, signal) => {
    const transactionId = await batch(request, signal);
    if (transactionId === undefined) throw notStored();
    return transactionId;
  };
}

/** The transaction that stored each, or undefined where what it extends is not stored. */
async function putAll(
  text: string,
  run: Run,
  requests: readonly PutExtending[],
  signal: Signal | undefined,
): Promise<(string | undefined)[]> {
  const sorted = [...requests].sort((a, b) => compareKeys(a.put, b.put));
  const puts = sorted.map(({ put }) => put);
  const blobs = sorted.flatMap(({ put, prefixes }, i) => {
    const byBlob = new Map(prefixes.map((prefix) => [prefix.blobIndex, prefix]));
    return put.blobs
      .map((blob, at) => ({ item: i + 1, request: put, blob, prefix: byBlob.get(at) }))
      .sort((a, b) => compareChannels(a.blob, b.blob));
  });
  const prefixes = [
    blobs.map(({ item }) => item),
    blobs.map(({ prefix }) => prefix?.version ?? null),
    blobs.map(({ prefix }) => prefix?.transactionId ?? null),
    blobs.map(({ prefix }) => prefix?.length ?? null),
  ];
  const rows = await runPuts(run, text, puts, blobs, prefixes, signal);
  const [transactionId, refusedItems] = rows[0]!.map(String) as [string, string];
  const refused = new Set(refusedItems.split(","));
  const transactionIds = new Map(
    sorted.map((request, i) => [request, refused.has(`${i + 1}`) ? undefined : transactionId]),
  );
  return requests.map((request) => transactionIds.get(request));
}

function notStored(): CheckpointdError {
  return new CheckpointdError(
    "failed_precondition",
    "prefixes: a stored value is not of that transaction any more, or is shorter",
    { reason: "NOT_STORED", field: "prefixes" },
  );
}

/** An xmin has the lower half of a transaction's id. */
const transactionIdNow = "txid_current() & 4294967295";

// The subquery, unlike a join, leaves the planner the primary key or, while the table is a few
// pages, a scan of it: so only for values that are extended. `base` is only a pointer to the value
// until the insert reads it.
const statement = (schema: string) => `
with new_values as materialized (
  select b.*, (
    select stored.blob from ${schema}.checkpoint_blobs as stored
    where b.kept is not null
      and stored.thread_id = b.thread_id and stored.checkpoint_ns = b.checkpoint_ns
      and stored.channel = b.channel and stored.version = b.base_version
      and stored.xmin = b.transaction_id::xid and octet_length(stored.blob) >= b.kept
  ) as base
  from unnest($7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::int[], $13::int[],
      $16::int[], $17::text[], $18::text[], $19::int[])
    as b (thread_id, checkpoint_ns, channel, version, type, start, length,
      item, base_version, transaction_id, kept)
), refused as (
  select distinct item from new_values where kept is not null and base is null
), new_blobs as (
  insert into ${schema}.checkpoint_blobs as stored
    (thread_id, checkpoint_ns, channel, version, type, blob)
  select thread_id, checkpoint_ns, channel, version, type,
    case when kept is null then ${unpacked}
      else substring(base from 1 for kept) || ${unpacked} end
  from new_values cross join ${unpack("$14", "$15")}
  where item not in (select item from refused)
  ${keepBlob}
), new_checkpoints as (
  insert into ${schema}.checkpoints
    (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
  select thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id,
    checkpoint::jsonb, metadata::jsonb
  from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[])
    with ordinality
    as c (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata, item)
  where item not in (select item from refused)
  ${replaceCheckpoint}
)
select ${transactionIdNow}, array_to_string(array(select item from refused), ',')`;
