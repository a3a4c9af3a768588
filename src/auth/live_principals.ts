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
}

/** All principals that somebody may hold. */
export interface LivePrincipals {
  /** Makes the principal of a credential that was verified; it ends at its expiry. */
  begin(credential: Credential, identity: Identity): Principal;
  /** Ends those for which `why` has an answer; resolves how many these were. */
  endWhere(why: (live: Live) => Refusal | undefined): number;
  /** Clears the timers. */
  stop(): void;
}

/** The longest wait between two looks at the clock: it may be set, and a machine may sleep. */
const hourMs = 3_600_000;

/**
 * Whoever authenticates finds its principal in a map that holds so many of them. One that fell out of
 * there still has to end in time for the session that holds it, so principals are known by weak
 * references: a strong one to each would be as many as an issuer makes tokens.
 */
export function createLivePrincipals(clock: Clock): LivePrincipals {
  const sources = new WeakMap<Principal, Source>();
  const all = new Map<WeakRef<Principal>, () => void>();
  const forgotten = new FinalizationRegistry<WeakRef<Principal>>((ref) => {
    all.get(ref)?.();
    all.delete(ref);
  });

  function begin(credential: Credential, identity: Identity): Principal {
    const controller = new AbortController();
    const { name, tenant, grants, limits, expiresAt } = identity;
    const principal: Principal = {
      name,
      tenant,
      grants,
      limits,
      expiresAt,
      ends: controller.signal,
    };
    sources.set(principal, { credential, identity, controller });
    const ref = new WeakRef(principal);
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

  return {
    begin,
    endWhere(why) {
      let count = 0;
      for (const ref of [...all.keys()]) {
        const principal = ref.deref();
        const source = principal && sources.get(principal);
        if (!principal || !source) continue;
        const reason = why({ principal, ...source });
        if (!reason) continue;
        end(ref, reason);
        count++;
      }
      return count;
    },
    stop() {
      for (const callOff of all.values()) callOff();
      all.clear();
    },
  };
}
