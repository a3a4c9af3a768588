import type { IncomingHttpHeaders } from "node:http";
import { invalid } from "./refusal.js";

/** No key is longer, and no token that is meant for more than one server. */
const longestToken = 8 * 1024;

/**
 * What is sent as `authorization: Bearer …`; undefined where nothing is.
 *
 * @throws Refusal for another scheme, more than one credential, or one of more than 8 KiB
 */
export function readBearer({ authorization }: IncomingHttpHeaders): string | undefined {
  if (authorization === undefined) return undefined;
  // An array where somebody has put several headers together; Node drops all but the first.
  if (typeof authorization !== "string") throw invalid("several headers");
  if (authorization.length > longestToken + "Bearer ".length) throw invalid("too long");
  const [, token] = /^bearer +([\w.~+/-]+=*)$/i.exec(authorization) ?? [];
  if (token === undefined) throw invalid("no bearer");
  if (token.length > longestToken) throw invalid("too long");
  return token;
}

/**
 * Refuses a request with two authorization headers: Node shows the first only, a proxy before us may
 * have looked at the other.
 *
 * @param rawHeaders names and values in turn, as they came
 * @throws Refusal
 */
export function checkOneAuthorization(rawHeaders: readonly string[]): void {
  let count = 0;
  for (let i = 0; i < rawHeaders.length; i += 2) {
    const name = rawHeaders[i] as string;
    if (name.length === 13 && name.toLowerCase() === "authorization") count++;
  }
  if (count > 1) throw invalid("several headers");
}
