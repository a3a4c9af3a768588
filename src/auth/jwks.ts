/** The public keys of one issuer: a JSON Web Key Set (RFC 7517). */
import {
  type CryptoKey,
  createLocalJWKSet,
  errors,
  type JWK,
  type JWSHeaderParameters,
} from "jose";
import { refuse } from "./json_fields.js";
import { invalid } from "./refusal.js";

/** Keys of an issuer as they were published at one time. */
export interface Keys {
  /** Whether this key is still among them; undefined: none of this set ever was. */
  has(id: string): boolean;
  /**
   * The key that a token's header asks for; undefined: there is none of its `kid`.
   *
   * @throws Refusal where it asks for one that cannot have signed it, or for several
   */
  find(header: JWSHeaderParameters): Promise<FoundKey | undefined>;
}

/** A key, and what it is known by: all of it, so that another key of the same `kid` is another one. */
export interface FoundKey {
  readonly id: string;
  readonly key: CryptoKey;
}

/** More than any issuer has, of whom each key is asked for at a token without a kid. */
const mostKeys = 100;

/**
 * The keys of a set that can check signatures; others are not taken from it.
 *
 * @throws FileRefusal where there is none, or it is no key set
 */
export function toKeys(value: unknown): Keys {
  const { keys } = (typeof value === "object" && value !== null ? value : {}) as { keys?: unknown };
  if (!Array.isArray(keys)) return refuse("", 'it is no key set: { "keys": [ … ] }.');
  if (keys.length > mostKeys) refuse("keys", `there may be ${mostKeys} keys at most.`);
  const usable = keys.filter(isPublicKey).map((jwk) => ({
    id: JSON.stringify(jwk),
    kid: jwk.kid,
    // jose knows which key may sign by which algorithm, and imports it once.
    find: createLocalJWKSet({ keys: [jwk] }),
  }));
  if (usable.length === 0) refuse("keys", "there is no public key that checks signatures.");
  const ids = new Set(usable.map(({ id }) => id));
  return {
    has: (id) => ids.has(id),
    async find(header) {
      const { kid } = header;
      const named = kid === undefined ? usable : usable.filter((each) => each.kid === kid);
      if (named.length === 0) return undefined;
      const found: FoundKey[] = [];
      for (const { id, find } of named) {
        try {
          found.push({ id, key: await find(header) });
        } catch (error) {
          if (!(error instanceof errors.JOSEError)) throw invalid("key");
        }
      }
      const [first] = found;
      // Without a kid one key has to be the only one that can have signed it.
      if (!first || found.length > 1) throw invalid("key");
      return first;
    },
  };
}

/** A secret or a private key has no place in a key set that everybody may read. */
function isPublicKey(value: unknown): value is JWK {
  if (typeof value !== "object" || value === null) return false;
  const { kty, d, k, use, kid } = value as JWK;
  const isNamed = kid === undefined || typeof kid === "string";
  return typeof kty === "string" && kty !== "oct" && !d && !k && use !== "enc" && isNamed;
}
