/** `{claim}` in a name, a tenant or the pattern of threads. */
import { clean } from "../clean.js";
import { refuse } from "./json_fields.js";

/** What a token says. */
export type Claims = Readonly<Record<string, unknown>>;

/** The longest name of a principal, in bytes: the longest owner of a lease. */
export const longestName = 256;

const template = /\{([^{}]+)\}/g;

/** Whether there is something to fill in. */
export function hasTemplate(text: string): boolean {
  return text.includes("{");
}

/**
 * A text with templates, as somebody writes it into the file. Between two claims there has to be a
 * "/", which no claim holds: in "{a}-{b}" the claims "x-y", "z" and "x", "y-z" would be the same.
 *
 * @throws FileRefusal
 */
export function checkTemplates(text: string, path: string): void {
  if (/[{}]/.test(text.replace(template, ""))) {
    refuse(path, "a template is the name of a claim in braces, such as {sub}.");
  }
  if (text.split("/").some((part) => [...part.matchAll(template)].length > 1)) {
    refuse(path, 'put a "/" between two templates: without it two subjects could be the same.');
  }
}

/** Whether two texts can be the same once their templates are filled in, of which no claim holds a "/". */
export function mayBeSame(a: string, b: string): boolean {
  const [ours, theirs] = [a.split("/"), b.split("/")];
  return ours.length === theirs.length && ours.every((part, i) => mayBeOne(part, theirs[i] ?? ""));
}

/** Of two parts, each with one template or none. A claim is not empty. */
function mayBeOne(a: string, b: string): boolean {
  if (!hasTemplate(b)) return hasTemplate(a) ? mayBeOne(b, a) : a === b;
  const [before = "", after = ""] = b.split(template).filter((_, i) => i !== 1);
  if (!hasTemplate(a)) {
    return a.length > before.length + after.length && a.startsWith(before) && a.endsWith(after);
  }
  const [ourBefore = "", ourAfter = ""] = a.split(template).filter((_, i) => i !== 1);
  return (
    (before.startsWith(ourBefore) || ourBefore.startsWith(before)) &&
    (after.endsWith(ourAfter) || ourAfter.endsWith(after))
  );
}

/** The text with its templates filled in; undefined where a claim is missing or no part of a name. */
export function fill(text: string, claims: Claims): string | undefined {
  let isWhole = true;
  const filled = text.replace(template, (_, name: string) => {
    const value = Object.hasOwn(claims, name) ? claims[name] : undefined;
    if (isNamePart(value)) return value;
    isWhole = false;
    return "";
  });
  return isWhole ? filled : undefined;
}

/**
 * Whether this may be a part of a name: a text of 1 to 256 bytes, without "/" and "*", which would
 * widen a grant, and without what is not seen, which would mislead who reads a log.
 */
export function isNamePart(value: unknown): value is string {
  return (
    typeof value === "string" &&
    value.length > 0 &&
    Buffer.byteLength(value) <= longestName &&
    !/[/*]/.test(value) &&
    clean(value) === value
  );
}
