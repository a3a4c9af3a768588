import type { ChannelBlob } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import type { PutRequest } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { createBatch } from "./batch.js";
import type { Result } from "./connection.js";
import { type Db, expectCount, type Parameter, type Run, type Signal } from "./db.js";
import { explainJson } from "./json.js";
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
 * Returns put: stores a checkpoint and its new channel blobs in one statement, so all or
 * nothing without BEGIN and COMMIT. Blobs that are stored already are kept, as LangGraph's
 * savers keep them; a checkpoint that is stored already gets the new checkpoint and metadata.
 *
 * Puts that wait for a connection travel together (see createBatch), ordered by key so that
 * two statements never wait for each other's rows.
 *
 * Relies on the primary keys of checkpoints and checkpoint_blobs.
 */
export function createPut(db: Db): (request: PutRequest, signal?: Signal) => Promise<void> {
  const put = createBatch(db, batchOptions(db.schema, false));
  const putUnderLease = createBatch(db, batchOptions(db.schema, true));
  return async (request, signal) => {
    const batch = request.leaseToken === "" ? put : putUnderLease;
    if (!(await batch(request, signal))) throw leaseLost();
  };
}

const batchOptions = (schema: string, underLease: boolean) => {
  const statementOfOne = createSingleStatements((blobs, bytesOf) =>
    oneStatement(schema, blobs, bytesOf),
  );
  const statementOfAll = statement(schema, underLease);
  return {
    maxItems: () => 32,
    maxBytes: 1024 * 1024,
    sizeOf: sizeOfPut,
    keyOf: ({ threadId, checkpointNs, checkpointId }: PutRequest) =>
      `${threadId}\0${checkpointNs}\0${checkpointId}`,
    run: async (run: Run, requests: readonly PutRequest[], signal: Signal | undefined) => {
      const [only] = requests.length === 1 ? requests : [];
      if (!only || underLease || only.blobs.length > mostSingleValues) {
        return putAll(statementOfAll, underLease, run, requests, signal);
      }
      await putOne(statementOfOne, run, only, signal);
      return [true];
    },
  };
};

/** About how many bytes a put brings: those of its values and its JSON. */
export function sizeOfPut({ checkpointJson, metadataJson, blobs }: PutRequest): number {
  let bytes = checkpointJson.length + metadataJson.length;
  for (const { value } of blobs) bytes += value?.data.length ?? 0;
  return bytes;
}

/** A channel's version, and the put that brings it. */
export interface NewBlob {
  request: PutRequest;
  blob: ChannelBlob;
}

/** Tells of each whether it was stored; not if its lease is lost. */
async function putAll(
  text: string,
  underLease: boolean,
  run: Run,
  requests: readonly PutRequest[],
  signal: Signal | undefined,
): Promise<boolean[]> {
  const [only] = requests.length === 1 ? requests : [];
  const sorted = only ? requests : [...requests].sort(compareKeys);
  const blobs = onePerVersion(
    sorted.flatMap((request) =>
      request.blobs
        .map((blob) => ({ request, blob }))
        .sort((a, b) => compareChannels(a.blob, b.blob)),
    ),
  );
  const leases = underLease
    ? [sorted.map((request) => request.leaseToken), blobs.map(({ request }) => request.leaseToken)]
    : [];
  const rows = await runPuts(run, text, sorted, blobs, leases, signal);
  if (!underLease) {
    expectCount(rows, requests.length);
    return requests.map(() => true);
  }
  const held = new Set(rows.map(([threadId, token]) => `${threadId}\0${token}`));
  return requests.map(({ threadId, leaseToken }) => held.has(`${threadId}\0${leaseToken}`));
}

/**
 * Runs a statement that stores any number of checkpoints and blobs, both in the order in which they
 * are written. Its parameters: 1 to 6 of the checkpoints, 7 to 13 of the blobs, 14 and 15 their
 * packed values, then `more`.
 */
export function runPuts(
  run: Run,
  text: string,
  requests: readonly PutRequest[],
  blobs: readonly NewBlob[],
  more: readonly Parameter[],
  signal: Signal | undefined,
): Promise<Result> {
  const values = packBytes(blobs.map(({ blob }) => blob.value?.data));
  const result = run(
    text,
    [
      requests.map((request) => request.threadId),
      requests.map((request) => request.checkpointNs),
      requests.map((request) => request.checkpointId),
      requests.map((request) => request.parentCheckpointId || null),
      requests.map((request) => request.checkpointJson),
      requests.map((request) => request.metadataJson || "{}"),
      blobs.map(({ request }) => request.threadId),
      blobs.map(({ request }) => request.checkpointNs),
      blobs.map(({ blob }) => blob.channel),
      blobs.map(({ blob }) => blob.version),
      blobs.map(({ blob }) => blob.value?.type ?? "empty"),
      values.starts,
      values.lengths,
      values.texts,
      values.bytes,
      ...more,
    ],
    signal,
  );
  const [only] = requests.length === 1 ? requests : [];
  // Of several each is run again alone if one is at fault (see createBatch).
  if (!only) return result;
  const json = { checkpoint_json: only.checkpointJson, metadata_json: only.metadataJson };
  return explainJson(run, json, result);
}

