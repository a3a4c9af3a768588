/** What `--retention` says. */

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

export const retentionAllowed =
  "rules such as keep_last=20,older_than=30d, each with keep_last=N, delete or older_than=AGE " +
  "(30m, 12h, 90d) and metadata.KEY=VALUE if need be, separated by semicolons";

const units: Record<string, number> = { s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 };

/**
 * Reads rules, of which the first that matches a thread is the one that counts. In a rule all
 * conditions hold together: `keep_last=20,older_than=30d` removes what is older than 30 days and
 * not among the newest 20. older_than alone keeps the latest. `delete` removes whole threads and
 * needs older_than, the age of a thread's last update. A value of metadata is JSON where it can
 * be read as a number, true, false or null, and text otherwise.
 *
 * Undefined for anything else, also for a rule that is never reached.
 */
export function parseRetention(text: string): RetentionRule[] | undefined {
  const rules: RetentionRule[] = [];
  for (const part of text.split(";")) {
    if (rules.some(({ metadata }) => metadata === undefined)) return undefined;
    const rule = parseRule(part.trim());
    if (!rule) return undefined;
    rules.push(rule);
  }
  return rules;
}

function parseRule(text: string): RetentionRule | undefined {
  const metadata: Record<string, unknown> = {};
  const given = new Map<string, string>();
  for (const condition of text.split(",")) {
    const [, name = "", value] = /^\s*([^=\s]+)\s*(?:=\s*(.*?)\s*)?$/.exec(condition) ?? [];
    if (given.has(name)) return undefined;
    given.set(name, value ?? "");
    if (name.startsWith("metadata.")) {
      if (!value || name === "metadata.") return undefined;
      metadata[name.slice("metadata.".length)] = /^(-?\d+(\.\d+)?|true|false|null)$/.test(value)
        ? JSON.parse(value)
        : value;
    } else if (!["keep_last", "older_than", "delete"].includes(name)) {
      return undefined;
    }
  }
  const keep = given.get("keep_last");
  const age = given.get("older_than");
  const isDelete = given.has("delete");
  if (isDelete && (given.get("delete") !== "" || keep !== undefined || !age)) return undefined;
  if (keep !== undefined && !(/^\d{1,7}$/.test(keep) && Number(keep) >= 1)) return undefined;
  const [, amount, unit = ""] = /^(\d{1,6})([smhd])$/.exec(age ?? "") ?? [];
  if (age !== undefined && amount === undefined) return undefined;
  if (!isDelete && keep === undefined && age === undefined) return undefined;
  return {
    text,
    metadata: Object.keys(metadata).length > 0 ? JSON.stringify(metadata) : undefined,
    keepLast: isDelete ? 0 : Number(keep ?? 1),
    olderThanMs: amount === undefined ? undefined : Number(amount) * (units[unit] ?? 0),
  };
}
