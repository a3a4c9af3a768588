/**
 * Keys that are longer than an index of Postgres takes.
 *
 * What of a key can be compressed Postgres compresses before it measures it, and most long names
 * repeat themselves (`join:research_1+research_2+…`, a namespace of many levels). So how long a key
 * may be is not known before it is stored: Postgres is asked, and here is told what it said.
 */
import { Buffer } from "node:buffer";
import { type CheckpointdError, invalidArgument } from "../errors.js";
import type { Column, Table } from "./tables.js";

/** A key, or an indexed value, of a row to be stored. */
export interface Key {
  /** Of its texts, the request's field and what it holds. */
  texts: readonly { field: string; column: string; text: string }[];
  /** Bytes of all texts together that Postgres takes whatever they are. */
  mostBytes: number;
}

/** A page of 8 KB holds at least three tuples of a B-tree; this is the most for one. */
const mostTupleBytes = 2704;
const tupleHeaderBytes = 8;
/** The length before a text, and what aligns it. */
const lengthBytes = 4;
const paddingBytes = 3;
const integerBytes = 4;

/** Bytes of text that always fit into a key of so many texts and integers. */
export function mostKeyBytes(texts: number, integers = 0): number {
  // The first begins aligned.
  const ofTexts = texts * (lengthBytes + paddingBytes) - paddingBytes;
  return mostTupleBytes - tupleHeaderBytes - ofTexts - integers * (integerBytes + paddingBytes);
}

/** The primary keys of the rows that a request stores in a table. */
export function keysOf<Request, Part>(
  table: Table<Request, Part>,
  request: Request,
  parts: readonly Part[],
): Key[] {
  const ofRequest = table.ofRequest.filter(isKey);
  const ofPart = table.ofPart.filter(isKey);
  const all: readonly Column<never>[] = [...ofRequest, ...ofPart];
  const integers = all.filter(({ type }) => type === "integer").length;
  const mostBytes = mostKeyBytes(all.length - integers, integers);
  const texts = ofRequest.map((column) => toText("", column, request));
  const textsOfPart = ofPart.filter(({ type }) => type === "text");
  if (textsOfPart.length === 0) return [{ texts, mostBytes }];
  return parts.map((part, i) => ({
    texts: [
      ...texts,
      ...textsOfPart.map((column) => toText(`${table.partsField}[${i}].`, column, part)),
    ],
    mostBytes,
  }));
}

const isKey = (column: Column<never>) => column.isKey === true;

const toText = <Of>(path: string, { name, of }: Column<Of>, holder: Of) => ({
  field: `${path}${name}`,
  column: name,
  text: String(of(holder, 0)),
});

/**
 * Waits for a statement that stores rows with these keys. If Postgres cannot index one, throws
 * INVALID_ARGUMENT with the field that takes the most of it. `keys` is called only then.
 */
export async function explainKeys<T>(keys: () => readonly Key[], result: Promise<T>): Promise<T> {
  try {
    return await result;
  } catch (error) {
    // program_limit_exceeded, which it also says of other things.
    if ((error as { code?: string }).code !== "54000") throw error;
    const [worst] = keys()
      .map((key) => ({ ...key, over: bytesOf(key) - key.mostBytes }))
      .sort((a, b) => b.over - a.over);
    if (worst === undefined || worst.over <= 0) throw error;
    throw tooLong(worst);
  }
}

const bytesOf = ({ texts }: Key) =>
  texts.reduce((bytes, { text }) => bytes + Buffer.byteLength(text), 0);

function tooLong(key: Key): CheckpointdError {
  const sizes = key.texts.map(({ field, column, text }) => ({
    field,
    column,
    bytes: Buffer.byteLength(text),
  }));
  const largest = sizes.reduce((a, b) => (b.bytes > a.bytes ? b : a));
  const list = sizes.map(({ column, bytes }) => `${column} ${bytes}`).join(", ");
  const remedy = remedies[largest.column] ?? "a shorter one";
  const message =
    `is too long for a key of Postgres, which has ${bytesOf(key)} bytes with it (${list}): ` +
    `${key.mostBytes} always fit, more only of what can be compressed; use ${remedy}`;
  return invalidArgument(largest.field, "TOO_LONG", message, key.mostBytes);
}

const remedies: Record<string, string> = {
  thread_id: "a shorter thread id",
  checkpoint_ns: "shorter node names, or subgraphs that are nested less deeply",
  channel: "shorter node names, or a join of fewer nodes",
  run_id: "a shorter run id",
};
