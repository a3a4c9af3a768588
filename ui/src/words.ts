/** Times, sizes and names as people read them. */
import { type Timestamp, timestampDate } from "@bufbuild/protobuf/wkt";
import { ThreadStatus } from "checkpointd/client";

/** The words of a thread's status, which the address has too. */
export const statuses = ["failed", "interrupted", "pending", "completed"] as const;
export type Status = (typeof statuses)[number];

const statusOf: Record<Status, ThreadStatus> = {
  failed: ThreadStatus.FAILED,
  interrupted: ThreadStatus.INTERRUPTED,
  pending: ThreadStatus.PENDING,
  completed: ThreadStatus.COMPLETED,
};

/** What each says of a thread. */
export const meaningOf: Record<Status, string> = {
  failed: "A task ended with an error",
  interrupted: "A task waits for an answer",
  pending: "There is work to run: it runs now, or whoever ran it stopped",
  completed: "There is nothing left to run",
};

export const toStatus = (status: ThreadStatus): Status =>
  statuses.find((word) => statusOf[word] === status) ?? "pending";

export const fromStatus = (word: string): ThreadStatus | undefined =>
  Object.hasOwn(statusOf, word) ? statusOf[word as Status] : undefined;

const units: [name: string, seconds: number][] = [
  ["d", 86_400],
  ["h", 3_600],
  ["m", 60],
];

/** A span of time in its greatest unit: "3 s", "12 m". */
export function toSpan(ms: number): string {
  const seconds = Math.max(0, Math.round(ms / 1000));
  for (const [name, length] of units) {
    if (seconds >= length) return `${Math.floor(seconds / length)} ${name}`;
  }
  return `${seconds} s`;
}

/** How long ago. */
export const toAge = (time: Timestamp | undefined, now: number) =>
  time ? toSpan(now - timestampDate(time).getTime()) : "";

/** A time of where the reader is. Not by the locale: what knows these takes 30 ms to begin with. */
export const toLocalTime = (date: Date) => date.toString().replace(/ \(.*/, "");

/** "30m", "12h", "7d" in milliseconds; undefined of anything else. */
export function fromSpan(text: string): number | undefined {
  const [, count, name] = /^(\d{1,6})([mhd])$/.exec(text) ?? [];
  const unit = units.find(([unit]) => unit === name);
  return unit && Number(count) * unit[1] * 1000;
}

/** "12 B", "3.4 KiB". */
export function toSize(bytes: number): string {
  const names = ["B", "KiB", "MiB", "GiB", "TiB"];
  let size = bytes;
  let i = 0;
  for (; size >= 1000 && i < names.length - 1; i++) size /= 1024;
  return `${i === 0 || size >= 100 ? Math.round(size) : size.toFixed(1)} ${names[i]}`;
}

/** "1 checkpoint", "2,000 checkpoints". */
export const toCount = (count: number | bigint, name: string) =>
  `${count.toLocaleString("en")} ${name}${Number(count) === 1 ? "" : "s"}`;

/** The time in a UUID of version 6, as LangGraph's ids of checkpoints are; undefined of others. */
export function timeOfId(id: string): Date | undefined {
  const [, high, middle, low] =
    /^([0-9a-f]{8})-([0-9a-f]{4})-6([0-9a-f]{3})-/.exec(id) ?? ([] as string[]);
  if (high === undefined) return undefined;
  const ticks = BigInt(`0x${high}${middle}${low}`) - 122192928000000000n;
  return new Date(Number(ticks / 10000n));
}

/** At most so many characters, on one line. */
export function shorten(text: string, most: number): string {
  const line = text.slice(0, most * 2).replace(/\s+/g, " ");
  return line.length > most ? `${line.slice(0, most - 1)}…` : line;
}

/** A JSON text as an object; an empty one where it is none. */
export function toRecord(json: string): Record<string, unknown> {
  try {
    const value: unknown = JSON.parse(json || "{}");
    if (typeof value === "object" && value !== null) return value as Record<string, unknown>;
  } catch {}
  return {};
}
