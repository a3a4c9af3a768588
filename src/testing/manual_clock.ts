import type { Clock } from "../auth/clock.js";

/** A clock that only goes on when a test says so. */
export interface ManualClock extends Clock {
  /** Goes on by so many milliseconds, and runs what is due on the way, in its order. */
  advance(ms: number): void;
  /** How many runs are waited for. */
  readonly waiting: number;
}

/** Creates one that stands at this time. */
export function createManualClock(start = Date.parse("2030-01-01T00:00:00Z")): ManualClock {
  let now = start;
  const due = new Set<{ at: number; run: () => void }>();
  return {
    now: () => now,
    after(ms, run) {
      const entry = { at: now + ms, run };
      due.add(entry);
      return () => void due.delete(entry);
    },
    advance(ms) {
      const end = now + ms;
      for (;;) {
        const [next] = [...due].sort((a, b) => a.at - b.at);
        if (!next || next.at > end) break;
        due.delete(next);
        now = Math.max(now, next.at);
        next.run();
      }
      now = end;
    },
    get waiting() {
      return due.size;
    },
  };
}
