/** Who waits for a connection: in turn, bounded in number and in time. */
import { CheckpointdError } from "../errors.js";
import type { DbOptions, Signal } from "./db.js";

/** A number of turns, and those who wait for one. */
export interface Turns {
  /** Takes a turn if one is free. */
  take(): boolean;
  isFree(): boolean;
  taken(): number;
  /** Called one after the other with the turn that became free. */
  waiting: (() => void)[];
  release(): void;
}

/** So many turns, of which none is taken. */
export function createTurns(most: number): Turns {
  const waiting: (() => void)[] = [];
  let taken = 0;
  return {
    waiting,
    isFree: () => taken < most,
    taken: () => taken,
    take() {
      if (taken >= most) return false;
      taken++;
      return true;
    },
    release() {
      const next = waiting.shift();
      if (next) next();
      else taken--;
    },
  };
}

/** The places of all who wait. postgres.js has a queue without bounds (porsager/postgres#824). */
export function createQueue({
  queueLimit,
  queueTimeoutMs,
}: Pick<DbOptions, "queueLimit" | "queueTimeoutMs">) {
  let waiting = 0;

  /** See takePlace of Db. */
  function takePlace(signal: Signal | undefined, giveUp: (reason: unknown) => void) {
    if (waiting >= queueLimit) {
      throw new CheckpointdError(
        "resource_exhausted",
        `too many calls are waiting for a database connection (limit ${queueLimit})`,
        { reason: "QUEUE_FULL", limit: queueLimit },
      );
    }
    waiting++;
    const leave = () => {
      waiting--;
      clearTimeout(timer);
      signal?.removeEventListener("abort", onAbort);
    };
    const onAbort = () => {
      leave();
      giveUp(signal?.reason);
    };
    const timer = setTimeout(() => {
      leave();
      giveUp(
        new CheckpointdError(
          "unavailable",
          `no database connection became free within ${queueTimeoutMs} ms`,
          { reason: "QUEUE_TIMEOUT", limit: queueTimeoutMs },
        ),
      );
    }, queueTimeoutMs);
    signal?.addEventListener("abort", onAbort);
    return leave;
  }

  /** Takes a turn, at once or when it is one's own; rejects as a place is given up. */
  async function takeTurn(
    { take, waiting: line }: Turns,
    signal: Signal | undefined,
  ): Promise<void> {
    if (take()) return;
    const since = performance.now();
    await new Promise<void>((resolve, reject) => {
      const start = () => {
        leave();
        resolve();
      };
      const leave = takePlace(signal, (reason) => {
        line.splice(line.indexOf(start), 1);
        reject(reason);
      });
      line.push(start);
    });
    if (signal?.queueMs !== undefined) signal.queueMs += performance.now() - since;
  }

  return { takePlace, takeTurn, waiting: () => waiting };
}
