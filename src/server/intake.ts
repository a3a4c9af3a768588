/**
 * What is being received: how much requests may take of the process until they are answered, and how
 * fast they must come.
 */
import { Code, ConnectError } from "@connectrpc/connect";
import { CheckpointdError } from "../errors.js";
import { toConnectError } from "./connect_error.js";
import { defaultLimits, type Limits } from "./limits.js";

type IntakeLimits = Pick<Limits, "requestBytes" | "arrivalPatienceMs" | "arrivalBytesPerMs">;

/** How often it is looked whether something comes too slowly; more often if the patience is short. */
const sweepMs = 1_000;

/** All that a process receives. */
export class Intake {
  #held = 0;
  readonly #arrivals = new Set<Arrival>();
  // One timer for all of them: one of its own costs a call more than all else here.
  #timer: NodeJS.Timeout | undefined;

  constructor(readonly limits: IntakeLimits = defaultLimits) {}

  /** Bytes that are held. */
  get held(): number {
    return this.#held;
  }

  /**
   * Counts bytes that are now held. Throws OVERLOADED, and does not count them, if it is too much. The
   * largest that is still on its way has to go for one that is smaller: else a client that sends large
   * requests and never ends them would keep all others out.
   */
  take(bytes: number, by?: Arrival): void {
    const { requestBytes } = this.limits;
    // What a call holds that is given up is free a moment later, and more than this.
    if (this.#held + bytes > requestBytes && !this.#giveUpLarger(bytes, by)) {
      throw overloaded(
        `the server holds as many bytes of requests as it may, ${requestBytes}; try again`,
        requestBytes,
      );
    }
    this.#held += bytes;
  }

  /** Counts bytes that are no longer held. */
  give(bytes: number): void {
    this.#held -= bytes;
  }

  /** Returns whether there was one. */
  #giveUpLarger(bytes: number, by: Arrival | undefined): boolean {
    let largest: Arrival | undefined;
    const own = bytes + (by?.held ?? 0);
    for (const arrival of this.#arrivals) {
      if (arrival.held > (largest?.held ?? own)) largest = arrival;
    }
    if (!largest) return false;
    const { requestBytes } = this.limits;
    largest.close();
    largest.giveUp(
      toConnectError(
        overloaded(
          "the server has no room for a request so long on its way; try again",
          requestBytes,
        ),
      ),
    );
    return true;
  }

  watch(arrival: Arrival): void {
    this.#arrivals.add(arrival);
    this.#timer ??= setInterval(
      () => this.#sweep(),
      Math.min(sweepMs, this.limits.arrivalPatienceMs),
    ).unref();
  }

  forget(arrival: Arrival): void {
    this.#arrivals.delete(arrival);
  }

  #sweep(): void {
    const { arrivalPatienceMs, arrivalBytesPerMs } = this.limits;
    const now = performance.now();
    for (const arrival of this.#arrivals) {
      // What came fast buys no time to come: with 64 MB of it one could stand still for two hours,
      // and with eight such bodies hold all that there is for everybody.
      const earned = (arrival.bytes - arrival.bytesBefore) / arrivalBytesPerMs;
      arrival.since = Math.min(now, arrival.since + earned);
      arrival.bytesBefore = arrival.bytes;
      if (now <= arrival.since + arrivalPatienceMs) continue;
      arrival.end();
      arrival.giveUp(new ConnectError("the request came too slowly", Code.DeadlineExceeded));
    }
    if (this.#arrivals.size > 0) return;
    clearInterval(this.#timer);
    this.#timer = undefined;
  }
}

/** Something on its way from a client: a body, or the messages of a session one after the other. */
export class Arrival {
  /** When it would have been on time with what has come; later than that by the patience it ends. */
  since = 0;
  /** What of it has come, and what of that had come when it was last looked. */
  bytes = 0;
  bytesBefore = 0;
  /** What of it is held. */
  held = 0;
  /** What of that is counted here, and not by a call. */
  #counted = 0;
  #closed = false;

  constructor(
    readonly intake: Intake,
    /** Called once it comes too slowly. */
    public giveUp: (error: ConnectError) => void = () => {},
  ) {}

  /** From now on it has to come. */
  begin(): void {
    this.since = performance.now();
    this.bytes = 0;
    this.bytesBefore = 0;
    this.intake.watch(this);
  }

  /** It need not come: it is there, or we do not read. */
  end(): void {
    this.intake.forget(this);
  }

  /** Of a session: after `received` bytes more so many are held that are no whole message yet. */
  unfinished(held: number, received: number): void {
    if (this.#closed) return;
    const before = this.held;
    this.#hold(held);
    if (held === 0) this.end();
    else if (before === 0 || held !== before + received) this.begin();
    this.bytes += received;
  }

  /** Of a session: its message is there. */
  finished(): void {
    this.#hold(0);
    this.end();
  }

  /** Nobody waits for it any more. */
  close(): void {
    this.#closed = true;
    this.finished();
  }

  /** Of a session: it is read again after a rest. */
  goOn(): void {
    if (this.held > 0) this.begin();
  }

  #hold(bytes: number): void {
    this.intake.take(bytes - this.#counted, this);
    this.#counted = bytes;
    this.held = bytes;
  }
}

/** The answer to what would take more of the process than there is for all. */
export function overloaded(message: string, limit: number): CheckpointdError {
  return new CheckpointdError("resource_exhausted", message, { reason: "OVERLOADED", limit });
}
