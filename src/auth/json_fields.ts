/**
 * Reads what JSON holds. Whatever is wrong is told with the path to it, such as `keys[2].sha256`, and
 * never with the value, which may be a key that somebody has put into the wrong place.
 */
import { clean } from "../clean.js";
import { didYouMean } from "../protocol/nearest.js";
import { bytes } from "../settings/kinds.js";

/** What is wrong with a file: one sentence that begins with the path inside. */
export class FileRefusal extends Error {
  override readonly name = "FileRefusal";
}

/** @throws FileRefusal with the path and the sentence */
export function refuse(path: string, sentence: string): never {
  throw new FileRefusal(path === "" ? sentence : `${path}: ${sentence}`);
}

/** @throws FileRefusal for what is not JSON, without a word of it */
export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    // Node repeats in its message what stands there.
    const [, position] = /at position (\d+)/.exec((error as Error).message) ?? [];
    if (position === undefined) return refuse("", "it is not JSON.");
    const lines = text.slice(0, Number(position)).split("\n");
    const column = (lines.at(-1)?.length ?? 0) + 1;
    return refuse("", `it is not JSON: line ${lines.length}, column ${column}.`);
  }
}

/** An object with none but these fields. */
export function toObject<const Name extends string>(
  value: unknown,
  path: string,
  known: readonly Name[],
): Partial<Record<Name, unknown>> {
  const object = toMap(value, path);
  for (const name of Object.keys(object)) {
    if ((known as readonly string[]).includes(name)) continue;
    const hint = didYouMean(name, known, { otherwise: ` Known are ${known.join(", ")}.` });
    refuse(at(path, name), `there is no such field.${hint}`);
  }
  return object as Partial<Record<Name, unknown>>;
}

/** An object of any fields. */
export function toMap(value: unknown, path: string): Record<string, unknown> {
  if (typeof value === "object" && value !== null && !Array.isArray(value)) {
    return value as Record<string, unknown>;
  }
  return refuse(path, `${path === "" ? "it " : ""}must be an object: { … }.`);
}

/** A list; one that is not there is empty. */
export function toList<T>(
  value: unknown,
  path: string,
  toItem: (item: unknown, path: string) => T,
): T[] {
  if (value === undefined) return [];
  if (!Array.isArray(value)) return refuse(path, "must be a list: [ … ].");
  return value.map((item, i) => toItem(item, `${path}[${i}]`));
}

/** A list that holds something. */
export function toSome<T>(
  value: unknown,
  path: string,
  toItem: (item: unknown, path: string) => T,
): T[] {
  const list = toList(value, path, toItem);
  return list.length > 0 ? list : refuse(path, "must be there and hold at least one.");
}

/** Text of 1 to 1024 characters that are all seen. */
export function toText(value: unknown, path: string): string {
  if (typeof value !== "string" || value.length === 0 || value.length > 1024) {
    return refuse(path, "must be a text of 1 to 1024 characters.");
  }
  if (clean(value) !== value) {
    return refuse(path, "must not hold control characters or marks of writing direction.");
  }
  return value;
}

/** A whole number in these bounds; the fallback where there is none. */
export function toInteger<Fallback>(
  value: unknown,
  path: string,
  min: number,
  max: number,
  fallback: Fallback,
): number | Fallback {
  if (value === undefined) return fallback;
  if (typeof value === "number" && Number.isInteger(value) && value >= min && value <= max) {
    return value;
  }
  return refuse(path, `must be a whole number from ${min} to ${max}.`);
}

/** A number of bytes as such, or with a unit; undefined where none is given. */
export function toBytes(value: unknown, path: string): number | undefined {
  if (typeof value === "number" || value === undefined) {
    return toInteger(value, path, 1, Number.MAX_SAFE_INTEGER, undefined);
  }
  try {
    return bytes.parse(typeof value === "string" ? value : "");
  } catch {
    return refuse(path, `must be ${bytes.allowed}.`);
  }
}

/** The path of a field. */
export function at(path: string, name: string): string {
  const shown = /^[\w-]+$/.test(name) ? name : JSON.stringify(clean(name));
  return path === "" ? shown : `${path}.${shown}`;
}
