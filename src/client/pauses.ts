/** Which threads recovery lets alone for a while. */
export interface Pauses {
  /** Lets a thread alone: twice as long as the time before, if there was one. */
  pause(threadId: string): void;
  /** Begins anew with a thread. */
  forget(threadId: string): void;
  /** Those that are let alone now. */
  threads(): string[];
}

const mostMs = 60 * 60 * 1000;

/** Returns pauses of which the first of each thread is `firstMs`, and none longer than an hour. */
export function createPauses(firstMs: number, now = () => performance.now()): Pauses {
  const pauses = new Map<string, { ms: number; until: number }>();
  return {
    pause(threadId) {
      const before = pauses.get(threadId);
      const ms = before ? Math.min(before.ms * 2, Math.max(mostMs, firstMs)) : firstMs;
      pauses.set(threadId, { ms, until: now() + ms });
    },
    forget: (threadId) => void pauses.delete(threadId),
    threads() {
      const time = now();
      const paused: string[] = [];
      for (const [threadId, { ms, until }] of pauses) {
        if (until > time) paused.push(threadId);
        // Nobody claimed it for as long as it was let alone: it went on elsewhere, or is gone.
        else if (until + ms < time) pauses.delete(threadId);
      }
      return paused;
    },
  };
}
