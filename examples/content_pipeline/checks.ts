/** What the demo says and checks. A check that fails throws, with what was expected and found. */

import { deepStrictEqual } from "node:assert";

let held = 0;

/** Prints one line of the story. */
export function say(line = ""): void {
  console.log(line);
}

/** Throws unless `found` equals `expected` in value and type, however deep; else prints `what`. */
export function expectEqual(what: string, found: unknown, expected: unknown): void {
  try {
    deepStrictEqual(found, expected);
  } catch (cause) {
    const difference = cause instanceof Error ? cause.message : String(cause);
    throw new Error(`“${what}” does not hold (+ found, - expected):\n${difference}`);
  }
  held += 1;
  say(`   ✓ ${what}`);
}

/** How many checks have held so far. */
export function countChecks(): number {
  return held;
}

/**
 * The value that LangGraph's JSON serde gives back for `value`: equal, except that each `Date` is
 * its ISO text. The one loss of its JSON, and the same with every saver.
 */
export function asStored(value: unknown): unknown {
  if (value instanceof Date) return value.toISOString();
  if (value instanceof Map) return new Map([...value].map(([k, v]) => [asStored(k), asStored(v)]));
  if (value instanceof Set) return new Set([...value].map(asStored));
  if (value instanceof Uint8Array) return value;
  if (Array.isArray(value)) return value.map(asStored);
  if (typeof value === "object" && value !== null) {
    return Object.fromEntries(Object.entries(value).map(([k, v]) => [k, asStored(v)]));
  }
  return value;
}
