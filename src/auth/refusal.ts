/** How a credential is refused. A client learns that much; the log learns why, never of what. */
import { CheckpointdError, type ErrorReason } from "../errors.js";

/**
 * A refused credential. `why` is one of few fixed words for the log, such as "audience": no token,
 * key or claim is in it.
 */
export class Refusal extends CheckpointdError {
  constructor(
    reason: ErrorReason,
    text: string,
    readonly why: string,
    /** The name of the principal, where it is known. */
    readonly who?: string,
  ) {
    super("unauthenticated", text, { reason });
  }
}

/** The request brings nothing that could be looked at. */
export function missing(): Refusal {
  return new Refusal(
    "CREDENTIAL_MISSING",
    "this server asks who calls: send authorization: Bearer and an API key or a token, " +
      "or connect with a client certificate",
    "missing",
  );
}

/** What it brings is nobody's; the client is not told why. */
export function invalid(why: string): Refusal {
  return new Refusal("CREDENTIAL_INVALID", "the credential is not accepted", why);
}

/** What it brings is not looked at now, and may be later. */
export function tooManyTokens(): CheckpointdError {
  return new CheckpointdError("resource_exhausted", "too many new tokens at once, try again", {
    reason: "OVERLOADED",
  });
}

/** What it brings was somebody's. */
export function expired(who?: string): Refusal {
  const text = "the credential has expired; get a new one";
  return new Refusal("CREDENTIAL_EXPIRED", text, "expired", who);
}

/** What it brought before is no longer what it was: taken away, or with other rights. */
export function changed(who: string): Refusal {
  const text = "the credential was taken away or its rights were changed; authenticate again";
  return new Refusal("CREDENTIAL_CHANGED", text, "changed", who);
}
