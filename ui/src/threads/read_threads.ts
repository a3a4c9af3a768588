/** Pages of threads, as the address asks for them. */
import { type Timestamp, timestampFromMs } from "@bufbuild/protobuf/wkt";
import { type Thread, ThreadOrder } from "checkpointd/client";
import type { Place } from "../place.js";
import { serverNow, threads } from "../service.js";
import { fromSpan, fromStatus } from "../words.js";

/** Threads of a page. */
export const pageSize = 50;
/** So many of those that wait for somebody stand on top. */
const mostWaiting = 10;
/** Looked at for them, the latest ones: the database is not searched for what waits since last year. */
const examinedForWaiting = 2_000;

/** A page of the list, or as much of one as was found so far. */
export interface ShownPage {
  threads: Thread[];
  hasMore: boolean;
  /** Whether there is more to be found of this page. */
  isSearching: boolean;
}

/** A page is shown so soon after its first thread came, and as often while more come. */
const showEveryMs = 50;

/**
 * Reads the page that the address asks for; returns `before` where it is the same. Of one that takes
 * long, for there are few such threads among many, it shows what it has found.
 */
export async function readPage(
  place: Place,
  before: ShownPage | undefined,
  signal: AbortSignal,
  show: (part: ShownPage) => void,
): Promise<ShownPage> {
  const after = place.after === undefined ? undefined : fromPosition(place.after);
  const request = {
    filter: filterOf(place),
    order: place.order === "id" ? ThreadOrder.BY_ID : ThreadOrder.NEWEST_FIRST,
    // One more than is shown tells whether there are more.
    limit: pageSize + 1,
    withReasons: true,
    ...(after ? { after } : {}),
  };
  const found: Thread[] = [];
  let timer: ReturnType<typeof setTimeout> | undefined;
  try {
    for await (const { thread } of threads.listThreads(request, { signal })) {
      if (thread) found.push(thread);
      timer ??= setTimeout(() => {
        timer = undefined;
        show({ threads: found.slice(0, pageSize), hasMore: false, isSearching: true });
      }, showEveryMs);
    }
  } finally {
    clearTimeout(timer);
  }
  const hasMore = found.length > pageSize;
  const page = { threads: found.slice(0, pageSize), hasMore, isSearching: false };
  const isSame = before?.hasMore === hasMore && textOf(before.threads) === textOf(page.threads);
  return isSame ? before : page;
}

/** Whether those that wait for somebody stand on top: not where others are asked for. */
export const hasWaiting = ({ status, order, after }: Place) =>
  status === undefined && order !== "id" && after === undefined;

/** Reads failed and interrupted ones among the latest, the latest first; returns `before` where they are the same. */
export async function readWaiting(
  place: Place,
  before: Thread[] | undefined,
  signal: AbortSignal,
): Promise<Thread[]> {
  if (!hasWaiting(place)) return before ?? [];
  const statuses = ["failed", "interrupted"].map(fromStatus).filter((each) => each !== undefined);
  const request = {
    filter: { ...filterOf(place), statuses },
    limit: mostWaiting,
    examineLimit: examinedForWaiting,
    withReasons: true,
  };
  const found: Thread[] = [];
  for await (const { thread } of threads.listThreads(request, { signal })) {
    if (thread) found.push(thread);
  }
  return before !== undefined && textOf(before) === textOf(found) ? before : found;
}

/** All that may differ of what is shown. */
export const textOf = (shown: Thread | Thread[] | Thread["reasons"]) =>
  JSON.stringify(shown, (_, value) =>
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
    ...(span === undefined ? {} : { updatedAfter: timestampFromMs(serverNow() - span) }),
  };
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
