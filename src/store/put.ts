import type { PutRequest } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import type { Db } from "./db.js";
import { explainJson } from "./json.js";
import { packBytes } from "./values.js";

/**
 * Stores a checkpoint and its new channel blobs in one statement, so all or nothing without
 * BEGIN and COMMIT. Blobs that are stored already are kept, as LangGraph's savers keep them;
 * a checkpoint that is stored already gets the new checkpoint and metadata.
 *
 * Relies on the primary keys of checkpoints and checkpoint_blobs.
 */
export async function put(db: Db, request: PutRequest, signal?: AbortSignal): Promise<void> {
  const { blobs } = request;
  const bytes = packBytes(blobs.map((blob) => blob.value?.data));
  await explainJson(
    { checkpoint_json: request.checkpointJson, metadata_json: request.metadataJson },
    db.run(
      statement(db.schema),
      [
        request.threadId,
        request.checkpointNs,
        request.checkpointId,
        request.parentCheckpointId || null,
        request.checkpointJson,
        request.metadataJson || "{}",
        blobs.map((blob) => blob.channel),
        blobs.map((blob) => blob.version),
        blobs.map((blob) => blob.value?.type ?? "empty"),
        bytes.offsets,
        bytes.lengths,
        bytes.packed,
      ],
      signal,
    ),
  );
}

const statement = (schema: string) => `
with new_blobs as (
  insert into ${schema}.checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
  select $1, $2, channel, version, type, substring($12::bytea from start for length)
  from unnest($7::text[], $8::text[], $9::text[], $10::int[], $11::int[])
    as b (channel, version, type, start, length)
  on conflict (thread_id, checkpoint_ns, channel, version) do nothing
)
insert into ${schema}.checkpoints
  (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
values ($1, $2, $3, $4, $5::text::jsonb, $6::text::jsonb)
on conflict (thread_id, checkpoint_ns, checkpoint_id)
do update set checkpoint = excluded.checkpoint, metadata = excluded.metadata`;
