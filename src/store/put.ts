import type { ChannelBlob } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import type { PutRequest } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { createBatch } from "./batch.js";
import type { Result } from "./connection.js";
import { type Db, expectCount, isDistributed, type Run, type Signal } from "./db.js";
import {
  type Batch,
  createSingleStatements,
  createStatement,
  insertInto,
  keepStored,
  replaceStored,
  type Statement,
  select,
  sentRequests,
  sentRows,
  sentValues,
  toBatch,
} from "./insert.js";
import { haveLease, heldLeases, joinLease, leaseLost, leaseToken, selectLeases } from "./leases.js";
import {
  compareChannels,
  compareKeys,
  explainPut,
  type NewBlob,
  sizeOfPut,
} from "./put_requests.js";
import { createRoutedPut, threadAndLease } from "./routed_writes.js";
import { checkpointBlobs, checkpoints } from "./tables.js";
import { mostSingleValues } from "./values.js";

/**
 * Returns put: stores a checkpoint and its new channel blobs in one statement, so all or
 * nothing without BEGIN and COMMIT. Blobs that are stored already are kept, as LangGraph's
 * savers keep them; a checkpoint that is stored already gets the new checkpoint and metadata.
 * Throws LEASE_LOST, and stores nothing, where the request has a lease that is not held.
 *
 * Puts that wait for a connection travel together (see createBatch), ordered by key so that
 * two statements never wait for each other's rows.
 *
 * Relies on the primary keys of checkpoints and checkpoint_blobs.
 */
export function createPut(db: Db): (request: PutRequest, signal?: Signal) => Promise<void> {
  const put = createBatch(db, batchOptions(db, false));
  const putUnderLease = createBatch(db, batchOptions(db, true));
  return async (request, signal) => {
    const batch = request.leaseToken === "" ? put : putUnderLease;
    if (!(await batch(request, signal))) throw leaseLost();
  };
}

const batchOptions = (db: Db, underLease: boolean) => {
  const statementOf = createPutOne(db.schema);
  const ofBatch = batchStatement(db.schema, underLease);
  const putRouted = createRoutedPut(db.schema);
  return {
    maxItems: () => 32,
    maxBytes: 1024 * 1024,
    sizeOf: sizeOfPut,
    keyOf: ({ threadId, checkpointNs, checkpointId }: PutRequest) =>
      `${threadId}\0${checkpointNs}\0${checkpointId}`,
    groupOf: threadAndLease,
    run: async (run: Run, requests: readonly PutRequest[], signal: Signal | undefined) => {
      if (isDistributed(db)) {
        const puts = requests.map((put) => ({ put, prefixes: [] }));
        const isStored = (await putRouted(run, puts, signal)) !== undefined;
        return requests.map(() => isStored);
      }
      const [only] = requests.length === 1 ? requests : [];
      if (!only || underLease || only.blobs.length > mostSingleValues) {
        return putAll(ofBatch, underLease, run, requests, signal);
      }
      await putOne(statementOf, run, only, signal);
      return [true];
    },
  };
};

/** Tells of each whether it was stored; not if its lease is lost. */
async function putAll(
  statement: Statement<Batch<PutRequest, ChannelBlob>>,
  underLease: boolean,
  run: Run,
  requests: readonly PutRequest[],
  signal: Signal | undefined,
): Promise<boolean[]> {
  const sorted = [...requests].sort(compareKeys);
  const blobs = onePerVersion(
    sorted.flatMap((request) =>
      [...request.blobs].sort(compareChannels).map((part) => ({ request, part })),
    ),
  );
  const rows = await runPuts(run, statement, sorted, blobs, signal);
  if (underLease) return haveLease(rows, requests);
  expectCount(rows, requests.length);
  return requests.map(() => true);
}

/**
 * Runs a statement that stores any number of checkpoints and blobs, both in the order in which they
 * are written. Throws INVALID_ARGUMENT with the field's name for JSON that Postgres refuses and for
 * keys that it cannot index, if they came with the only put.
 */
export function runPuts<Row extends NewBlob>(
  run: Run,
  statement: Statement<Batch<PutRequest, ChannelBlob, Row>>,
  requests: readonly PutRequest[],
  blobs: readonly Row[],
  signal: Signal | undefined,
): Promise<Result> {
  const batch = toBatch(checkpointBlobs, requests, blobs);
  const result = run(statement.text, statement.parametersOf(batch), signal);
  const [only] = requests.length === 1 ? requests : [];
  // Of several each is run again alone if one is at fault (see createBatch).
  return only ? explainPut(run, only, result) : result;
}

/**
 * Runs the put of one checkpoint with few blobs, as most are that find the service idle. Returns
 * what the statement does. Throws INVALID_ARGUMENT as runPuts does.
 */
export async function putOne(
  statementOf: ReturnType<typeof createPutOne>,
  run: Run,
  request: PutRequest,
  signal: Signal | undefined,
): Promise<Result> {
  const blobs = [...request.blobs].sort(compareChannels);
  const { text, parameters } = statementOf(request, blobs);
  const result = await explainPut(run, request, run(text, parameters, signal));
  expectCount(result, 1);
  return result;
}

/**
 * Two checkpoints of a thread may bring the same version of a channel (the branches of a fork,
 * with LangGraph's integer versions), and one statement cannot conflict with itself. The first
 * wins, as it does between statements.
 */
function onePerVersion(blobs: NewBlob[]): NewBlob[] {
  if (blobs[0]?.request === blobs[blobs.length - 1]?.request) return blobs;
  const seen = new Set<string>();
  return blobs.filter(({ request, part }) => {
    const key = `${request.threadId}\0${request.checkpointNs}\0${part.channel}\0${part.version}`;
    return seen.size !== seen.add(key).size;
  });
}

/** Returns the statement of {@link putOne} for a put; `returning` is added to its end. */
export const createPutOne = (schema: string, returning = "") =>
  createSingleStatements<PutRequest, ChannelBlob>((valuesOf, blobs) => {
    const newBlobs = () => `with new_blobs as (
  ${insertInto(schema, checkpointBlobs)}
  ${valuesOf(checkpointBlobs, blobs)}
  ${keepStored(checkpointBlobs)}
)`;
    return `${blobs === 0 ? "" : newBlobs()}
${insertInto(schema, checkpoints)}
${valuesOf(checkpoints, 1)}
${replaceStored(checkpoints)}
${returning}`;
  });

const batchStatement = (schema: string, underLease: boolean) =>
  createStatement<Batch<PutRequest, ChannelBlob>>(
    (bind) => `
with ${underLease ? `${heldLeases(schema, bind)}, ` : ""}new_blobs as (
  ${insertInto(schema, checkpointBlobs)}
  select ${select(checkpointBlobs)}
  from ${sentRows(bind, checkpointBlobs, underLease ? [leaseToken] : [])}
  ${underLease ? joinLease : ""}
  cross join ${sentValues(bind)}
  ${keepStored(checkpointBlobs)}
)${underLease ? ", new_checkpoints as (" : ""}
${insertInto(schema, checkpoints)}
select ${select(checkpoints)}
from ${sentRequests(bind, checkpoints, underLease ? [leaseToken] : [])}
${underLease ? joinLease : ""}
${replaceStored(checkpoints)}${underLease ? `)\n${selectLeases}` : ""}`,
  );
