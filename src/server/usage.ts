/** What principals take of the server, and the limits of each. */
import type { Principal, PrincipalLimits } from "../auth/principal.js";
import { CheckpointdError } from "../errors.js";
import type { Call, FinishedCall } from "./call.js";

/** A limit of so much a second: a second's worth at once, and what is taken beyond that is owed. */
class Rate {
  #left: number;
  #at = performance.now();

  constructor(readonly perSecond: number) {
    this.#left = perSecond;
  }

  isFull(): boolean {
    this.isSpent();
    return this.#left >= this.perSecond;
  }

  isSpent(): boolean {
    const now = performance.now();
    this.#left = Math.min(this.perSecond, this.#left + ((now - this.#at) / 1_000) * this.perSecond);
    this.#at = now;
    return this.#left <= 0;
  }

  take(amount: number): void {
    this.#left -= amount;
  }
}

/** By the names that the auth file has for them. */
const rates = ["calls", "bytesIn", "bytesOut", "databaseMs"] as const;
const counts = ["callsAtOnce", "streams", "sessions"] as const;
type RateName = (typeof rates)[number];
type CountName = (typeof counts)[number];

/** What one principal has under way and has taken. */
interface Taken {
  limits: PrincipalLimits;
  rates: Partial<Record<RateName, Rate>>;
  counts: Record<CountName, number>;
  shared: Shared;
}

/** What one name has under way and has taken, by whichever of its credentials. */
interface Shared {
  /** By their name and how much a second. */
  rates: Map<string, Rate>;
  counts: Record<CountName, number>;
  isForgotten: boolean;
}

/** Names that are known before those are looked for that can be forgotten. */
const mostForgotten = 10_000;

/**
 * Counts by tenant and name, so that a new token does not bring a new allowance. All of it is of one
 * process: with workers or replicas each has its own.
 */
export class Usage {
  readonly #shared = new Map<string, Shared>();
  #forgetAt = mostForgotten;
  /** Each credential finds its own without making a key. */
  readonly #byPrincipal = new WeakMap<Principal, Taken>();
  readonly #counted = new WeakMap<FinishedCall, Taken>();

  /** How many names are known. */
  get known(): number {
    return this.#shared.size;
  }

  /** To be called before a call is carried out. Throws LIMIT_REACHED. */
  begin(call: Call): void {
    const taken = this.#of(call.principal);
    if (!taken) return;
    for (const name of rates) {
      if (taken.rates[name]?.isSpent()) throw reached(name, taken.limits);
    }
    this.#count(taken, "callsAtOnce");
    taken.rates.calls?.take(1);
    call.databaseMs = 0;
    this.#counted.set(call, taken);
  }

  /** To be called of every call that is over. */
  end(call: FinishedCall & { readonly databaseMs?: number | undefined }): void {
    const taken = this.#counted.get(call);
    if (!taken) return;
    taken.counts.callsAtOnce--;
    taken.rates.bytesIn?.take(call.requestBytes);
    taken.rates.bytesOut?.take(call.answerBytes);
    taken.rates.databaseMs?.take(call.databaseMs ?? 0);
  }

  /** Opens a stream or a session. Returns what is to be called when it ends. Throws LIMIT_REACHED. */
  open(principal: Principal | undefined, what: "streams" | "sessions"): () => void {
    const taken = this.#of(principal);
    if (!taken) return () => {};
    this.#count(taken, what);
    let isOpen = true;
    return () => {
      if (isOpen) taken.counts[what]--;
      isOpen = false;
    };
  }

  #count(taken: Taken, what: CountName): void {
    if (taken.counts[what] >= (taken.limits[what] ?? Number.POSITIVE_INFINITY)) {
      throw reached(what, taken.limits);
    }
    taken.counts[what]++;
  }

  /** Undefined for one without limits, which costs nothing. */
  #of(principal: Principal | undefined): Taken | undefined {
    if (!principal) return undefined;
    const known = this.#byPrincipal.get(principal);
    if (known && !known.shared.isForgotten) return known;
    const { tenant, name, limits } = principal;
    if (Object.keys(limits).length === 0) return undefined;
    const key = JSON.stringify([tenant, name]);
    const shared = this.#shared.get(key) ?? this.#begin(key);
    const taken: Taken = { limits, rates: {}, counts: shared.counts, shared };
    for (const rate of rates) {
      const perSecond = limits[rate];
      if (perSecond === undefined) continue;
      // Two principals of the file may be of one name. Each limit is one: who comes now with a token
      // of the one and now of the other has no new allowance each time.
      const id = `${rate} ${perSecond}`;
      const same = shared.rates.get(id) ?? new Rate(perSecond);
      shared.rates.set(id, same);
      taken.rates[rate] = same;
    }
    this.#byPrincipal.set(principal, taken);
    return taken;
  }

  /** Those who have nothing under way and owe nothing are forgotten: an issuer has any number of subjects. */
  #begin(key: string): Shared {
    if (this.#shared.size >= this.#forgetAt) {
      for (const [name, shared] of this.#shared) {
        const isIdle = Object.values(shared.counts).every((count) => count === 0);
        if (!isIdle || ![...shared.rates.values()].every((rate) => rate.isFull())) continue;
        shared.isForgotten = true;
        this.#shared.delete(name);
      }
      this.#forgetAt = Math.max(mostForgotten, 2 * this.#shared.size);
    }
    const shared: Shared = {
      rates: new Map(),
      counts: { callsAtOnce: 0, streams: 0, sessions: 0 },
      isForgotten: false,
    };
    this.#shared.set(key, shared);
    return shared;
  }
}

const units: Record<RateName | CountName, string> = {
  calls: "calls a second",
  bytesIn: "bytes a second sent",
  bytesOut: "bytes a second answered",
  databaseMs: "milliseconds a second of the database's time",
  callsAtOnce: "calls at a time",
  streams: "streams at a time",
  sessions: "sessions at a time",
};

function reached(what: RateName | CountName, limits: PrincipalLimits): CheckpointdError {
  const limit = limits[what] as number;
  return new CheckpointdError(
    "resource_exhausted",
    `the credential has had its ${limit} ${units[what]}; try again later`,
    { reason: "LIMIT_REACHED", field: what, limit },
  );
}
