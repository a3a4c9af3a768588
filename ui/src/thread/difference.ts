/** What changed from one value to the next. */
import type { Decoded } from "checkpointd/client";
import type { State } from "./tuples.js";

/** One place that differs. */
export interface Change {
  path: string[];
  before?: Decoded;
  after?: Decoded;
}

/** More places than anybody reads. */
const most = 200;

/** A channel that differs, and what was in it and is. */
export interface ChangedChannel {
  channel: string;
  before: Decoded | undefined;
  after: Decoded | undefined;
  /** How many bytes it has, where they were not read. */
  largeBytes: number | undefined;
}

/**
 * The channels that differ by their versions. One that holds nothing, before and after, is a trigger that
 * was pulled, and none of them.
 */
export function changedChannels(before: State | undefined, after: State): ChangedChannel[] {
  const names = new Set([...Object.keys(before?.versions ?? {}), ...Object.keys(after.versions)]);
  const large = new Map(
    [...(before?.tuple.omitted ?? []), ...after.tuple.omitted]
      .filter(({ taskId }) => taskId === "")
      .map(({ channel, bytes }) => [channel, bytes]),
  );
  return [...names]
    .filter((name) => before?.versions[name] !== after.versions[name])
    .map((channel) => ({
      channel,
      before: before?.values.get(channel),
      after: after.values.get(channel),
      largeBytes: large.get(channel),
    }))
    .filter(({ before, after, largeBytes }) => before || after || largeBytes !== undefined)
    .sort((a, b) => (a.channel < b.channel ? -1 : 1));
}

/** The places that differ, outermost first; those of lists by position. */
export function changesOf(before: Decoded | undefined, after: Decoded | undefined): Change[] {
  const changes: Change[] = [];
  const compare = (path: string[], old: Decoded | undefined, now: Decoded | undefined): void => {
    if (changes.length >= most || isSame(old, now)) return;
    const inOld = old && partsOf(old);
    const inNow = now && partsOf(now);
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
export function partsOf(
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
export function isSame(a: Decoded | undefined, b: Decoded | undefined): boolean {
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
  const inA = partsOf(a);
  const inB = partsOf(b);
  if (!inA || !inB) return inA === inB;
  if (inA.name !== inB.name || inA.parts.size !== inB.parts.size) return false;
  for (const [key, part] of inA.parts) if (!isSame(part, inB.parts.get(key))) return false;
  return true;
}

const bytesAsText = (_: string, value: unknown) =>
  value instanceof Uint8Array ? value.join() : value;

function isSameBytes(a: Uint8Array, b: Uint8Array): boolean {
  return a.length === b.length && a.every((byte, i) => byte === b[i]);
}

/** Of two texts what both begin and end with, in whole words, and what is between. */
export function cutText(before: string, after: string) {
  let start = 0;
  const shorter = Math.min(before.length, after.length);
  while (start < shorter && before[start] === after[start]) start++;
  let end = 0;
  while (end < shorter - start && before.at(-1 - end) === after.at(-1 - end)) end++;
  // A number of which one digit changed is another number.
  const isInWord = (text: string, at: number) =>
    at > 0 && at < text.length && /^[\p{L}\p{N}_.]{2}$/u.test(text.slice(at - 1, at + 1));
  while (isInWord(before, start) || isInWord(after, start)) start--;
  while (
    end > 0 &&
    (isInWord(before, before.length - end) || isInWord(after, after.length - end))
  ) {
    end--;
  }
  return {
    start: before.slice(0, start),
    removed: before.slice(start, before.length - end),
    added: after.slice(start, after.length - end),
    end: before.slice(before.length - end),
  };
}
