import { createHash } from "node:crypto";
import type { IncomingHttpHeaders } from "node:http";
import type { PeerCertificate } from "node:tls";
import type { Log } from "../log.js";
import { hashKey, isKey, keyPrefix } from "./api_keys.js";
import { readBearer } from "./bearer.js";
import { endOf, namesOf } from "./certificates.js";
import { type Clock, systemClock } from "./clock.js";
import { fetchKeys, type IssuerKeys } from "./issuer_keys.js";
import { createLivePrincipals, type Live } from "./live_principals.js";
import { type Loaded, loadAuthFile, watchFiles } from "./load.js";
import type { Principal } from "./principal.js";
import { changed, expired, invalid, missing, Refusal, tooManyTokens } from "./refusal.js";
import { type Credential, describe, identify, isSame } from "./rules.js";
import { claimedIssuer, verifyToken } from "./tokens.js";

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
  /** By default the machine's. */
  readonly clock?: Clock;
  /** What a fetch of an issuer's keys may take; by default 5 s. */
  readonly fetchTimeoutMs?: number;
  /** How many tokens and certificates are remembered, of each; by default 10,000. */
  readonly remembered?: number;
  /** Is told of each auth file that was read, the first one too, and of each that was refused. */
  readonly onLoad?: (told: LoadTold) => void;
}

/** What an auth file changed, or why it is not in force. */
export interface LoadTold {
  /** Of the whole file. */
  readonly sha256?: string;
  readonly principals?: number;
  readonly keys?: number;
  /** How many credentials were ended by it that were in use. */
  readonly ended?: number;
  /** What is wrong with it: the one before stays in force. */
  readonly error?: string;
}

/** Keys of an issuer, and what they were made by. */
interface KeySource {
  readonly text: string;
  readonly keys: IssuerKeys;
}

/** New tokens that are verified at a time: their signatures share Node's four threads with the disk. */
const mostAtOnce = 1_000;

/**
 * Reads the auth file and follows its changes, as those of the files of keys that it names. A reload
 * changes nothing for whom it changes nothing: the same credential stays the same Principal. A file
 * that is wrong is told in the log, and the one before stays in force.
 *
 * @throws Error whose message names the file and the path inside that is wrong
 */
