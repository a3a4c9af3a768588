/** Looks again and again, gently: less often where nothing changes or a look takes long, and not at all in a hidden tab. */
import { useEffect, useRef, useState } from "preact/hooks";
import { type Failure, toFailure } from "./service.js";

const soonest = 2_000;
const latest = 15_000;
const latestAfterFailure = 30_000;
/**
 * A pause is so many times as long as the look before it took: an open page keeps the database busy
 * for a thirtieth of the time at the most, however large it is and however busy with others.
 */
const pauseByLook = 30;

/** What was seen at last, and why the last look failed, if it did. */
export interface Followed<Seen> {
  seen: Seen | undefined;
  failure: Failure | undefined;
  /** Milliseconds to the next look. */
  pause: number;
  /** Looks at once. */
  again(): void;
}

interface State<Seen> {
  key: string;
  seen?: Seen | undefined;
  failure?: Failure | undefined;
  pause: number;
}

/** Of some lists what was seen at last, so that the way back to them shows at once what was left. */
const kept = new Map<string, unknown>();
const mostKept = 20;

/** Forgets what is kept: it was for whoever had the key. */
export const forgetKept = () => kept.clear();

/**
 * Calls `look` now and from then on, until `key` is another. Each look is given up when the next
 * thing is asked for. `look` returns what it was given if there is nothing new, which makes the pause
 * before the next longer; of the first look it may show a part before it returns. `isKept`: begins
 * with what was seen under this key before.
 */
export function useFollow<Seen>(
  key: string,
  look: (
    before: Seen | undefined,
    signal: AbortSignal,
    show: (part: Seen) => void,
  ) => Promise<Seen>,
  { isKept = false, pauseAtLeast = soonest } = {},
): Followed<Seen> {
  const begin = (): State<Seen> => ({
    key,
    pause: 0,
    ...(isKept ? { seen: kept.get(key) as Seen | undefined } : {}),
  });
  const [held, setState] = useState<State<Seen>>(begin);
  // Already of the new key where that is another: the effect comes after what is drawn.
  const state = held.key === key ? held : begin();
  const latestLook = useRef(look);
  latestLook.current = look;
  const again = useRef(() => {});
  useEffect(() => {
    let seen = state.seen;
    /** The part of a first look. */
    let part: Seen | undefined;
    let timer: ReturnType<typeof setTimeout> | undefined;
    let pause = pauseAtLeast;
    let under: AbortController | undefined;
    let isOver = false;
    const run = async () => {
      clearTimeout(timer);
      under?.abort();
      const mine = new AbortController();
      under = mine;
      const begun = performance.now();
      const pauseAfter = () => Math.max(pause, (performance.now() - begun) * pauseByLook);
      let wait = 0;
      try {
        const show = (found: Seen) => {
          if (seen !== undefined || mine.signal.aborted) return;
          part = found;
          setState({ key, seen: found, pause: 0 });
        };
        const now = await latestLook.current(seen, mine.signal, show);
        if (mine.signal.aborted) return;
        pause = now === seen ? Math.min(pause * 1.3, latest) : pauseAtLeast;
        seen = now;
        wait = pauseAfter();
        setState({ key, seen, pause: wait });
        if (isKept) keep(key, now);
      } catch (error) {
        if (mine.signal.aborted) return;
        pause = Math.min(pause * 2, latestAfterFailure);
        wait = pauseAfter();
        const failure = toFailure(error);
        if (failure) setState({ key, seen: seen ?? part, failure, pause: wait });
      }
      if (!isOver && !document.hidden) timer = setTimeout(run, wait);
    };
    const onVisibility = () => {
      clearTimeout(timer);
      if (!document.hidden) void run();
    };
    again.current = () => {
      pause = pauseAtLeast;
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
  const { seen, failure, pause } = state;
  return { seen, failure, pause, again: () => again.current() };
}

function keep(key: string, seen: unknown): void {
  kept.delete(key);
  kept.set(key, seen);
  for (const oldest of kept.keys()) {
    if (kept.size <= mostKept) return;
    kept.delete(oldest);
  }
}
