import { setMaxListeners } from "node:events";
import { setImmediate } from "node:timers/promises";
import type { Clock } from "./clock.js";
import type { Principal } from "./principal.js";
import { expired, type Refusal } from "./refusal.js";
import type { Credential, Identity } from "./rules.js";

/** A principal that may still be in use, and what it was made of. */
export interface Live {
  readonly principal: Principal;
  readonly credential: Credential;
  readonly identity: Identity;
}

interface Source {
  readonly credential: Credential;
  readonly identity: Identity;
  readonly controller: AbortController;
  readonly ref: WeakRef<Principal>;
}

/** Why a principal ends; undefined: it does not. */
export type Why = (live: Live) => Refusal | undefined;

/** All principals that somebody may hold. */
export interface LivePrincipals {
  /** Makes the principal of a credential that was verified; it ends at its expiry. */
  begin(credential: Credential, identity: Identity): Principal;
  /** Ends those of these for which there is a reason, at once; returns how many that were. */
  endAmong(principals: Iterable<Principal>, why: Why): number;
  /**
   * Ends all for which there is a reason, the oldest first. Others have their turn between: ten
   * thousand tokens take a third of a second.
   */
  endWhere(why: Why): Promise<number>;
  /** Clears the timers. */
  stop(): void;
}

/** The longest wait between two looks at the clock: it may be set, and a machine may sleep. */
const hourMs = 3_600_000;
/** Looked at before others have their turn: some milliseconds. */
const lookedAtATime = 100;

/**
 * Whoever authenticates finds its principal in a map that holds so many of them. One that fell out of
 * there still has to end in time for the session that holds it, so principals are known by weak
 * references: a strong one to each would be as many as an issuer makes tokens.
 *
 * `describe` tells what a credential is called now; undefined: it is called what it was.
 */
export function createLivePrincipals(
  clock: Clock,
  describe: (credential: Credential) => string | undefined = () => undefined,
): LivePrincipals {
  const sources = new WeakMap<Principal, Source>();
  const all = new Map<WeakRef<Principal>, () => void>();
  const forgotten = new FinalizationRegistry<WeakRef<Principal>>((ref) => {
    all.get(ref)?.();
    all.delete(ref);
  });

  function begin(credential: Credential, identity: Identity): Principal {
    const controller = new AbortController();
    // Every session and stream of it listens.
    setMaxListeners(0, controller.signal);
    const { name, tenant, grants, limits, expiresAt } = identity;
    const principal: Principal = {
      name,
      tenant,
      grants,
      limits,
      expiresAt,
      ends: controller.signal,
      // A reload may give a key another id, which changes nothing else.
      get credential() {
        return describe(credential) ?? identity.credential;
      },
    };
    const ref = new WeakRef(principal);
    sources.set(principal, { credential, identity, controller, ref });
    forgotten.register(principal, ref);
    const look = () => {
      const leftMs = expiresAt - clock.now();
      if (leftMs > 0) all.set(ref, clock.after(Math.min(leftMs, hourMs), look));
      else end(ref, expired(name));
    };
    if (expiresAt === Number.POSITIVE_INFINITY) all.set(ref, () => {});
    else look();
    return principal;
  }

  function end(ref: WeakRef<Principal>, reason: Refusal): void {
    all.get(ref)?.();
    all.delete(ref);
    const principal = ref.deref();
    if (principal) sources.get(principal)?.controller.abort(reason);
  }

  function endIf(principal: Principal, why: Why): boolean {
    const source = sources.get(principal);
    if (!source || principal.ends.aborted) return false;
    const reason = why({ principal, ...source });
    if (reason) end(source.ref, reason);
    return reason !== undefined;
  }

  return {
    begin,
    endAmong(principals, why) {
      let count = 0;
      for (const principal of principals) if (endIf(principal, why)) count++;
      return count;
    },
    async endWhere(why) {
      let count = 0;
      for (const [i, ref] of [...all.keys()].entries()) {
        if (i % lookedAtATime === lookedAtATime - 1) await setImmediate();
        const principal = ref.deref();
        if (principal && endIf(principal, why)) count++;
      }
      return count;
    },
    stop() {
      for (const callOff of all.values()) callOff();
      all.clear();
    },
  };
}
