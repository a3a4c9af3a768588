/** What statements return, while it is on its way: Postgres sends whatever was stored. */
import { CheckpointdError } from "../errors.js";

/**
 * Bytes that one statement may return, and with that the most of an answer. Ten puts of 64 MiB make
 * ten times as much, all of which a checkpoint may name; and what comes is held twice and more.
 */
export const mostResultBytes = 256 * 1024 * 1024;
/** The same of all statements together: of those that run the one that has most is given up. */
const mostInAll = 2 * mostResultBytes;

/** A statement whose result arrives. */
export interface Arriving {
  received: number;
  /** Ends it at once, and with it what has come. */
  giveUp(error: Error): void;
}

/** A statement was given up for what it returns. */
export class ResultGivenUp extends CheckpointdError {}

const tooLarge = () =>
  new ResultGivenUp(
    "failed_precondition",
    `what is stored of it has more than the ${mostResultBytes} bytes that one answer may have; ` +
      "list it without its values, or delete the thread",
    { reason: "UNDELIVERABLE", limit: mostResultBytes },
  );

const overloaded = (limit: number) =>
  new ResultGivenUp(
    "resource_exhausted",
    `the database sends more than the ${limit} bytes that the server holds at a time; try again`,
    { reason: "OVERLOADED", limit },
  );

/** Results that arrive at a pool's connections. */
export class Results {
  #inAll = 0;
  readonly #arriving = new Set<Arriving>();

  // With room for what stands around the values.
  constructor(readonly limits = { one: 1.125 * mostResultBytes, inAll: mostInAll }) {}

  /** What has arrived so far. */
  get inAll(): number {
    return this.#inAll;
  }

  /** To be called with each part that arrives. May give up this statement or another. */
  count(result: Arriving, bytes: number): void {
    if (result.received === 0) this.#arriving.add(result);
    result.received += bytes;
    this.#inAll += bytes;
    if (result.received > this.limits.one) this.#giveUp(result, tooLarge());
    while (this.#inAll > this.limits.inAll) {
      let most = result;
      for (const other of this.#arriving) if (other.received > most.received) most = other;
      this.#giveUp(most, overloaded(this.limits.inAll));
    }
  }

  /** To be called once it has arrived, or is given up. Idempotent. */
  end(result: Arriving): void {
    if (this.#arriving.delete(result)) this.#inAll -= result.received;
  }

  #giveUp(result: Arriving, error: Error): void {
    this.end(result);
    result.giveUp(error);
  }
}
