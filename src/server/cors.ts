import { cors } from "@connectrpc/connect";
import { requestIdHeader, retryAfterHeader } from "../protocol/wire.js";
import type { NodeRequest, NodeResponse } from "./http.js";

const allowMethods = cors.allowedMethods.join(", ");
const allowHeaders = [...cors.allowedHeaders, "Authorization", requestIdHeader].join(", ");
const exposeHeaders = [...cors.exposedHeaders, requestIdHeader, retryAfterHeader].join(", ");
// Two hours: the longest that Chromium keeps a preflight.
const maxAge = "7200";

/**
 * Creates the CORS step of a listener, for pages of the named origins ("*" names all; an
 * origin is compared as the browser writes it, such as `https://app.example.com`).
 *
 * The step sets the headers that the response needs and returns true when it has answered
 * the request itself, which it does with every preflight. A page of another origin gets no
 * CORS headers: its preflight is answered without them, so that the browser stops there.
 * Credentials (cookies) are never allowed.
 */
export function createCors(origins: readonly string[]) {
  const any = origins.includes("*");
  const named = new Set(origins);

  return function answerCors(request: NodeRequest, response: NodeResponse): boolean {
    const { origin } = request.headers;
    const allowed = origin !== undefined && (any || named.has(origin));
    // Caches must keep the answers to several origins apart, those without headers included.
    if (named.size > 0) response.setHeader("Vary", "Origin");
    if (allowed) response.setHeader("Access-Control-Allow-Origin", any ? "*" : origin);
    // For what a page loads without asking, such as a script: it is none, and nobody keeps it.
    response.setHeader("Cross-Origin-Resource-Policy", allowed ? "cross-origin" : "same-origin");
    response.setHeader("X-Content-Type-Options", "nosniff");
    response.setHeader("Cache-Control", "no-store");

    const isPreflight =
      request.method === "OPTIONS" &&
      origin !== undefined &&
      request.headers["access-control-request-method"] !== undefined;
    if (!isPreflight) {
      if (allowed) response.setHeader("Access-Control-Expose-Headers", exposeHeaders);
      return false;
    }
    if (allowed) {
      response.setHeader("Access-Control-Allow-Methods", allowMethods);
      response.setHeader("Access-Control-Allow-Headers", allowHeaders);
      response.setHeader("Access-Control-Max-Age", maxAge);
    }
    response.writeHead(204);
    response.end();
    return true;
  };
}
