import { CheckpointdError } from "../errors.js";

/**
 * Clients give a server up that is silent for 5 s (see client/client_session.ts). Most of them close
 * their connections then, which is read in time; this is for those whose end is lost on the way.
 */
const stallMs = 4_000;
const tickMs = 200;
/** Within which all that arrived meanwhile is read. */
const settleMs = 1_000;

/** So long after the last statement, this process may have stood still, if only for a moment. */
const quietMs = 5;
/**
 * Turns of Node's event loop in which what had arrived is read: the requests first and then the end
 * of their connections, for which three were needed. An idle one takes 2 us.
 */
const turns = 6;

/**
 * Keeps what was asked for before this process stood still from being carried out after: whoever
 * asked may have gone elsewhere, have been served there and have gone on. A write that was
 * acknowledged and then deleted would come back (seen with two replicas, of which one was frozen
 * for 0.9 s, and for 7 s).
 */
export interface StallWatch {
  /**
   * To be awaited before a statement is sent, and before it is looked whose calls are to travel in
   * it: when it resolves, the calls are aborted of which the client has gone. Undefined, and that is
   * the rule, when nothing may have been missed.
   */
  catchUp(): Promise<void> | undefined;
  /**
   * Throws UNAVAILABLE (SERVER_STALLED) when the process stood still for long until a moment ago:
   * stopped, or without a processor. Whoever still waits asks again.
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
  let askedAt = tickedAt;
  let catchingUp: Promise<void> | undefined;
  const timer = setInterval(() => {
    const now = performance.now();
    if (now - tickedAt > stallMs) stalledAt = now;
    tickedAt = now;
  }, tickMs).unref();

  async function readAll(): Promise<void> {
    for (let turn = 0; turn < turns; turn++) await new Promise(setImmediate);
    askedAt = performance.now();
    catchingUp = undefined;
  }

  return {
    catchUp() {
      // Not by a timer, which would have to be a fine one, and of which a moment that is shorter
      // is not seen. A process that had nothing to do waits once, for some microseconds.
      const now = performance.now();
      if (now - askedAt > quietMs) catchingUp ??= readAll();
      askedAt = now;
      return catchingUp;
    },
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
