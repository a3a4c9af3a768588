/** Who waits for a connection: in a fair order, bounded in number and in time. */
import { CheckpointdError } from "../errors.js";
import type { DbOptions, Signal } from "./db.js";

/** What stands in a line. */
export interface Standing {
  /** It goes before all that have a larger one. */
  place: number;
}

/** The order of one line. */
export interface Order {
  /** Puts it into its place, among what waits of others. */
  stand<T extends Standing>(line: T[], standing: T, source: object | undefined): void;
  /** To be told of what leaves the line because it is its turn. */
  passed(standing: Standing): void;
}

/**
 * A fair order (start-time fair queueing, Goyal, Vin and Cheng 1996): what comes from one source waits
 * for what came from it before, and of the others only for as much as they had since. A client with a
 * thousand calls has another one wait for one of them. Of one source it is the order of arrival.
 */
export function createOrder(): Order {
  const last = new WeakMap<object, number>();
  const anybody = {};
  let now = 0;
  return {
    stand(line, standing, source = anybody) {
      standing.place = Math.max(now, last.get(source) ?? 0) + 1;
      last.set(source, standing.place);
      let i = line.length;
      while (i > 0 && (line[i - 1] as Standing).place > standing.place) i--;
      if (i === line.length) line.push(standing);
      else line.splice(i, 0, standing);
    },
    passed({ place }) {
      if (place > now) now = place;
    },
  };
}

interface Waiting extends Standing {
  /** Called with the turn that became free. */
  start: () => void;
}

/** A number of turns, and those who wait for one. */
export interface Turns {
  /** Takes a turn if one is free. */
  take(): boolean;
  isFree(): boolean;
  taken(): number;
  waiting: Waiting[];
  order: Order;
  release(): void;
}

/** So many turns, of which none is taken. */
export function createTurns(most: number): Turns {
  const waiting: Waiting[] = [];
  const order = createOrder();
  let taken = 0;
  return {
    waiting,
    order,
    isFree: () => taken < most,
    taken: () => taken,
    take() {
      if (taken >= most) return false;
      taken++;
      return true;
    },
    release() {
      const next = waiting.shift();
      if (!next) {
        taken--;
        return;
      }
      order.passed(next);
      next.start();
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
    { take, waiting: line, order }: Turns,
    signal: Signal | undefined,
  ): Promise<void> {
    if (take()) return;
    const since = performance.now();
    await new Promise<void>((resolve, reject) => {
      const leave = takePlace(signal, (reason) => {
        line.splice(line.indexOf(standing), 1);
        reject(reason);
      });
      const start = () => {
        leave();
        resolve();
      };
      const standing = { start, place: 0 };
      order.stand(line, standing, signal?.source);
    });
    if (signal?.queueMs !== undefined) signal.queueMs += performance.now() - since;
  }

  return { takePlace, takeTurn, waiting: () => waiting };
}
