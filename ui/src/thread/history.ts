/** A thread's checkpoints of one namespace, the latest first, as far as they were scrolled to. */
import { type CheckpointTuple, ListView } from "checkpointd/client";
import { useRef, useState } from "preact/hooks";
import { useFollow } from "../follow.js";
import { checkpoints, type Failure, toFailure } from "../service.js";
import { timeOfId, toRecord } from "../words.js";

/** What is told of each. */
export interface Header {
  id: string;
  parent: string | undefined;
  step: number | undefined;
  source: string;
  time: Date | undefined;
  /** What each node had seen, by which it is known which ran. */
  seen: Record<string, unknown>;
  /** Whether its tasks left a question that nobody answered, or an error. */
  asks: boolean;
  failed: boolean;
}

const pageSize = 200;
/** For who wants the oldest. */
const largePageSize = 1_000;
/** Looked at again and again: new ones come first, and writes come to the latest. */
const headSize = 20;

export interface History {
  headers: Header[];
  hasMore: boolean;
  failure: Failure | undefined;
  /** Whether anything has been read yet. */
  isRead: boolean;
  /** Reads it anew, from its beginning. */
  again(): void;
  /** Reads further back; much further where the oldest is wanted. */
  readMore(isFar?: boolean): void;
}

/** Reads the history, follows what is added to it, and reads further back when that is asked for. */
export function useHistory(threadId: string, ns: string): History {
  const key = JSON.stringify([threadId, ns]);
  const model = useRef({ key, headers: [] as Header[], hasMore: false, isReading: false });
  const [, setRound] = useState(0);
  const [moreFailure, setMoreFailure] = useState<Failure>();
  if (model.current.key !== key) {
    model.current = { key, headers: [], hasMore: false, isReading: false };
  }
  const mine = model.current;
  const { seen, failure, again } = useFollow<string>(key, async (before, signal) => {
    const isFirst = mine.headers.length === 0;
    const most = isFirst ? pageSize : headSize;
    const read = await readHeaders({ threadId, checkpointNs: ns, limit: most + 1 }, signal);
    const head = read.slice(0, most);
    const text = JSON.stringify(head);
    // What was asked for anew is taken, though it is as before.
    if (text === before && !isFirst) return text;
    // What comes after it was read before, unless so many are new that some between were not; or it was
    // pruned.
    const last = head.at(-1)?.id;
    const at = mine.headers.findIndex(({ id }) => id === last);
    const hasRest = at >= 0 && read.length > most;
    mine.headers = hasRest ? [...head, ...mine.headers.slice(at + 1)] : head;
    if (!hasRest) mine.hasMore = read.length > most;
    return text;
  });
  const readMore = async (isFar = false) => {
    const most = isFar ? largePageSize : pageSize;
    const last = mine.headers.at(-1);
    if (!mine.hasMore || mine.isReading || !last) return;
    mine.isReading = true;
    try {
      const request = { threadId, checkpointNs: ns, beforeCheckpointId: last.id };
      const more = await readHeaders({ ...request, limit: most + 1 });
      // They came after what is no longer there: it was read anew meanwhile.
      if (mine.headers.at(-1)?.id !== last.id) return;
      mine.headers = [...mine.headers, ...more.slice(0, most)];
      mine.hasMore = more.length > most;
      setMoreFailure(undefined);
    } catch (error) {
      setMoreFailure(toFailure(error));
    } finally {
      mine.isReading = false;
      setRound((round) => round + 1);
    }
  };
  return {
    headers: mine.headers,
    hasMore: mine.hasMore,
    failure: failure ?? moreFailure,
    isRead: seen !== undefined,
    again: () => {
      mine.headers = [];
      again();
    },
    readMore: (isFar) => void readMore(isFar),
  };
}

async function readHeaders(
  request: { threadId: string; checkpointNs: string; limit: number; beforeCheckpointId?: string },
  signal?: AbortSignal,
): Promise<Header[]> {
  const headers: Header[] = [];
  // Outlines: of values only that they are there.
  const asked = { ...request, maxValueBytes: 0, omitUnchanged: true };
  for await (const { tuple } of checkpoints.list(asked, signal ? { signal } : {})) {
    if (tuple) headers.push(toHeader(tuple));
  }
  return headers;
}

function toHeader(tuple: CheckpointTuple): Header {
  const { key, parentCheckpointId, metadataJson, checkpointJson, omitted } = tuple;
  const id = key?.checkpointId ?? "";
  const { step, source } = toRecord(metadataJson);
  const { versions_seen } = toRecord(checkpointJson);
  const isWritten = (name: string) =>
    omitted.some(({ channel, taskId }) => taskId !== "" && channel === name);
  return {
    id,
    parent: parentCheckpointId,
    step: typeof step === "number" ? step : undefined,
    source: typeof source === "string" ? source : "",
    time: timeOfId(id),
    seen: (versions_seen ?? {}) as Record<string, unknown>,
    // One that was answered has the answer beside it.
    asks: isWritten("__interrupt__") && !isWritten("__resume__"),
    failed: isWritten("__error__"),
  };
}

/** The namespaces among a thread's latest checkpoints, with how many of these are in each. */
export async function readNamespaces(threadId: string, signal: AbortSignal) {
  const request = { threadId, view: ListView.METADATA, limit: 500 };
  const found = new Map<string, number>();
  for await (const { tuple } of checkpoints.list(request, { signal })) {
    const name = tuple?.key?.checkpointNs ?? "";
    found.set(name, (found.get(name) ?? 0) + 1);
  }
  return found;
}
