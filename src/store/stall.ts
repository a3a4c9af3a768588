import { CheckpointdError } from "../errors.js";

/** Clients give a server up that is silent for 5 s (see client/client_session.ts); this is well before. */
const stallMs = 2_000;
const tickMs = 200;
/** Within which all that arrived meanwhile is read. */
const settleMs = 1_000;

/** Watches whether this process stands still. */
export interface StallWatch {
  /**
   * Throws UNAVAILABLE (SERVER_STALLED) when the process stood still until a moment ago: stopped,
   * or without a processor. What it does next was asked for before, and whoever asked may have
   * gone elsewhere, have been served there and have gone on: a write that was acknowledged and
   * then deleted would come back (seen: a server frozen for 7 s, two replicas). Whoever still
   * waits asks again.
   */
  check(): void;
  /** Whether it did since then, by performance.now(). */
  hasStoodStillSince(time: number): boolean;
  stop(): void;
}

/** Starts the watch, which keeps no process alive. */
export function startStallWatch(): StallWatch {
  let tickedAt = performance.now();
  let stalledAt = Number.NEGATIVE_INFINITY;
  const timer = setInterval(() => {
    const now = performance.now();
    if (now - tickedAt > stallMs) stalledAt = now;
    tickedAt = now;
  }, tickMs).unref();
  return {
    check() {
      const now = performance.now();
      // Sockets are read before timers run, so the tick may still be to come.
      if (now - tickedAt <= stallMs && now > stalledAt + settleMs) return;
      throw new CheckpointdError(
        "unavailable",
        "the server stood still for a while and does not know what still holds, try again",
        { reason: "SERVER_STALLED" },
      );
    },
    hasStoodStillSince: (time) => stalledAt > time || performance.now() - tickedAt > stallMs,
    stop: () => clearInterval(timer),
  };
}
