/** Where requests are asked who sends them, before anything of them is read. */
import type { IncomingMessage } from "node:http";
import type { Http2ServerRequest } from "node:http2";
import type { Authenticator } from "../auth/authenticator.js";
import { checkOneAuthorization } from "../auth/bearer.js";
import type { Principal } from "../auth/principal.js";
import { Refusal } from "../auth/refusal.js";
import type { Audit } from "./audit.js";
import { peerCertificate } from "./tls.js";
import type { Usage } from "./usage.js";

/** What a server has that asks who calls. */
export interface Gate {
  readonly authenticator: Authenticator;
  readonly usage: Usage;
  readonly audit: Audit;
  /** How many credentials were refused, by why: one of the fixed words of {@link Refusal}. */
  readonly refused: Map<string, number>;
}

/**
 * Tells `then` who sends a request, or why it is refused: at once where that is known, which it is for
 * all but new tokens. What `then` throws, this throws or rejects with.
 */
export function enter(
  { authenticator, refused }: Gate,
  request: IncomingMessage | Http2ServerRequest,
  then: (principal: Principal | undefined, refusal?: unknown) => void,
): void | Promise<void> {
  let found: Principal | Promise<Principal>;
  const refuse = (error: unknown) => {
    if (error instanceof Refusal) refused.set(error.why, (refused.get(error.why) ?? 0) + 1);
    then(undefined, error);
  };
  try {
    checkOneAuthorization(request.rawHeaders);
    found = authenticator.authenticate(request.headers, peerCertificate(request));
  } catch (error) {
    refuse(error);
    return;
  }
  const admit = (principal: Principal) => {
    const carrier = "stream" in request ? request.stream.session : request.socket;
    if (carrier) callers.set(carrier, principal);
    then(principal);
  };
  return found instanceof Promise ? found.then(admit, refuse) : admit(found);
}

/** Who called last, by the connection or the session of HTTP/2. */
const callers = new WeakMap<object, Principal>();

/** Who called last on a connection; undefined: nobody was asked. */
export const callerOf = (carrier: object): Principal | undefined => callers.get(carrier);
