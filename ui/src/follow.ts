/** Looks again and again, gently: less often where nothing changes, and not at all in a hidden tab. */
import { useEffect, useRef, useState } from "preact/hooks";
import { type Failure, toFailure } from "./service.js";

const soonest = 2_000;
const latest = 15_000;
const latestAfterFailure = 30_000;

/** What was seen at last, and why the last look failed, if it did. */
export interface Followed<Seen> {
  seen: Seen | undefined;
  failure: Failure | undefined;
  /** Looks at once. */
  again(): void;
}

/**
 * Calls `look` now and from then on, until `key` is another. Each look is given up when the next
 * thing is asked for. `look` returns what it was given if there is nothing new, which makes the pause
 * before the next longer.
 */
export function useFollow<Seen>(
  key: string,
  look: (before: Seen | undefined, signal: AbortSignal) => Promise<Seen>,
): Followed<Seen> {
  const [state, setState] = useState<{ key: string; seen?: Seen; failure?: Failure }>({ key });
  const latestLook = useRef(look);
  latestLook.current = look;
  const again = useRef(() => {});
  useEffect(() => {
    let seen: Seen | undefined;
    let timer: ReturnType<typeof setTimeout> | undefined;
    let pause = soonest;
    let under: AbortController | undefined;
    let isOver = false;
    const run = async () => {
      clearTimeout(timer);
      under?.abort();
      const mine = new AbortController();
      under = mine;
      try {
        const now = await latestLook.current(seen, mine.signal);
        if (mine.signal.aborted) return;
        pause = now === seen ? Math.min(pause * 1.3, latest) : soonest;
        seen = now;
        setState({ key, seen: now });
      } catch (error) {
        if (mine.signal.aborted) return;
        pause = Math.min(pause * 2, latestAfterFailure);
        const failure = toFailure(error);
        const before = seen;
        if (failure) {
          setState(before === undefined ? { key, failure } : { key, seen: before, failure });
        }
      }
      if (!isOver && !document.hidden) timer = setTimeout(run, pause);
    };
    const onVisibility = () => {
      clearTimeout(timer);
      if (!document.hidden) void run();
    };
    again.current = () => {
      pause = soonest;
      void run();
    };
    document.addEventListener("visibilitychange", onVisibility);
    addEventListener("online", onVisibility);
    void run();
    return () => {
      isOver = true;
      clearTimeout(timer);
      under?.abort();
      document.removeEventListener("visibilitychange", onVisibility);
      removeEventListener("online", onVisibility);
    };
  }, [key]);
  const isMine = state.key === key;
  return {
    seen: isMine ? state.seen : undefined,
    failure: isMine ? state.failure : undefined,
    again: () => again.current(),
  };
}
