import type { PutRequest } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { createBatch } from "./batch.js";
import type { Db, Run, Signal } from "./db.js";
import { explainJson } from "./json.js";
import { packBytes, unpack, unpacked } from "./values.js";

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
  return createBatch<PutRequest, undefined>(db, {
    maxItems: () => 32,
    maxBytes: 1024 * 1024,
    sizeOf: (request) => {
      let bytes = request.checkpointJson.length + request.metadataJson.length;
      for (const blob of request.blobs) bytes += blob.value?.data.length ?? 0;
      return bytes;
    },
    keyOf: ({ threadId, checkpointNs, checkpointId }) =>
      `${threadId}\0${checkpointNs}\0${checkpointId}`,
    run: (run, requests, signal) => putAll(db.schema, run, requests, signal),
  });
}

async function putAll(
  schema: string,
  run: Run,
  requests: readonly PutRequest[],
  signal: Signal | undefined,
): Promise<undefined[]> {
  const sorted = requests.length === 1 ? requests : [...requests].sort(compareKeys);
  const blobs = sorted.flatMap((request) =>
    request.blobs
      .map((blob) => ({ request, blob }))
      .sort((a, b) => (a.blob.channel < b.blob.channel ? -1 : 1)),
  );
  const values = packBytes(blobs.map(({ blob }) => blob.value?.data));
  const result = run(
    statement(schema),
    [
      sorted.map((request) => request.threadId),
      sorted.map((request) => request.checkpointNs),
      sorted.map((request) => request.checkpointId),
      sorted.map((request) => request.parentCheckpointId || null),
      sorted.map((request) => request.checkpointJson),
      sorted.map((request) => request.metadataJson || "{}"),
      blobs.map(({ request }) => request.threadId),
      blobs.map(({ request }) => request.checkpointNs),
      blobs.map(({ blob }) => blob.channel),
      blobs.map(({ blob }) => blob.version),
      blobs.map(({ blob }) => blob.value?.type ?? "empty"),
      values.starts,
      values.lengths,
      values.texts,
      values.bytes,
    ],
    signal,
  );
  const [only] = requests.length === 1 ? requests : [];
  await (only
    ? explainJson(
        run,
        { checkpoint_json: only.checkpointJson, metadata_json: only.metadataJson },
        result,
      )
    : result);
  return requests.map(() => undefined);
}

function compareKeys(a: PutRequest, b: PutRequest): number {
  if (a.threadId !== b.threadId) return a.threadId < b.threadId ? -1 : 1;
  if (a.checkpointNs !== b.checkpointNs) return a.checkpointNs < b.checkpointNs ? -1 : 1;
  return a.checkpointId < b.checkpointId ? -1 : 1;
}

const statement = (schema: string) => `
with new_blobs as (
  insert into ${schema}.checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
  select thread_id, checkpoint_ns, channel, version, type, ${unpacked}
  from unnest($7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::int[], $13::int[])
    as b (thread_id, checkpoint_ns, channel, version, type, start, length)
  cross join ${unpack("$14", "$15")}
  on conflict (thread_id, checkpoint_ns, channel, version) do nothing
)
insert into ${schema}.checkpoints
  (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
select thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id,
  checkpoint::jsonb, metadata::jsonb
from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[])
  as c (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
on conflict (thread_id, checkpoint_ns, checkpoint_id)
do update set checkpoint = excluded.checkpoint, metadata = excluded.metadata`;
