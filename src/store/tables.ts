/**
 * What a put stores, column by column: every statement of put.ts, put_extending.ts and put_writes.ts
 * is made from these lists. To store another column, add a migration and a line here.
 */
import type { ChannelBlob } from "../../gen/checkpointd/v1/checkpoint_pb.js";
import type {
  PutRequest,
  PutWritesRequest,
  Write,
} from "../../gen/checkpointd/v1/checkpoint_service_pb.js";

/** A column, and what is stored in it of a request or of a part of one. */
export interface Column<Of> {
  name: string;
  /** As Postgres names it. JSON travels as text and is parsed there. */
  type: "text" | "integer" | "jsonb";
  /** `index` is the place of the row among those that a statement writes. */
  of: (of: Of, index: number) => string | number | null;
  /** Whether it belongs to the primary key. */
  isKey?: true;
  /** Whether a row that is stored already takes the new value when a put replaces it. */
  isReplaced?: true;
}

/** One of LangGraph's tables, as far as puts write it; its other columns have defaults. */
export interface Table<Request, Part> {
  name: string;
  /** The same in all rows of a request. */
  ofRequest: readonly Column<Request>[];
  /** Of each row its own. */
  ofPart: readonly Column<Part>[];
  /** The request's field that holds the parts. */
  partsField?: string;
  /** What is stored in the column `blob`, where the table has one; undefined is stored as null. */
  blobOf?: (part: Part) => Uint8Array | undefined;
}

// The tables share these objects: a parameter is bound once for all of them (see insert.ts).
const threadId: Column<{ threadId: string }> = {
  name: "thread_id",
  type: "text",
  of: (request) => request.threadId,
  isKey: true,
};
const checkpointNs: Column<{ checkpointNs: string }> = {
  name: "checkpoint_ns",
  type: "text",
  of: (request) => request.checkpointNs,
  isKey: true,
};
const checkpointId: Column<{ checkpointId: string }> = {
  name: "checkpoint_id",
  type: "text",
  of: (request) => request.checkpointId,
  isKey: true,
};

/** One row a put. What is new of a checkpoint that is stored is stored, but not another parent. */
export const checkpoints: Table<PutRequest, unknown> = {
  name: "checkpoints",
  ofRequest: [
    threadId,
    checkpointNs,
    checkpointId,
    { name: "parent_checkpoint_id", type: "text", of: (put) => put.parentCheckpointId || null },
    { name: "checkpoint", type: "jsonb", of: (put) => put.checkpointJson, isReplaced: true },
    { name: "metadata", type: "jsonb", of: (put) => put.metadataJson || "{}", isReplaced: true },
  ],
  ofPart: [],
};

/** One row for each channel that a put brings in a new version. */
export const checkpointBlobs: Table<PutRequest, ChannelBlob> = {
  name: "checkpoint_blobs",
  ofRequest: [threadId, checkpointNs],
  ofPart: [
    { name: "channel", type: "text", of: (blob) => blob.channel, isKey: true },
    { name: "version", type: "text", of: (blob) => blob.version, isKey: true },
    { name: "type", type: "text", of: (blob) => blob.value?.type ?? "empty" },
  ],
  partsField: "blobs",
  blobOf: (blob) => blob.value?.data,
};

/** One row for each write of a task. LangGraph's savers keep the task path where they replace. */
export const checkpointWrites: Table<PutWritesRequest, Write> = {
  name: "checkpoint_writes",
  ofRequest: [
    threadId,
    checkpointNs,
    checkpointId,
    { name: "task_id", type: "text", of: (request) => request.taskId, isKey: true },
    { name: "task_path", type: "text", of: (request) => request.taskPath },
  ],
  ofPart: [
    { name: "idx", type: "integer", of: (write) => write.idx, isKey: true },
    { name: "channel", type: "text", of: (write) => write.channel, isReplaced: true },
    { name: "type", type: "text", of: (write) => write.value?.type ?? null, isReplaced: true },
  ],
  partsField: "writes",
  blobOf: (write) => write.value?.data,
};

/** The names of the columns that puts write, in the order of the lists. */
export function columnNames({ ofRequest, ofPart, blobOf }: Table<never, never>): string[] {
  const names = [...ofRequest, ...ofPart].map(({ name }) => name);
  return blobOf ? [...names, "blob"] : names;
}
