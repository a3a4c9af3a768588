/** What `--retention` says. */

import { didYouMean } from "../protocol/nearest.js";
import { age, integer, type Kind, Refusal } from "./kinds.js";

/** One rule: which threads, and what of them goes. */
export interface RetentionRule {
  /** The rule as it was written, for the log. */
  text: string;
  /** JSON that the metadata of a thread's latest root checkpoint contains; undefined: any. */
  metadata: string | undefined;
  /** Checkpoints that stay in each namespace; 0: the whole thread goes. */
  keepLast: number;
  /** Only what is older, in milliseconds; undefined: whatever its age. */
  olderThanMs: number | undefined;
}

/** How many checkpoints stay; the server takes no more either. */
export const keepLast = integer(1, 1_000_000);

const conditions = ["keep_last", "older_than", "delete", "metadata.KEY"];

const allowed =
  "rules such as keep_last=20,older_than=30d, each with keep_last=N, delete or older_than=AGE " +
  "(30m, 12h, 90d) and metadata.KEY=VALUE if need be, separated by semicolons";

/**
 * Rules, of which the first that matches a thread is the one that counts. In a rule all
 * conditions hold together: `keep_last=20,older_than=30d` removes what is older than 30 days and
 * not among the newest 20. older_than alone keeps the latest. `delete` removes whole threads and
 * needs older_than, the age of a thread's last update. A value of metadata is JSON where it can
 * be read as a number, true, false or null, and text otherwise.
 *
 * Anything else is refused with the rule and what is wrong in it, also a rule that is never
 * reached.
 */
export const retentionRules: Kind<RetentionRule[]> = {
  allowed,
  parse(text) {
    const parts = text.split(";").map((part) => part.trim());
    if (parts.every((part) => part === "")) throw new Refusal(`must be ${allowed}.`);
    const rules: RetentionRule[] = [];
    for (const [i, part] of parts.entries()) {
      try {
        const rule = parseRule(part);
        const forAll = rules.findIndex(({ metadata }) => metadata === undefined);
        if (forAll >= 0)
          refuse(`it is never reached, because rule ${forAll + 1} is for all threads`);
        rules.push(rule);
      } catch (error) {
        if (!(error instanceof Refusal)) throw error;
        throw new Refusal(`is wrong in rule ${i + 1}, "${part}": ${error.message}`);
      }
    }
    return rules;
  },
};

function parseRule(text: string): RetentionRule {
  const metadata: Record<string, unknown> = {};
  const given = new Map<string, string | undefined>();
  if (text === "") refuse("there is no rule beside the semicolon");
  for (const condition of text.split(",")) {
    const [, name = "", value] = /^\s*([^=]*?)\s*(?:=\s*(.*?)\s*)?$/s.exec(condition) ?? [];
    if (given.has(name)) refuse(`${name} stands there twice`);
    given.set(name, value);
    if (name.startsWith("metadata.")) {
      if (!value || name === "metadata.") refuse(`"${condition}" must be metadata.KEY=VALUE`);
      metadata[name.slice("metadata.".length)] = /^(-?\d+(\.\d+)?|true|false|null)$/.test(value)
        ? JSON.parse(value)
        : value;
    } else if (!["keep_last", "older_than", "delete"].includes(name)) {
      const otherwise = " Known are keep_last=N, older_than=AGE, delete and metadata.KEY=VALUE.";
      const hint = didYouMean(name.replace(/\..*$/s, ".KEY"), conditions, { otherwise });
      throw new Refusal(`there is no condition "${name}".${hint}`);
    }
  }
  const keep = read(given, "keep_last", keepLast);
  const olderThanMs = read(given, "older_than", age);
  const isDelete = given.has("delete");
  if (given.get("delete") !== undefined) refuse("delete takes no value");
  if (isDelete && keep !== undefined) refuse("delete and keep_last exclude each other");
  if (isDelete && olderThanMs === undefined) {
    refuse("delete needs older_than=AGE, the age of a thread's last update");
  }
  if (!isDelete && keep === undefined && olderThanMs === undefined) {
    refuse("it does not say what goes: give keep_last=N, older_than=AGE or both, or delete");
  }
  return {
    text,
    metadata: Object.keys(metadata).length > 0 ? JSON.stringify(metadata) : undefined,
    keepLast: isDelete ? 0 : (keep ?? 1),
    olderThanMs,
  };
}

function read<T>(given: Map<string, string | undefined>, name: string, kind: Kind<T>) {
  if (!given.has(name)) return undefined;
  try {
    return kind.parse(given.get(name) ?? "");
  } catch (error) {
    throw new Refusal(`${name} ${(error as Error).message}`);
  }
}

function refuse(what: string): never {
  throw new Refusal(`${what}.`);
}