/**
 * The put of one checkpoint with few blobs, as most are that find the service idle: 0.31 ms
 * instead of the 0.39 of the statement that takes any number. Returns what the statement does.
 */
export async function putOne(
  statementOf: (values: (Uint8Array | undefined)[]) => SingleStatement,
  run: Run,
  { threadId, checkpointNs, checkpointId, ...request }: PutRequest,
  signal: Signal | undefined,
): Promise<Result> {
  const { checkpointJson } = request;
  const blobs = [...request.blobs].sort(compareChannels);
  const { text, parameters } = statementOf(blobs.map(({ value }) => value?.data));
  const metadataJson = request.metadataJson || "{}";
  const result = await explainJson(
    run,
    { checkpoint_json: checkpointJson, metadata_json: metadataJson },
    run(
      text,
      [
        threadId,
        checkpointNs,
        checkpointId,
        request.parentCheckpointId || null,
        checkpointJson,
        metadataJson,
        ...blobs.flatMap(({ channel, version, value }, i) => [
          channel,
          version,
          value?.type ?? "empty",
          parameters[i] as Parameter,
        ]),
      ],
      signal,
    ),
  );
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
  return blobs.filter(({ request, blob }) => {
    const key = `${request.threadId}\0${request.checkpointNs}\0${blob.channel}\0${blob.version}`;
    return seen.size !== seen.add(key).size;
  });
}

/** Blobs of one checkpoint in the order in which every statement writes them. */
export function compareChannels(a: ChannelBlob, b: ChannelBlob): number {
  return a.channel < b.channel ? -1 : 1;
}

/** Checkpoints in the order in which every statement writes them. */
export function compareKeys(a: PutRequest, b: PutRequest): number {
  if (a.threadId !== b.threadId) return a.threadId < b.threadId ? -1 : 1;
  if (a.checkpointNs !== b.checkpointNs) return a.checkpointNs < b.checkpointNs ? -1 : 1;
  return a.checkpointId < b.checkpointId ? -1 : 1;
}

/**
 * A blob that is stored already is left as it is, but its row is locked (`do nothing` would not
 * lock it): a prune that is about to remove it as unused waits for this statement and then sees
 * the checkpoint that names it.
 */
export const keepBlob = `on conflict (thread_id, checkpoint_ns, channel, version)
    do update set type = stored.type where false`;
/** What is new of a checkpoint that is stored already is stored, but not another parent. */
export const replaceCheckpoint = `on conflict (thread_id, checkpoint_ns, checkpoint_id)
do update set checkpoint = excluded.checkpoint, metadata = excluded.metadata`;

/** The statement of {@link putOne} for so many blobs; `bytesOf` as createSingleStatements has it. */
export const oneStatement = (
  schema: string,
  blobs: number,
  bytesOf: (parameter: number) => string,
) => {
  const rows = Array.from({ length: blobs }, (_, i) => {
    const at = 7 + 4 * i;
    return `($1, $2, $${at}, $${at + 1}, $${at + 2}, ${bytesOf(at + 3)})`;
  });
  const newBlobs = `with new_blobs as (
  insert into ${schema}.checkpoint_blobs as stored
    (thread_id, checkpoint_ns, channel, version, type, blob)
  values ${rows.join()}
  ${keepBlob}
)`;
  return `${blobs === 0 ? "" : newBlobs}
insert into ${schema}.checkpoints
  (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
values ($1, $2, $3, $4, $5::text::jsonb, $6::text::jsonb)
${replaceCheckpoint}`;
};

const statement = (schema: string, underLease: boolean) => `
with ${underLease ? `${heldLeases(schema, "$1", "$16")}, ` : ""}new_blobs as (
  insert into ${schema}.checkpoint_blobs as stored
    (thread_id, checkpoint_ns, channel, version, type, blob)
  select b.thread_id, checkpoint_ns, channel, version, type, ${unpacked}
  from unnest($7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::int[], $13::int[]
      ${underLease ? ", $17::text[]" : ""})
    as b (thread_id, checkpoint_ns, channel, version, type, start, length
      ${underLease ? ", token" : ""})
  ${underLease ? `join lease on lease.thread_id = b.thread_id collate "C" and lease.token = b.token` : ""}
  cross join ${unpack("$14", "$15")}
  ${keepBlob}
)${underLease ? ", new_checkpoints as (" : ""}
insert into ${schema}.checkpoints
  (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
select c.thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id,
  checkpoint::jsonb, metadata::jsonb
from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[]
    ${underLease ? ", $16::text[]" : ""})
  as c (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata
    ${underLease ? ", token" : ""})
${underLease ? `join lease on lease.thread_id = c.thread_id collate "C" and lease.token = c.token` : ""}
${replaceCheckpoint}${underLease ? ")\nselect thread_id, token from lease" : ""}`;
