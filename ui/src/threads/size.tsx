/** How much is stored of the threads in view. To count reads every row of a thread, so few are counted at once. */
import type { Thread } from "checkpointd/client";
import { useEffect, useRef, useState } from "preact/hooks";
import { threads } from "../service.js";
import { toCount, toSize } from "../words.js";

/** Counted at once, of all threads in view. */
const mostAtOnce = 2;
/** What passes while one scrolls is not counted. */
const settledMs = 200;
/** One that goes on is counted again no sooner than that. */
const staleMs = 60_000;
/** One that takes longer is too large to be counted by the way. */
const timeoutMs = 10_000;

interface Counted {
  text: string;
  title: string;
  checkpointId: string;
  at: number;
}

const counted = new Map<string, Counted>();

/** Forgets what was counted: it was for whoever had the key. */
export const forgetSizes = () => counted.clear();
const mostCounted = 2_000;

/** Those that wait for their turn, the last that came to view first. */
const line: (() => Promise<void>)[] = [];
let running = 0;

async function runNext(): Promise<void> {
  if (running >= mostAtOnce) return;
  const next = line.pop();
  if (!next) return;
  running++;
  try {
    await next();
  } finally {
    running--;
    void runNext();
  }
}

/** Counts, when it is its turn; given up by the signal. */
function count(thread: Thread, signal: AbortSignal): Promise<Counted> {
  return new Promise((resolve) => {
    const run = async () => {
      if (!signal.aborted) resolve(await read(thread, signal));
    };
    line.push(run);
    signal.addEventListener("abort", () => {
      const at = line.indexOf(run);
      if (at >= 0) line.splice(at, 1);
    });
    void runNext();
  });
}

async function read({ threadId, checkpointId }: Thread, signal: AbortSignal): Promise<Counted> {
  const about = { checkpointId, at: performance.now() };
  try {
    const { thread } = await threads.getThread(
      { threadId, withCounts: true },
      { signal, timeoutMs },
    );
    const { checkpoints = 0n, blobs = 0n, writes = 0n, storedBytes = 0n } = thread?.counts ?? {};
    const rows = [
      toCount(checkpoints, "checkpoint"),
      toCount(blobs, "value"),
      toCount(writes, "write"),
    ];
    return { ...about, text: toSize(Number(storedBytes)), title: rows.join(", ") };
  } catch {
    return { ...about, text: "not counted", title: "It takes too long, or the service is away" };
  }
}

/** How much is stored of a thread, once it is in view. */
export function Size({ thread }: { thread: Thread }) {
  const { threadId, checkpointId } = thread;
  const element = useRef<HTMLSpanElement>(null);
  const [isInView, setInView] = useState(false);
  const [, setRound] = useState(0);
  useEffect(() => {
    if (!element.current) return;
    const observer = new IntersectionObserver((entries) =>
      setInView(entries.at(-1)?.isIntersecting ?? false),
    );
    observer.observe(element.current);
    return () => observer.disconnect();
  }, []);
  const known = counted.get(threadId);
  useEffect(() => {
    const known = counted.get(threadId);
    if (!isInView || known?.checkpointId === checkpointId) return;
    const under = new AbortController();
    const sooner = known ? known.at + staleMs - performance.now() : 0;
    const timer = setTimeout(
      async () => {
        const now = await count(thread, under.signal);
        if (under.signal.aborted) return;
        if (counted.size >= mostCounted) counted.clear();
        counted.set(threadId, now);
        setRound((round) => round + 1);
      },
      Math.max(settledMs, sooner),
    );
    return () => {
      clearTimeout(timer);
      under.abort();
    };
  }, [isInView, threadId, checkpointId]);
  return (
    <span class="size" ref={element} title={known?.title}>
      {known?.text ?? "…"}
    </span>
  );
}
