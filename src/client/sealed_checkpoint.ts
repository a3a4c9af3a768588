/** Where encrypted data belongs, and the seal of a checkpoint: what is said of it, encrypted once more. */
import { Buffer } from "node:buffer";
import { readSealedHeader, type SealedHeader, sealKey } from "../protocol/sealed.js";
import { EncryptionError } from "./encryption_error.js";
import { type EncryptionKey, type Keys, originOf, type ThreadOrigin } from "./encryption_keys.js";
import type { Place } from "./known_checkpoints.js";
import {
  fields,
  fromContent,
  open,
  readFields,
  type SealingKey,
  seal,
  toContent,
} from "./sealed_bytes.js";

/** What the chunks of a channel's values have in common. */
export const seriesOf = (checkpointNs: string, channel: string): Buffer =>
  fields(checkpointNs, channel);

/** The place of a channel's value. Of the thread it is by its key. */
export const valuePlace = (type: string, ns: string, channel: string, version: string): Buffer =>
  fields("value", type, ns, channel, version);

/** What a write is known by. */
export interface WritePlace {
  taskId: string;
  taskPath: string;
  idx: number;
  channel: string;
}

/**
 * The place of a task's write. Of those to special channels, which are replaced, the row keeps the path
 * that it had first.
 */
export const writePlace = (
  type: string,
  ns: string,
  checkpointId: string,
  { taskId, taskPath, idx, channel }: WritePlace,
): Buffer =>
  fields("write", type, ns, checkpointId, taskId, idx < 0 ? "" : taskPath, String(idx), channel);

/** What a seal says of a checkpoint, beyond its place. */
export interface Said {
  origin: ThreadOrigin;
  parentCheckpointId: string;
  /** The channels that have a value outside the JSON. */
  valued: readonly string[];
  /** With the values that Python keeps in it. */
  checkpointJson: string;
  metadataJson: string;
}

const threadIdBytes = 16;

/**
 * The checkpoint's JSON with its seal. The seal holds the JSON and the metadata once more: what jsonb
 * gives back is another text, so that there is nothing to compare by.
 */
export function withSeal(key: SealingKey, place: Place, said: Said): string {
  const { origin, parentCheckpointId, valued, checkpointJson, metadataJson } = said;
  const all = fields(
    origin.name,
    parentCheckpointId,
    JSON.stringify(valued),
    checkpointJson,
    metadataJson,
  );
  const text = Buffer.concat([
    origin.id,
    seal(key, sealPlace(place, origin.id), toContent("", all)),
  ]);
  const comma = checkpointJson.length > 2 ? "," : "";
  return `${checkpointJson.slice(0, -1)}${comma}"${sealKey}":"${text.toString("base64")}"}`;
}

/** A seal that was not looked into yet. */
export interface ClosedSeal {
  bytes: Buffer;
  header: SealedHeader;
}

/** Undefined if that is none. */
export function toClosedSeal(text: string): ClosedSeal | undefined {
  const bytes = Buffer.from(text, "base64");
  const header = readSealedHeader(bytes.subarray(threadIdBytes));
  return header && { bytes, header };
}

/** What the seal says. Throws if it is not that of a checkpoint of this place. */
export function openSeal(keys: Keys, key: EncryptionKey, place: Place, closed: ClosedSeal): Said {
  const id = closed.bytes.subarray(0, threadIdBytes);
  const sealed = closed.bytes.subarray(threadIdBytes);
  const threadKey = keys.ofThread(key, id);
  const content = open(threadKey, sealPlace(place, id), undefined, sealed, closed.header);
  const [name, parent, valued, checkpointJson, metadataJson] = readFields(
    fromContent(content).data,
    5,
  ).map((field) => field.toString("utf8")) as [string, string, string, string, string];
  const origin = originOf(name);
  if (!origin.id.equals(id)) throw new EncryptionError("NOT_AUTHENTIC", "of another thread");
  return {
    origin,
    parentCheckpointId: parent,
    valued: JSON.parse(valued),
    checkpointJson,
    metadataJson,
  };
}

const sealPlace = ({ checkpointNs, checkpointId }: Place, threadId: Buffer): Buffer =>
  fields("checkpoint", threadId, checkpointNs, checkpointId);
