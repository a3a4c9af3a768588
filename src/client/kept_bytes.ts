/** Which bytes of a value are those of the one before it: the rule of PutExtendingRequest. */
import { Buffer } from "node:buffer";

/** The value is its first `headLength` bytes, `length` of the stored one from `offset` on, and the rest. */
export interface KeptBytes {
  offset: number;
  headLength: number;
  length: number;
}

/** The bytes that are looked for: more than what stands between the contents of two messages, which is everywhere. */
const anchorBytes = 512;
/**
 * How many of them the search looks for, and how many such places it compares with the rest: where
 * few different bytes repeat, a search for all takes 0.3 s of a value of 4 MB.
 */
const searchedBytes = 32;
const mostComparisons = 4096;
/** How far the length before a msgpack array moves what follows: 1, 3 or 5 bytes become as many. */
const headerMoves = [0, 2, 4, -2, -4];
/** Places that are tried. Text that repeats itself has the anchor in many. */
const mostPlaces = 8;

/**
 * The longest run of bytes that it finds in both, as it costs next to nothing: either of their
 * beginnings, or around the middle of the stored one, wherever that is in the value. A list in
 * msgpack has its length before it, so that one that grows changes at its beginning; a window of the
 * last messages, and JSON of which an early field changed, move as a whole.
 */
export function keptBytes(stored: Uint8Array, value: Uint8Array): KeptBytes {
  const a = toBuffer(stored);
  const b = toBuffer(value);
  const enough = a.length / 2;
  let kept = { offset: 0, headLength: 0, length: equalAfter(a, b, 0, 0) };
  if (kept.length >= enough) return kept;
  let places = 0;
  for (const [from, to] of anchorPlaces(a, b)) {
    const before = equalBefore(a, b, from, to);
    const length = before + equalAfter(a, b, from, to);
    if (length > kept.length) {
      kept = { offset: from - before, headLength: to - before, length };
    }
    if (length >= enough || ++places === mostPlaces) break;
  }
  return kept;
}

/** Where the anchor is in both, the likely places first. */
function* anchorPlaces(a: Buffer, b: Buffer): Generator<[number, number]> {
  const from = Math.floor(a.length / 2);
  const anchor = a.subarray(from, from + anchorBytes);
  const isAt = (to: number) => to >= 0 && isEqual(anchor, b, 0, to, anchor.length);
  const searched = anchor.subarray(0, searchedBytes);
  for (const moved of [...headerMoves, b.length - a.length]) {
    if (isAt(from + moved)) yield [from, from + moved];
  }
  let to = b.indexOf(searched);
  for (let n = 0; to >= 0 && n < mostComparisons; n++) {
    if (isAt(to)) yield [from, to];
    to = b.indexOf(searched, to + 1);
  }
}

/** How many bytes are equal from there on: found by halves, as a comparison is memcmp. */
function equalAfter(a: Buffer, b: Buffer, from: number, to: number): number {
  let equal = 0;
  let unknown = Math.min(a.length - from, b.length - to);
  while (unknown > 0) {
    const half = Math.ceil(unknown / 2);
    if (isEqual(a, b, from + equal, to + equal, half)) {
      equal += half;
      unknown -= half;
    } else {
      unknown = half - 1;
    }
  }
  return equal;
}

/** How many bytes are equal up to there, without it. */
function equalBefore(a: Buffer, b: Buffer, from: number, to: number): number {
  let equal = 0;
  let unknown = Math.min(from, to);
  while (unknown > 0) {
    const half = Math.ceil(unknown / 2);
    if (isEqual(a, b, from - equal - half, to - equal - half, half)) {
      equal += half;
      unknown -= half;
    } else {
      unknown = half - 1;
    }
  }
  return equal;
}

function isEqual(a: Buffer, b: Buffer, from: number, to: number, length: number): boolean {
  return to + length <= b.length && a.compare(b, to, to + length, from, from + length) === 0;
}

function toBuffer({ buffer, byteOffset, length }: Uint8Array): Buffer {
  return Buffer.from(buffer, byteOffset, length);
}