export async function startAuthenticator(options: AuthenticatorOptions): Promise<Authenticator> {
  const { file, log, clock = systemClock, fetchTimeoutMs = 5_000, remembered = 10_000 } = options;
  const { onLoad = () => {} } = options;
  const live = createLivePrincipals(clock, (credential) => describe(loaded.file, credential));
  /** By the SHA-256 of the credential. */
  const byKey = new Map<string, Principal>();
  const byToken = new Map<string, Principal>();
  const byCertificate = new Map<string, Principal>();
  const verifying = new Map<string, Promise<Principal>>();
  let isStopped = false;
  let loaded = await loadAuthFile(file);
  let keysOf = takeKeys(loaded, new Map());
  beginKeys();
  tellLoaded(0);
  const unwatch = watchFiles(watched, loaded.stamp, clock, reload);

  function tellLoaded(ended: number): void {
    const { sha256, file } = loaded;
    onLoad({ sha256, principals: file.rules.length, keys: file.keys.size, ended });
  }

  function watched(): string[] {
    return [file, ...[...loaded.keyFiles.values()].map(({ path }) => path)];
  }

  /** The keys of each issuer: those of before where nothing changed. */
  function takeKeys(next: Loaded, before: ReadonlyMap<string, KeySource>): Map<string, KeySource> {
    const taken = new Map<string, KeySource>();
    for (const { issuer, jwks } of next.file.issuers.values()) {
      const keyFile = next.keyFiles.get(issuer);
      const text = JSON.stringify([jwks, keyFile?.text]);
      const known = before.get(issuer);
      if (known?.text === text) taken.set(issuer, known);
      else if ("url" in jwks) taken.set(issuer, { text, keys: fetchFor(issuer, jwks.url) });
      else if (keyFile) taken.set(issuer, { text, keys: keyFile.keys });
    }
    return taken;
  }

  function fetchFor(issuer: string, url: string): IssuerKeys {
    return fetchKeys({
      issuer,
      url,
      outageMs: () => loaded.file.issuers.get(issuer)?.outageMs ?? 0,
      clock,
      log,
      timeoutMs: fetchTimeoutMs,
      // Rules are as before, and there may be thousands of tokens.
      onChange: () =>
        void live.endWhere((it) => (isStillValid(it) ? undefined : changed(it.identity.name))),
    });
  }

  async function reload(): Promise<string | undefined> {
    try {
      const next = await loadAuthFile(file);
      if (isStopped) return undefined;
      const before = keysOf;
      loaded = next;
      keysOf = takeKeys(next, before);
      for (const [issuer, source] of before) {
        if (keysOf.get(issuer) !== source) source.keys.stop();
      }
      // At once for keys, which are few.
      const ofKeys = live.endAmong(byKey.values(), whyEnded);
      beginKeys();
      const ended = ofKeys + (await live.endWhere(whyEnded));
      log.info({ keys: next.file.keys.size, ended }, "auth file reloaded");
      tellLoaded(ended);
      return next.stamp;
    } catch (error) {
      const { message } = error as Error;
      log.error({ error: message }, "auth file refused: the one before stays in force");
      onLoad({ error: message });
      return undefined;
    }
  }

  /** Why a principal is no longer what it was; undefined: it is. */
  function whyEnded(it: Live): Refusal | undefined {
    const now = isStillValid(it) ? identify(loaded.file, it.credential) : undefined;
    return isSame(it.identity, now) ? undefined : changed(it.identity.name);
  }

  function isStillValid({ credential }: Live): boolean {
    if (credential.kind === "key") return loaded.file.keys.has(credential.sha256);
    if (credential.kind === "certificate") return true;
    return keysOf.get(credential.issuer)?.keys.has(credential.keyId) ?? false;
  }

  function beginKeys(): void {
    for (const [sha256, principal] of byKey) if (principal.ends.aborted) byKey.delete(sha256);
    for (const sha256 of loaded.file.keys.keys()) {
      if (byKey.has(sha256)) continue;
      const credential: Credential = { kind: "key", sha256 };
      const identity = identify(loaded.file, credential);
      if (identity) byKey.set(sha256, live.begin(credential, identity));
    }
  }

  function begin(credential: Credential): Principal {
    const identity = identify(loaded.file, credential);
    if (!identity) throw invalid("no principal");
    if (identity.expiresAt <= clock.now()) throw expired(identity.name);
    return live.begin(credential, identity);
  }

  function findKey(key: string): Principal {
    const sha256 = hashKey(key);
    const principal = byKey.get(sha256);
    if (!principal) {
      if (loaded.file.keys.has(sha256)) throw invalid("no principal");
      throw invalid(isKey(key) ? "unknown key" : "checksum");
    }
    if (isOver(principal)) throw expired(principal.name);
    return principal;
  }

  function findCertificate(peer: PeerCertificate): Principal {
    const { fingerprint256 } = peer;
    const known = recall(byCertificate, fingerprint256);
    if (known) return known;
    const expiresAt = endOf(peer);
    if (Number.isNaN(expiresAt)) throw invalid("notAfter");
    const principal = begin({ kind: "certificate", names: namesOf(peer), expiresAt });
    return remember(byCertificate, fingerprint256, principal);
  }

  function findToken(token: string): Principal | Promise<Principal> {
    const hash = createHash("sha256").update(token).digest("base64");
    const known = recall(byToken, hash) ?? verifying.get(hash);
    if (known) return known;
    const issuer = claimedIssuer(token);
    if (issuer === undefined || !keysOf.has(issuer)) throw invalid("issuer");
    // Those that wait for an issuer take nothing, and keep no token of another one out.
    let working = verifying.size;
    for (const { keys } of keysOf.values()) working -= keys.waiting;
    if (working >= mostAtOnce) throw tooManyTokens();
    const verified = verify(token, issuer)
      .then((principal) => remember(byToken, hash, principal))
      .finally(() => verifying.delete(hash));
    verifying.set(hash, verified);
    return verified;
  }

  async function verify(token: string, name: string): Promise<Principal> {
    for (;;) {
      const issuer = loaded.file.issuers.get(name);
      const source = keysOf.get(name);
      if (!issuer || !source) throw invalid("issuer");
      // A reload or a fetch may come between, and then what was found is not what counts.
      const isAsBefore = () =>
        keysOf.get(name) === source && loaded.file.issuers.get(name)?.text === issuer.text;
      try {
        const { claims, keyId, expiresAt } = await verifyToken(
          token,
          issuer,
          source.keys,
          clock.now(),
        );
        if (isAsBefore() && source.keys.has(keyId)) {
          return begin({ kind: "token", issuer: name, keyId, claims, expiresAt });
        }
      } catch (error) {
        if (isAsBefore()) throw error;
      }
    }
  }

  const isOver = ({ ends, expiresAt }: Principal) => ends.aborted || expiresAt <= clock.now();

  function recall(map: Map<string, Principal>, hash: string): Principal | undefined {
    const principal = map.get(hash);
    if (!principal || !isOver(principal)) return principal;
    map.delete(hash);
    return undefined;
  }

  /** The oldest is forgotten: who comes with it again is verified again. */
  function remember(map: Map<string, Principal>, hash: string, principal: Principal): Principal {
    if (map.size >= remembered) map.delete(map.keys().next().value as string);
    map.set(hash, principal);
    return principal;
  }

  function logged(error: unknown): unknown {
    if (error instanceof Refusal && error.why !== "missing") {
      const { why, who } = error;
      log.info({ reason: why, ...(who ? { principal: who } : {}) }, "credential refused");
    }
    return error;
  }

  return {
    authenticate(headers, peer) {
      try {
        const bearer = readBearer(headers);
        if (bearer === undefined) {
          if (!peer) throw missing();
          return findCertificate(peer);
        }
        if (bearer.startsWith(keyPrefix)) return findKey(bearer);
        const found = findToken(bearer);
        if (!(found instanceof Promise)) return found;
        return found.catch((error) => {
          throw logged(error);
        });
      } catch (error) {
        throw logged(error);
      }
    },
    get tenants() {
      return loaded.file.tenants;
    },
    stop() {
      isStopped = true;
      unwatch();
      live.stop();
      for (const { keys } of keysOf.values()) keys.stop();
    },
  };
}
