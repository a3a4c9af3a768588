import type { PutWritesRequest, Write } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { createBatch } from "./batch.js";
import { type Db, expectCount, type Parameter, type Run, type Signal } from "./db.js";
import { heldLeases, leaseLost } from "./leases.js";
import {
  createSingleStatements,
  mostSingleValues,
  packBytes,
  type SingleStatement,
  unpack,
  unpacked,
} from "./values.js";

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
      createBatch(
        db,
        batchOptions(db.schema, kind.startsWith("replace"), kind.endsWith("under lease")),
      ),
    ]),
  );
  return async (request, signal) => {
    if (request.writes.length === 0) return;
    const rule = request.writes.every((write) => write.idx < 0) ? "replace" : "keep";
    const batch = batches.get(request.leaseToken === "" ? rule : `${rule} under lease`);
    if (!(await batch?.(request, signal))) throw leaseLost();
  };
}

const batchOptions = (schema: string, replace: boolean, underLease: boolean) => {
  const statementOfOne = createSingleStatements((writes, bytesOf) =>
    oneStatement(schema, replace, writes, bytesOf),
  );
  const statementOfAll = statement(schema, replace, underLease);
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
    run: (run: Run, requests: readonly PutWritesRequest[], signal: Signal | undefined) => {
      const [only] = requests.length === 1 ? requests : [];
      const writes = only ? onePerIdx(only.writes, replace) : [];
      return only && !underLease && writes.length <= mostSingleValues
        ? putWritesOfOne(statementOfOne, run, only, writes, signal)
        : putAllWrites(statementOfAll, replace, underLease, run, requests, signal);
    },
  };
};

/** Tells of each whether it was stored; not if its lease is lost. */
async function putAllWrites(
  text: string,
  replace: boolean,
  underLease: boolean,
  run: Run,
  requests: readonly PutWritesRequest[],
  signal: Signal | undefined,
): Promise<boolean[]> {
  const sorted = [...requests].sort(compareKeys);
  const rows = sorted.flatMap((request) =>
    onePerIdx(request.writes, replace).map((write) => ({ request, write })),
  );
  const values = packBytes(rows.map(({ write }) => write.value?.data));
  const held = await run(
    text,
    [
      rows.map(({ request }) => request.threadId),
      rows.map(({ request }) => request.checkpointNs),
      rows.map(({ request }) => request.checkpointId),
      rows.map(({ request }) => request.taskId),
      rows.map(({ request }) => request.taskPath),
      rows.map(({ write }) => write.idx),
      rows.map(({ write }) => write.channel),
      rows.map(({ write }) => write.value?.type ?? null),
      values.starts,
      values.lengths,
      values.texts,
      values.bytes,
      ...(underLease ? [rows.map(({ request }) => request.leaseToken)] : []),
    ],
    signal,
  );
  if (!underLease) {
    // Of those that are kept Postgres counts the new ones.
    if (replace) expectCount(held, rows.length);
    return requests.map(() => true);
  }
  const leases = new Set(held.map(([threadId, token]) => `${threadId}\0${token}`));
  return requests.map(({ threadId, leaseToken }) => leases.has(`${threadId}\0${leaseToken}`));
}

/** The putWrites of one task with few writes: see putOne of put.ts. */
async function putWritesOfOne(
  statementOf: (values: (Uint8Array | undefined)[]) => SingleStatement,
  run: Run,
  { threadId, checkpointNs, checkpointId, taskId, taskPath }: PutWritesRequest,
  writes: readonly Write[],
  signal: Signal | undefined,
): Promise<boolean[]> {
  const { text, parameters } = statementOf(writes.map(({ value }) => value?.data));
  await run(
    text,
    [
      threadId,
      checkpointNs,
      checkpointId,
      taskId,
      taskPath,
      ...writes.flatMap(({ idx, channel, value }, i) => [
        idx,
        channel,
        value?.type ?? null,
        parameters[i] as Parameter,
      ]),
    ],
    signal,
  );
  return [true];
}

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

/**
 * Those that are kept are locked (`do nothing` would not lock them): a deleteThread beside a call
 * that is repeated takes all of them or none.
 */
const ifStored = (replace: boolean) =>
  replace
    ? "do update set channel = excluded.channel, type = excluded.type, blob = excluded.blob"
    : "do update set type = stored.type where false";

const oneStatement = (
  schema: string,
  replace: boolean,
  writes: number,
  bytesOf: (parameter: number) => string,
) => {
  const rows = Array.from({ length: writes }, (_, i) => {
    const at = 6 + 4 * i;
    return `($1, $2, $3, $4, $5, $${at}::int, $${at + 1}, $${at + 2}, ${bytesOf(at + 3)})`;
  });
  return `insert into ${schema}.checkpoint_writes as stored
  (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
values ${rows.join()}
on conflict (thread_id, checkpoint_ns, checkpoint_id, task_id, idx) ${ifStored(replace)}`;
};

const statement = (schema: string, replace: boolean, underLease: boolean) => `
${underLease ? `with ${heldLeases(schema, "$1", "$13")}, stored as (` : ""}
insert into ${schema}.checkpoint_writes as stored
  (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, blob)
select w.thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type,
  ${unpacked}
from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::int[], $7::text[],
    $8::text[], $9::int[], $10::int[]${underLease ? ", $13::text[]" : ""})
  as w (thread_id, checkpoint_ns, checkpoint_id, task_id, task_path, idx, channel, type, start, length
    ${underLease ? ", token" : ""})
${underLease ? `join lease on lease.thread_id = w.thread_id collate "C" and lease.token = w.token` : ""}
cross join ${unpack("$11", "$12")}
on conflict (thread_id, checkpoint_ns, checkpoint_id, task_id, idx) ${ifStored(replace)}${underLease ? ")\nselect thread_id, token from lease" : ""}`;
