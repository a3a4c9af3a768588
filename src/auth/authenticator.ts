import type { IncomingHttpHeaders } from "node:http";
import type { PeerCertificate } from "node:tls";
import type { Log } from "../log.js";
import type { Principal } from "./principal.js";

/** A tenant of the auth file. */
export interface Tenant {
  /** Postgres' schema of its tables; no two tenants have the same. */
  readonly schema: string;
  /** How many bytes it may store; undefined: no limit. */
  readonly storedBytes?: number;
}

/** Tells who makes a call. */
export interface Authenticator {
  /**
   * Who makes a call, by what the request brings: the bearer of `authorization`, else the verified
   * certificate of the connection. Synchronous where nothing has to be verified or fetched first: for
   * a token that was seen before, for keys and certificates always.
   *
   * @throws CheckpointdError "unauthenticated" (also as a rejection): CREDENTIAL_MISSING,
   *   CREDENTIAL_INVALID or CREDENTIAL_EXPIRED, with fixed texts; the log has more
   */
  authenticate(
    headers: IncomingHttpHeaders,
    peer: PeerCertificate | undefined,
  ): Principal | Promise<Principal>;
  /** Those of the auth file as it is in force now: a new map after a reload. */
  readonly tenants: ReadonlyMap<string, Tenant>;
  /** Ends its timers and requests. What it has authenticated goes on. */
  stop(): void;
}

/** What {@link startAuthenticator} needs. */
export interface AuthenticatorOptions {
  /** The path of the auth file. */
  readonly file: string;
  readonly log: Log;
}

/**
 * Reads the auth file and follows its changes.
 *
 * @throws Error whose message names the path inside the file that is wrong
 */
export async function startAuthenticator(_options: AuthenticatorOptions): Promise<Authenticator> {
  throw new Error("not written yet");
}
