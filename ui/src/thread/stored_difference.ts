/** What differs between two large values, told by their bytes: nothing is decoded for it. */
import { type StoredParts, type StoredValue, splitValue, textOfValue } from "checkpointd/client";

export type StoredDifference =
  | { kind: "same" }
  /** Lists that begin with the same items. */
  | { kind: "list"; same: number; before: StoredParts; after: StoredParts }
  /** Objects: the keys whose values differ, and those values. */
  | { kind: "object"; same: number; changed: ChangedPart[] }
  /** Texts, the same up to a byte of theirs; `isLonger`: the second only goes on. */
  | { kind: "text"; same: number; isLonger: boolean }
  | { kind: "bytes"; same: number };

export interface ChangedPart {
  key: string;
  before?: StoredValue;
  after?: StoredValue;
}

/** An object of more keys is compared by its bytes. */
const mostKeys = 10_000;
const bytesAtOnce = 4 * 1024 * 1024;

/** Compares them, with yields where a page may pause. */
export function* compareStored(
  before: StoredValue,
  after: StoredValue,
): Generator<void, StoredDifference> {
  const same = yield* sameBytes(before.data, after.data);
  const isSameType = before.type === after.type;
  if (isSameType && same === before.data.length && same === after.data.length) {
    return { kind: "same" };
  }
  if (!isSameType) return { kind: "bytes", same };
  const [oldText, newText] = [textOfValue(before, 0, 0), textOfValue(after, 0, 0)];
  if (oldText && newText) {
    const [from, to] = [contentOf(before, oldText.bytes), contentOf(after, newText.bytes)];
    const sameText = yield* sameBytes(from, to);
    const isLonger = sameText === from.length;
    return {
      kind: "text",
      same: sameText - (isLonger ? 0 : inCharacter(from, sameText)),
      isLonger,
    };
  }
  const [inOld, inNew] = [yield* splitValue(before), yield* splitValue(after)];
  if (inOld?.isList && inNew?.isList) {
    let items = 0;
    while (items < Math.min(inOld.size, inNew.size)) {
      if (!(yield* isSame(inOld.value(items), inNew.value(items)))) break;
      items++;
      if (items % 1_000 === 0) yield;
    }
    return { kind: "list", same: items, before: inOld, after: inNew };
  }
  const isObject = inOld && inNew && !inOld.isList && !inNew.isList;
  if (!isObject || Math.max(inOld.size, inNew.size) > mostKeys) return { kind: "bytes", same };
  return yield* compareObjects(inOld, inNew);
}

function* compareObjects(
  before: StoredParts,
  after: StoredParts,
): Generator<void, StoredDifference> {
  const old = new Map(places(before).map((i) => [before.key(i), before.value(i)]));
  yield;
  const now = new Map(places(after).map((i) => [after.key(i), after.value(i)]));
  const changed: ChangedPart[] = [];
  let same = 0;
  for (const key of new Set([...old.keys(), ...now.keys()])) {
    const [was, is] = [old.get(key), now.get(key)];
    if (was && is && (yield* isSame(was, is))) same++;
    else changed.push({ key, ...(was ? { before: was } : {}), ...(is ? { after: is } : {}) });
  }
  return { kind: "object", same, changed };
}

const places = ({ size }: StoredParts) => Array.from({ length: size }, (_, i) => i);

function* isSame(a: StoredValue, b: StoredValue): Generator<void, boolean> {
  if (a.data.length !== b.data.length) return false;
  return (yield* sameBytes(a.data, b.data)) === a.data.length;
}

/** How many bytes both begin with. */
function* sameBytes(a: Uint8Array, b: Uint8Array): Generator<void, number> {
  const shorter = Math.min(a.length, b.length);
  let at = 0;
  for (let end = 0; end < shorter; ) {
    end = Math.min(end + bytesAtOnce, shorter);
    while (at < end && a[at] === b[at]) at++;
    if (at < end) break;
    if (end < shorter) yield;
  }
  return at;
}

/** The bytes of a text without what marks it as one: JSON has a quote after it too. */
function contentOf({ type, data }: StoredValue, bytes: number): Uint8Array {
  const end = data.length - (type === "json" ? 1 : 0);
  return data.subarray(end - bytes, end);
}

/** How many bytes before that place belong to the character there. */
function inCharacter(data: Uint8Array, at: number): number {
  let back = 0;
  while (((data[at - back] ?? 0) & 0xc0) === 0x80) back++;
  return back;
}
