/**
 * Checks of what a caller hands in. TypeScript makes most of them; JavaScript has none, and what a
 * misspelled or mistyped option would do there is to be ignored: a `dryrun` that deletes.
 */
import { setMaxListeners } from "node:events";
import { didYouMean } from "../protocol/nearest.js";

/**
 * Throws a TypeError with a suggestion if `given` has an option that is not among `known`, or is no
 * object. `what` takes the options.
 */
export function checkOptions(what: string, given: object, known: Record<string, true>): void {
  if (typeof given !== "object" || given === null) {
    throw new TypeError(`the options of ${what} must be an object, not ${kindOf(given)}`);
  }
  const names = Object.keys(known);
  for (const name of Object.keys(given)) {
    if (Object.hasOwn(known, name)) continue;
    const meant = didYouMean(name, names, { otherwise: ` It has ${names.join(", ")}.` });
    throw new TypeError(`${what} has no option "${name}".${meant}`);
  }
}

/** Throws a TypeError naming the option unless it is a whole number from `least` that fits 31 bits. */
export function checkInteger(name: string, value: number, least: number): number {
  if (Number.isInteger(value) && value >= least && value < 2 ** 31) return value;
  throw new TypeError(
    `${name} must be a whole number from ${least} to 2147483647, not ${numberless(value)}`,
  );
}

/**
 * The limit of a list, undefined for all of it: without one, and above what the wire has room for,
 * which is more than any list has. Throws a TypeError unless it is a whole number from 0.
 */
export function checkLimit(limit: number | null | undefined, name = "limit"): number | undefined {
  if (limit === undefined || limit === null) return undefined;
  if (!Number.isInteger(limit) || limit < 0) {
    throw new TypeError(`${name} must be a whole number from 0, not ${numberless(limit)}`);
  }
  return limit < 2 ** 31 ? limit : undefined;
}

/** Throws a TypeError unless it is a number of milliseconds from 0, or absent. */
export function checkMs(name: string, value: number | undefined): number | undefined {
  if (value === undefined || (Number.isFinite(value) && value >= 0)) return value;
  throw new TypeError(`${name} must be a number of milliseconds from 0, not ${numberless(value)}`);
}

/** Throws a TypeError unless it is true, false or absent, which is false. */
export function checkFlag(name: string, value: boolean | undefined): boolean {
  if (value === undefined || typeof value === "boolean") return value ?? false;
  throw new TypeError(`${name} must be true or false, not ${kindOf(value)}`);
}

/** Throws a TypeError unless it is a Date that is one, or absent. */
export function checkDate(name: string, value: Date | undefined): Date | undefined {
  if (value === undefined) return undefined;
  if (value instanceof Date && !Number.isNaN(value.getTime())) return value;
  const given = value instanceof Date ? "an invalid one" : kindOf(value);
  throw new TypeError(`${name} must be a Date, not ${given}; new Date(…) makes one`);
}

/** Throws a TypeError unless it is an array: text would be taken letter by letter. */
export function checkArray<Item>(name: string, value: readonly Item[]): readonly Item[] {
  if (Array.isArray(value)) return value;
  throw new TypeError(`${name} must be an array, not ${kindOf(value)}; for one write [${name}]`);
}

/** A signal that any number of calls may listen to. Throws a TypeError unless it is one, or absent. */
export function checkSignal(
  name: string,
  signal: AbortSignal | undefined,
): AbortSignal | undefined {
  if (signal === undefined || signal === null) return undefined;
  if (typeof signal !== "object" || typeof signal.addEventListener !== "function") {
    throw new TypeError(`${name} must be an AbortSignal, not ${kindOf(signal)}`);
  }
  // Node warns of the eleventh listener, and eleven calls under one signal are no leak. As Node's
  // own fetch does.
  if (signal instanceof EventTarget) setMaxListeners(0, signal);
  return signal;
}

/** Throws what the signal aborted with, if it did. */
export function throwIfAborted(signal: AbortSignal | undefined): void {
  if (!signal?.aborted) return;
  const { reason } = signal;
  // Whoever catches it looks for a message; LangGraph sets a property of it.
  throw reason instanceof Error ? reason : new Error(`the call was aborted: ${String(reason)}`);
}

/**
 * The value as JSON. Throws a TypeError naming `field` and the key where JSON has no room for it.
 */
export function toJson(field: string, value: unknown): string {
  try {
    return JSON.stringify(value);
  } catch (error) {
    throw unwritable(field, value, error);
  }
}

/**
 * What to tell of a value that is no JSON and so cannot be what it is to be: of a BigInt in it, under
 * which key.
 */
export function unwritable(
  field: string,
  value: unknown,
  cause: unknown,
  what = "written as JSON",
): TypeError {
  const path = pathToBigInt(value);
  const why =
    path === undefined
      ? ""
      : `: there is a BigInt${path && ` under "${path}"`}; give it as a number or as text, String(value)`;
  return new TypeError(`${field} cannot be ${what}${why}`, { cause });
}

/** Undefined if there is none, or none that can be found. */
function pathToBigInt(value: unknown): string | undefined {
  const left: [unknown, string][] = [[value, ""]];
  const seen = new Set<unknown>();
  try {
    for (let next = left.pop(); next; next = left.pop()) {
      const [inner, path] = next;
      if (typeof inner === "bigint") return path;
      if (typeof inner !== "object" || inner === null || seen.has(inner)) continue;
      seen.add(inner);
      for (const [key, each] of Object.entries(inner))
        left.push([each, path ? `${path}.${key}` : key]);
    }
  } catch {
    // A getter that throws.
  }
  return undefined;
}

/** What stands where a number should, and how to make it one. */
function numberless(value: unknown): string {
  const isNumeric = typeof value === "string" && value.trim() !== "" && Number.isFinite(+value);
  return kindOf(value) + (isNumeric ? ", of which Number(…) makes one" : "");
}

/** What something is that should be something else, for an error. Nothing of what an object holds. */
export function kindOf(value: unknown): string {
  if (value === null || value === undefined) return String(value);
  if (typeof value === "number") return String(value);
  if (typeof value === "string")
    return value.length <= 40 ? `the text ${JSON.stringify(value)}` : "a text";
  if (Array.isArray(value)) return "an array";
  if (typeof value !== "object") return `a ${typeof value}`;
  const name = Object.getPrototypeOf(value)?.constructor?.name;
  return name && name !== "Object" ? `an object of ${name}` : "an object";
}
