import type { PutWritesRequest, Write } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { createBatch } from "./batch.js";
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
  sentRows,
  sentValues,
  toBatch,
} from "./insert.js";
import { explainKeys, keysOf } from "./keys.js";
import { haveLease, heldLeases, joinLease, leaseLost, leaseToken, selectLeases } from "./leases.js";
import { createRoutedWrites, threadAndLease } from "./routed_writes.js";
import { checkpointWrites } from "./tables.js";
import { mostSingleValues } from "./values.js";

/**
 * Returns putWrites: stores the writes of a task in one statement. If all are special (idx
 * below zero) rows that are stored already are replaced, otherwise they are kept: LangGraph's
 * rule. Calls that wait for a connection travel together as puts do.
 *
 * Relies on the primary key of checkpoint_writes.
 */
export function createPutWrites(
  db: Db,
): (request: PutWritesRequest, signal?: Signal) => Promise<void> {
  const batches = new Map(
    ["keep", "replace", "keep under lease", "replace under lease"].map((kind) => [
      kind,
      createBatch(db, batchOptions(db, kind.startsWith("replace"), kind.endsWith("under lease"))),
    ]),
  );
  return async (request, signal) => {
    if (request.writes.length === 0) return;
    const rule = request.writes.every((write) => write.idx < 0) ? "replace" : "keep";
    const batch = batches.get(request.leaseToken === "" ? rule : `${rule} under lease`);
    if (!(await batch?.(request, signal))) throw leaseLost();
  };
}

const batchOptions = (db: Db, replace: boolean, underLease: boolean) => {
  const { schema } = db;
  const statementOf = createSingleStatements<PutWritesRequest, Write>(
    (valuesOf, writes) => `${insertInto(schema, checkpointWrites)}
${valuesOf(checkpointWrites, writes)}
${ifStored(replace)}`,
  );
  const ofBatch = batchStatement(schema, replace, underLease);
  const writeRouted = createRoutedWrites(schema, replace);
  return {
    maxItems: () => 32,
    maxBytes: 1024 * 1024,
    sizeOf: (request: PutWritesRequest) => {
      let bytes = 0;
      for (const write of request.writes) bytes += write.value?.data.length ?? 0;
      return bytes;
    },
    keyOf: (request: PutWritesRequest) =>
      `${request.threadId}\0${request.checkpointNs}\0${request.checkpointId}\0${request.taskId}`,
    groupOf: threadAndLease,
    run: async (run: Run, requests: readonly PutWritesRequest[], signal: Signal | undefined) => {
      const [only] = requests.length === 1 ? requests : [];
      if (isDistributed(db)) {
        const result = writeRouted(run, toRows(requests, replace), signal);
        const isStored = (await (only ? explainWrites(only, result) : result)) !== undefined;
        return requests.map(() => isStored);
      }
      const writes = only ? onePerIdx(only.writes, replace) : [];
      if (!only || underLease || writes.length > mostSingleValues) {
        return putAllWrites(ofBatch, replace, underLease, run, requests, signal);
      }
      const { text, parameters } = statementOf(only, writes);
      await explainWrites(only, run(text, parameters, signal));
      return [true];
    },
  };
};

/** Tells of each whether it was stored; not if its lease is lost. */
async function putAllWrites(
  statement: Statement<Batch<PutWritesRequest, Write>>,
  replace: boolean,
  underLease: boolean,
  run: Run,
  requests: readonly PutWritesRequest[],
  signal: Signal | undefined,
): Promise<boolean[]> {
  const writes = toRows(requests, replace);
  const batch = toBatch(checkpointWrites, requests, writes);
  const result = run(statement.text, statement.parametersOf(batch), signal);
  const [only] = requests.length === 1 ? requests : [];
  // Of several each is run again alone if one is at fault (see createBatch).
  const rows = await (only ? explainWrites(only, result) : result);
  if (underLease) return haveLease(rows, requests);
  // Of those that are kept Postgres counts the new ones.
  if (replace) expectCount(rows, writes.length);
  return requests.map(() => true);
}

/** In the order in which every statement writes them. */
const toRows = (requests: readonly PutWritesRequest[], replace: boolean) =>
  [...requests]
    .sort(compareKeys)
    .flatMap((request) => onePerIdx(request.writes, replace).map((part) => ({ request, part })));

/** Throws INVALID_ARGUMENT with the field's name for a key that Postgres cannot index. */
const explainWrites = <T>(request: PutWritesRequest, result: Promise<T>) =>
  explainKeys(() => keysOf(checkpointWrites, request, request.writes), result);

function compareKeys(a: PutWritesRequest, b: PutWritesRequest): number {
  if (a.threadId !== b.threadId) return a.threadId < b.threadId ? -1 : 1;
  if (a.checkpointNs !== b.checkpointNs) return a.checkpointNs < b.checkpointNs ? -1 : 1;
  if (a.checkpointId !== b.checkpointId) return a.checkpointId < b.checkpointId ? -1 : 1;
  return a.taskId < b.taskId ? -1 : 1;
}

/** A statement that meets the same key twice fails in Postgres, so only one write an idx goes there. */
function onePerIdx(writes: readonly Write[], lastWins: boolean): readonly Write[] {
  const byIdx = new Map<number, Write>();
  for (const write of writes) {
    if (lastWins || !byIdx.has(write.idx)) byIdx.set(write.idx, write);
  }
  return [...byIdx.values()].sort((a, b) => a.idx - b.idx);
}

const ifStored = (replace: boolean) => (replace ? replaceStored : keepStored)(checkpointWrites);

const batchStatement = (schema: string, replace: boolean, underLease: boolean) =>
  createStatement<Batch<PutWritesRequest, Write>>(
    (bind) => `
${underLease ? `with ${heldLeases(schema, bind)}, new_writes as (` : ""}
${insertInto(schema, checkpointWrites)}
select ${select(checkpointWrites)}
from ${sentRows(bind, checkpointWrites, underLease ? [leaseToken] : [])}
${underLease ? joinLease : ""}
cross join ${sentValues(bind)}
${ifStored(replace)}${underLease ? `)\n${selectLeases}` : ""}`,
  );
