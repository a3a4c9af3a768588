/** Large stored values for people to look at in part: what they are made of, found without decoding it. */
import { decodeValue } from "./decode_value.js";
import { walkMsgpack } from "./msgpack.js";

/** A value as it is stored. */
export interface StoredValue {
  type: string;
  data: Uint8Array;
}

/** More parts than anybody reads; what comes after them is not told. */
const mostParts = 1_000_000;

/** Bytes that are looked at between two pauses. */
const bytesAtOnce = 1024 * 1024;

/** Where in a stored list or object its parts are. */
export class StoredParts {
  readonly #starts: number[] = [];
  /** Of an object's parts where their keys end; of a list's they are not. */
  readonly #keyEnds: number[] = [];
  readonly #ends: number[] = [];

  constructor(
    readonly stored: StoredValue,
    readonly isList: boolean,
  ) {}

  /** How many parts there are; the first million of more. */
  get size(): number {
    return this.#ends.length;
  }

  get isCut(): boolean {
    return this.size === mostParts;
  }

  /** The part's value, which is stored as any other; its bytes are a view of the whole. */
  value(i: number): StoredValue {
    const { type, data } = this.stored;
    const isJson = type === "json";
    const start = this.isList ? this.#starts[i] : (this.#keyEnds[i] ?? 0) + Number(isJson);
    return { type, data: data.subarray(start, this.#ends[i]) };
  }

  /** The part's name: its key, or its place in the list. Of a long key the beginning. */
  key(i: number): string {
    if (this.isList) return String(i);
    const { type, data } = this.stored;
    const key = { type, data: data.subarray(this.#starts[i], this.#keyEnds[i]) };
    const text = textOfValue(key, 0, 1_000)?.text;
    if (text !== undefined) return text;
    const decoded = decodeValue(key);
    return decoded.kind === "json" ? JSON.stringify(decoded.value) : `<${decoded.kind}>`;
  }

  /** For who finds them. */
  add(start: number, keyEnd: number, end: number): void {
    this.#starts.push(start);
    if (!this.isList) this.#keyEnds.push(keyEnd);
    this.#ends.push(end);
  }
}

/**
 * Finds the parts of a stored list or object, or of what an extension of msgpack holds, without decoding
 * them, a megabyte between two yields: whoever shows it may pause there. What it takes is the parts'
 * places alone, however large they are. undefined of what has no parts, is damaged, or is of a type that
 * nobody here can read.
 */
export function* splitValue(stored: StoredValue): Generator<void, StoredParts | undefined> {
  if (stored.type === "json") {
    const parts = yield* splitJson(stored);
    const kept = parts && snapshotOf(parts);
    return kept ? yield* splitJson(kept) : parts;
  }
  if (stored.type === "msgpack") return yield* splitMsgpack(stored);
  return undefined;
}

const [quote, comma, colon, backslash] = [0x22, 0x2c, 0x3a, 0x5c];
const [openList, closeList, openObject, closeObject] = [0x5b, 0x5d, 0x7b, 0x7d];
const isSpace = (byte: number | undefined) =>
  byte === 0x20 || byte === 0x0a || byte === 0x0d || byte === 0x09;

function* splitJson(stored: StoredValue): Generator<void, StoredParts | undefined> {
  const { data } = stored;
  let at = 0;
  while (isSpace(data[at])) at++;
  const head = data[at];
  if (head !== openList && head !== openObject) return undefined;
  const parts = new StoredParts(stored, head === openList);
  let [depth, start, keyEnd, isInText] = [1, ++at, -1, false];
  for (let pauseAt = bytesAtOnce; at < data.length && parts.size < mostParts; at++) {
    if (at >= pauseAt) {
      yield;
      pauseAt = at + bytesAtOnce;
    }
    if (isInText) {
      at = data.indexOf(quote, at);
      if (at < 0) return undefined;
      let escapes = 0;
      while (data[at - 1 - escapes] === backslash) escapes++;
      isInText = escapes % 2 === 1;
      continue;
    }
    const byte = data[at];
    if (byte === quote) isInText = true;
    else if (byte === openList || byte === openObject) depth++;
    else if (byte === closeList || byte === closeObject) depth--;
    else if (depth === 1 && byte === colon) keyEnd = at;
    if (depth > 1 || (depth === 1 && byte !== comma)) continue;
    if (parts.size > 0 || data.subarray(start, at).some((each) => !isSpace(each))) {
      if (!parts.isList && keyEnd < start) return undefined;
      parts.add(start, keyEnd, at);
    }
    if (depth === 0) return parts;
    start = at + 1;
  }
  return parts.isCut ? parts : undefined;
}

/** What a delta channel of JavaScript kept, of the record around it. */
function snapshotOf(parts: StoredParts): StoredValue | undefined {
  if (parts.isList || parts.size !== 3) return undefined;
  const at = (name: string) => [0, 1, 2].find((i) => parts.key(i) === name) ?? -1;
  const [lc, type, value] = [at("lc"), at("type"), at("value")];
  if (Math.min(lc, type, value) < 0) return undefined;
  const isOne = textOfValue(parts.value(type), 0, 100)?.text === "delta_snapshot";
  return isOne ? parts.value(value) : undefined;
}

function* splitMsgpack(stored: StoredValue): Generator<void, StoredParts | undefined> {
  try {
    const { type, data } = stored;
    const { kind, count, start, end } = walkMsgpack(data, 0);
    if (kind === "extension") return yield* splitMsgpack({ type, data: data.subarray(start, end) });
    if (kind !== "array" && kind !== "map") return undefined;
    const parts = new StoredParts(stored, kind === "array");
    let pauseAt = bytesAtOnce;
    let at = start;
    function* skip() {
      for (let left = 1; left > 0; left--) {
        const next = walkMsgpack(data, at);
        at = next.end;
        left += next.count;
        if (at < pauseAt) continue;
        yield;
        pauseAt = at + bytesAtOnce;
      }
    }
    for (let i = 0; i < (parts.isList ? count : count / 2) && parts.size < mostParts; i++) {
      const partStart = at;
      if (!parts.isList) yield* skip();
      const keyEnd = at;
      yield* skip();
      parts.add(partStart, keyEnd, at);
    }
    return parts;
  } catch {
    return undefined;
  }
}

/** A piece of a stored text. */
export interface TextPiece {
  text: string;
  /** Where the next one begins. */
  end: number;
  /** Bytes of the whole text as it is stored. */
  bytes: number;
}

/**
 * A piece of a stored text, at most so many bytes, from that byte on: no character is cut in two, and no
 * more is decoded. undefined of what is no text.
 */
export function textOfValue(
  stored: StoredValue,
  from: number,
  most: number,
): TextPiece | undefined {
  const range = rangeOfText(stored);
  if (!range) return undefined;
  const bytes = range.end - range.start;
  const all = stored.data.subarray(range.start, range.end);
  const end = Math.min(from + most, bytes);
  const isJson = stored.type === "json";
  // The longest thing that must stay whole is a pair of surrogates in JSON's escapes.
  for (let cut = 0; cut <= 12 && end - cut > from; cut++) {
    if (cut > 0 && end === bytes) break;
    const piece = all.subarray(from, end - cut);
    try {
      const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(piece);
      const decoded = isJson ? (JSON.parse(`"${text}"`) as string) : text;
      if (end < bytes && /[\ud800-\udbff]$/.test(decoded)) continue;
      return { text: decoded, end: end - cut, bytes };
    } catch {}
  }
  // Damaged, or `from` is no beginning of a character: as it is stored.
  return { text: new TextDecoder().decode(all.subarray(from, end)), end, bytes };
}

/** Where a text is in its stored value; undefined of what is no text. */
function rangeOfText({ type, data }: StoredValue): { start: number; end: number } | undefined {
  try {
    if (type === "msgpack") {
      const { kind, start, end } = walkMsgpack(data, 0);
      return kind === "text" ? { start, end } : undefined;
    }
  } catch {
    return undefined;
  }
  if (type !== "json") return undefined;
  let [start, end] = [0, data.length];
  while (isSpace(data[start])) start++;
  while (isSpace(data[end - 1])) end--;
  if (data[start] !== quote || data[end - 1] !== quote || end - start < 2) return undefined;
  return { start: start + 1, end: end - 1 };
}
