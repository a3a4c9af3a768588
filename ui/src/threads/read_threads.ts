/** Pages of threads, as the address asks for them. */
import { type Timestamp, timestampFromMs } from "@bufbuild/protobuf/wkt";
import { type Thread, ThreadOrder } from "checkpointd/client";
import type { Place } from "../place.js";
import { threads } from "../service.js";
import { fromSpan, fromStatus } from "../words.js";

/** Threads of a page. */
export const pageSize = 50;
/** So many of those that wait for somebody stand on top. */
const mostWaiting = 10;
/** Looked at for them, the latest ones: the database is not searched for what waits since last year. */
const examinedForWaiting = 2_000;

/** What is shown. */
export interface Shown {
  /** Failed and interrupted ones among the latest, the latest first, where no status is asked for. */
  waiting: Thread[];
  threads: Thread[];
  hasMore: boolean;
}

/** Reads what the address asks for; returns `before` where it is the same. */
export async function readShown(
  place: Place,
  before: Shown | undefined,
  signal: AbortSignal,
): Promise<Shown> {
  const [waiting, page] = await Promise.all([readWaiting(place, signal), readPage(place, signal)]);
  const shown = { waiting, ...page };
  return before !== undefined && textOf(before) === textOf(shown) ? before : shown;
}

/** All that may differ of what is shown. */
const textOf = ({ waiting, threads, hasMore }: Shown) =>
  JSON.stringify([waiting, threads, hasMore], (_, value) =>
    typeof value === "bigint" ? String(value) : value instanceof Uint8Array ? value.length : value,
  );

function filterOf({ status, prefix, metadata, graph, within }: Place) {
  const span = fromSpan(within ?? "");
  const words = status?.split(",") ?? [];
  return {
    statuses: words.map(fromStatus).filter((each) => each !== undefined),
    threadIdPrefix: prefix ?? "",
    metadataFilterJson: metadata ?? "",
    ...(graph === undefined ? {} : { graph }),
    ...(span === undefined ? {} : { updatedAfter: timestampFromMs(Date.now() - span) }),
  };
}

async function readPage(place: Place, signal: AbortSignal) {
  const after = place.after === undefined ? undefined : fromPosition(place.after);
  const request = {
    filter: filterOf(place),
    order: place.order === "id" ? ThreadOrder.BY_ID : ThreadOrder.NEWEST_FIRST,
    // One more than is shown tells whether there are more.
    limit: pageSize + 1,
    withReasons: true,
    ...(after ? { after } : {}),
  };
  const found = await collect(threads.listThreads(request, { signal }));
  return { threads: found.slice(0, pageSize), hasMore: found.length > pageSize };
}

async function readWaiting(place: Place, signal: AbortSignal): Promise<Thread[]> {
  if (place.status !== undefined || place.order === "id" || place.after !== undefined) return [];
  const statuses = ["failed", "interrupted"].map(fromStatus).filter((each) => each !== undefined);
  const request = {
    filter: { ...filterOf(place), statuses },
    limit: mostWaiting,
    examineLimit: examinedForWaiting,
    withReasons: true,
  };
  return collect(threads.listThreads(request, { signal }));
}

async function collect(answers: AsyncIterable<{ thread?: Thread | undefined }>): Promise<Thread[]> {
  const found: Thread[] = [];
  for await (const { thread } of answers) if (thread) found.push(thread);
  return found;
}

/** A thread's place in a list, as the address has it. */
export function toPosition({ threadId, updateTime }: Thread): string {
  const { seconds, nanos } = updateTime ?? { seconds: 0n, nanos: 0 };
  return `${seconds}.${String(nanos).padStart(9, "0")}:${threadId}`;
}

function fromPosition(text: string) {
  const [, seconds, nanos, threadId] = /^(\d{1,12})\.(\d{9}):(.+)$/s.exec(text) ?? [];
  if (seconds === undefined || threadId === undefined) return undefined;
  const updateTime = { seconds: BigInt(seconds), nanos: Number(nanos) } as Timestamp;
  return { threadId, updateTime };
}
