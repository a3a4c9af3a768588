/** What the ways of putting have in common: the order in which they write, and what they refuse. */
import type { ChannelBlob } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import type { PutRequest } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import type { Result } from "./connection.js";
import type { Run } from "./db.js";
import type { Sent } from "./insert.js";
import { explainJson } from "./json.js";
import { explainKeys, type Key, keysOf, mostKeyBytes } from "./keys.js";
import { checkpointBlobs, checkpoints } from "./tables.js";

/** About how many bytes a put brings: those of its values and its JSON. */
export function sizeOfPut({ checkpointJson, metadataJson, blobs }: PutRequest): number {
  let bytes = checkpointJson.length + metadataJson.length;
  for (const { value } of blobs) bytes += value?.data.length ?? 0;
  return bytes;
}

/** A channel's version, and the put that brings it. */
export type NewBlob = Sent<PutRequest, ChannelBlob>;

/** Compares blobs of one checkpoint by the order in which every statement writes them. */
export function compareChannels(a: ChannelBlob, b: ChannelBlob): number {
  return a.channel < b.channel ? -1 : 1;
}

/** Compares checkpoints by the order in which every statement writes them. */
export function compareKeys(a: PutRequest, b: PutRequest): number {
  if (a.threadId !== b.threadId) return a.threadId < b.threadId ? -1 : 1;
  if (a.checkpointNs !== b.checkpointNs) return a.checkpointNs < b.checkpointNs ? -1 : 1;
  return a.checkpointId < b.checkpointId ? -1 : 1;
}

/**
 * Waits for the statement of one put. Throws INVALID_ARGUMENT with the field's name for JSON that
 * Postgres refuses and for keys that it cannot index.
 */
export function explainPut(run: Run, put: PutRequest, result: Promise<Result>): Promise<Result> {
  const json = { checkpoint_json: put.checkpointJson, metadata_json: put.metadataJson };
  return explainKeys(() => putKeys(put), explainJson(run, json, result));
}

const putKeys = (put: PutRequest): Key[] => [
  ...keysOf(checkpoints, put, []),
  ...keysOf(checkpointBlobs, put, put.blobs),
  ...runKey(put),
];

/** What checkpointd_runs_idx has of the metadata. */
function runKey({ metadataJson }: PutRequest): Key[] {
  const { run_id: runId } = JSON.parse(metadataJson || "{}") as { run_id?: unknown };
  if (runId === undefined) return [];
  // JavaScript cannot tell how a number prints, so of anything else the text is a limit from above.
  const text = typeof runId === "string" ? runId : metadataJson;
  return [
    {
      texts: [{ field: "metadata_json", column: "run_id", text }],
      mostBytes: mostKeyBytes(1),
    },
  ];
}
