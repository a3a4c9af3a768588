import { timingSafeEqual } from "node:crypto";
import { setMaxListeners } from "node:events";
import { hashKey } from "./api_keys.js";
import type { Authenticator } from "./authenticator.js";
import { readBearer } from "./bearer.js";
import { operations, type Principal } from "./principal.js";
import { invalid, missing } from "./refusal.js";

/** An authenticator without an auth file: whoever has this key may do everything. */
export function createKeyAuthenticator(key: string): Authenticator {
  const hash = Buffer.from(hashKey(key));
  const { signal: ends } = new AbortController();
  // Every session and stream listens.
  setMaxListeners(0, ends);
  const principal: Principal = {
    name: "token",
    credential: "token file",
    tenant: "",
    grants: [{ operations: new Set(operations), threads: [{ kind: "all" }] }],
    expiresAt: Number.POSITIVE_INFINITY,
    limits: {},
    ends,
  };
  return {
    authenticate(headers) {
      const bearer = readBearer(headers);
      if (bearer === undefined) throw missing();
      if (!timingSafeEqual(Buffer.from(hashKey(bearer)), hash)) throw invalid("unknown key");
      return principal;
    },
    tenants: new Map(),
    stop() {},
  };
}
