import type { ThreadFilter, ThreadState } from "../client/threads.js";
import { UsageError } from "../config.js";
import type { ThreadsCommand } from "./threads.js";

const units: Record<string, number> = { s: 1_000, m: 60_000, h: 3_600_000, d: 86_400_000 };
const states = ["completed", "pending", "interrupted", "failed"] as const;

/** The flags that say which threads. */
export function readFilter({ flag }: Pick<ThreadsCommand, "flag">): ThreadFilter {
  const filter: ThreadFilter = {};
  const status = flag("status");
  if (status !== undefined) filter.status = status.split(",").map(toState);
  const prefix = flag("prefix");
  if (prefix !== undefined) filter.prefix = prefix;
  const metadata = flag("metadata");
  if (metadata !== undefined) filter.metadata = toObject(metadata);
  const after = flag("updated-after");
  if (after !== undefined) filter.updatedAfter = toTime("updated-after", after);
  const before = flag("updated-before");
  if (before !== undefined) filter.updatedBefore = toTime("updated-before", before);
  return filter;
}

/** A flag that is a whole number; undefined if it was not given. */
export function readInteger(
  { flag }: Pick<ThreadsCommand, "flag">,
  name: string,
  least: number,
): number | undefined {
  const text = flag(name);
  if (text === undefined) return undefined;
  const number = /^\d{1,9}$/.test(text) ? Number(text) : Number.NaN;
  if (number >= least) return number;
  throw new UsageError(`--${name} must be a whole number from ${least}, not "${text}".`);
}

/** An age such as 30m, 12h or 90d in milliseconds; undefined for anything else. */
export function toAge(text: string): number | undefined {
  const [, amount, unit = ""] = /^(\d{1,6})([smhd])$/.exec(text) ?? [];
  return amount === undefined ? undefined : Number(amount) * (units[unit] ?? 0);
}

function toTime(name: string, text: string): Date {
  const age = toAge(text);
  const time = age === undefined ? Date.parse(text) : Date.now() - age;
  if (!Number.isNaN(time)) return new Date(time);
  throw new UsageError(
    `--${name} must be a time such as 2026-01-31T12:00:00Z or an age such as 12h, not "${text}".`,
  );
}

function toState(text: string): ThreadState {
  const state = states.find((known) => known === text.trim());
  if (state) return state;
  throw new UsageError(`--status must be some of ${states.join(", ")}, not "${text}".`);
}

function toObject(text: string): Record<string, unknown> {
  try {
    const value = JSON.parse(text);
    if (typeof value === "object" && value !== null && !Array.isArray(value)) return value;
  } catch {}
  throw new UsageError(`--metadata must be a JSON object such as {"tenant":"acme"}.`);
}
