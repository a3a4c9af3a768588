/** What changed from one decoded value to the next. */
import type { Decoded } from "./decode_value.js";

/** One place that differs. */
export interface ValueChange {
  path: string[];
  before?: Decoded;
  after?: Decoded;
}

/** More places than anybody reads. */
const most = 200;

/** The places that differ, at most 200, outermost first; those of lists by position. */
export function changesOfValue(
  before: Decoded | undefined,
  after: Decoded | undefined,
): ValueChange[] {
  const changes: ValueChange[] = [];
  const compare = (path: string[], old: Decoded | undefined, now: Decoded | undefined): void => {
    if (changes.length >= most || isSameValue(old, now)) return;
    const inOld = old && partsOfValue(old);
    const inNow = now && partsOfValue(now);
    if (!inOld || !inNow || inOld.name !== inNow.name) {
      changes.push({
        path,
        ...(old === undefined ? {} : { before: old }),
        ...(now === undefined ? {} : { after: now }),
      });
      return;
    }
    for (const key of new Set([...inOld.parts.keys(), ...inNow.parts.keys()])) {
      compare([...path, key], inOld.parts.get(key), inNow.parts.get(key));
    }
  };
  compare([], before, after);
  return changes;
}

/** What a value is made of, if it is of parts. */
export function partsOfValue(
  value: Decoded,
): { name: string; isList: boolean; parts: Map<string, Decoded> } | undefined {
  const list = (name: string, items: readonly Decoded[]) => ({
    name: `list ${name}`,
    isList: true,
    parts: new Map(items.map((item, i) => [String(i), item])),
  });
  switch (value.kind) {
    case "json": {
      const { value: json } = value;
      if (Array.isArray(json)) {
        return list("", json.map((item) => ({ kind: "json", value: item })) satisfies Decoded[]);
      }
      if (typeof json !== "object" || json === null) return undefined;
      const fields = Object.entries(json).map(([key, inner]): [string, Decoded] => [
        key,
        { kind: "json", value: inner },
      ]);
      return { name: "object ", isList: false, parts: new Map(fields) };
    }
    case "list":
      return list(value.name ?? "", value.items);
    case "object":
      return { name: `object ${value.name ?? ""}`, isList: false, parts: new Map(value.fields) };
    default:
      return undefined;
  }
}

/** Whether two values are the same, whatever they are. */
export function isSameValue(a: Decoded | undefined, b: Decoded | undefined): boolean {
  if (a === b) return true;
  if (a === undefined || b === undefined || a.kind !== b.kind) return false;
  if (a.kind === "bytes" || a.kind === "unknown") {
    return isSameBytes(a.bytes, (b as typeof a).bytes);
  }
  if (a.kind === "json" && (typeof a.value !== "object" || a.value === null)) {
    return a.value === (b as typeof a).value;
  }
  if (a.kind === "message") {
    const other = b as typeof a;
    return (
      a.role === other.role &&
      a.text === other.text &&
      a.id === other.id &&
      JSON.stringify([a.toolCalls, a.fields], bytesAsText) ===
        JSON.stringify([other.toolCalls, other.fields], bytesAsText)
    );
  }
  const inA = partsOfValue(a);
  const inB = partsOfValue(b);
  if (!inA || !inB) return inA === inB;
  if (inA.name !== inB.name || inA.parts.size !== inB.parts.size) return false;
  for (const [key, part] of inA.parts) if (!isSameValue(part, inB.parts.get(key))) return false;
  return true;
}

/**
 * The items of a set that are not among others. Found by their text, not each with each, which would take
 * minutes where a set has thousands.
 */
export function itemsWithout(items: readonly Decoded[], others: readonly Decoded[]): Decoded[] {
  const asText = (value: Decoded) => JSON.stringify(value, bytesAsText);
  const known = new Set(others.map(asText));
  return items.filter((item) => !known.has(asText(item)));
}

const bytesAsText = (_: string, value: unknown) =>
  value instanceof Uint8Array ? value.join() : value;

function isSameBytes(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, i) => byte === b[i]);
}
