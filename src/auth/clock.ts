/** The time, and what is to happen later; tests have one of their own. */
export interface Clock {
  /** Milliseconds since the epoch. */
  now(): number;
  /**
   * Runs something once, so many milliseconds from now; the process does not wait for it.
   *
   * @param ms less than 24 days: setTimeout fires at once for more
   * @returns calls it off
   */
  after(ms: number, run: () => void): () => void;
}

/** That of the machine. */
export const systemClock: Clock = {
  now: Date.now,
  after(ms, run) {
    const timer = setTimeout(run, ms).unref();
    return () => clearTimeout(timer);
  },
};
