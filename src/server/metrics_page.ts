/** Where metrics are told: on a listener of their own, or beside the RPCs. */
import * as http from "node:http";
import type { AddressInfo } from "node:net";
import type { Log } from "../log.js";
import { contentType } from "../metrics/samples.js";
import { mayAll } from "./access_rules.js";
import { describeCause } from "./call_log.js";
import { enter, type Gate } from "./gate.js";
import type { NodeHandler } from "./handler.js";
import { listen } from "./http.js";
import type { ServerOptions } from "./server.js";
import { createWebGuard } from "./web_guard.js";

/** The path of the page. */
export const metricsPath = "/metrics";

type NodeRequest = Parameters<NodeHandler>[0];
type NodeResponse = Parameters<NodeHandler>[1];

/** A listener for metrics alone. */
export interface MetricsListener {
  readonly url: string;
  /** Cuts whoever is there. */
  close(): Promise<void>;
}

/** Who asks for metrics is one or two programs; a hundred are somebody else. */
const mostConnections = 32;

/**
 * Listens for `GET /metrics`, which asks for no credential. It goes on while the server drains.
 *
 * @throws a sentence for the operator when the address cannot be listened on
 */
async function startMetricsListener(options: {
  host: string;
  port: number;
  allowedHosts: readonly string[];
  page: () => string | Promise<string>;
  log: Log;
}): Promise<MetricsListener> {
  const { host, port, allowedHosts, page, log } = options;
  const refusal = createWebGuard(host, allowedHosts, []);
  const server = http.createServer(
    { headersTimeout: 10_000, requestTimeout: 10_000, connectionsCheckingInterval: 1_000 },
    (request, response) => {
      const refused = refusal(request);
      if (refused !== undefined) answer(response, request, 403, `${refused}\n`);
      else if (pathOf(request) !== metricsPath) answer(response, request, 404, "not found\n");
      else void tellMetrics(request, response, page, log);
    },
  );
  server.maxConnections = mostConnections;
  server.timeout = 30_000;
  await listen(server, host, port);
  server.on("error", (error) => log.error({ err: error }, "a scrape could not be accepted"));
  const bound = (server.address() as AddressInfo).port;
  return {
    url: `http://${host.includes(":") ? `[${host}]` : host}:${bound}${metricsPath}`,
    close: () =>
      new Promise((resolve) => {
        server.close(() => resolve());
        server.closeAllConnections();
      }),
  };
}

/** The listener that a server's options ask for; undefined: none. */
export async function startMetricsPort(
  options: Pick<ServerOptions, "metricsHost" | "metricsPort" | "allowedHosts" | "log">,
  page: () => Promise<string>,
): Promise<MetricsListener | undefined> {
  const { metricsHost: host, metricsPort: port } = options;
  return typeof port === "number"
    ? startMetricsListener({ ...options, host, port, page })
    : undefined;
}

/** Answers with the page. */
async function tellMetrics(
  request: NodeRequest,
  response: NodeResponse,
  page: () => string | Promise<string>,
  log: Log,
): Promise<void> {
  if (request.method !== "GET" && request.method !== "HEAD") {
    answer(response, request, 405, "method not allowed\n", { allow: "GET, HEAD" });
    return;
  }
  try {
    answer(response, request, 200, await page(), { "content-type": contentType });
  } catch (error) {
    log.error({ error: describeCause(error) }, "metrics could not be told");
    answer(response, request, 500, "metrics could not be told; the log has why\n");
  }
}

/**
 * As `tellMetrics`, to those who may: where the server asks who calls, those with `admin` on all threads
 * and of no tenant, since the page tells of all tenants.
 */
export function tellMetricsThroughGate(
  gate: Gate | undefined,
  request: NodeRequest,
  response: NodeResponse,
  page: () => string | Promise<string>,
  log: Log,
): void {
  if (!gate) {
    void tellMetrics(request, response, page, log);
    return;
  }
  enter(gate, request, (principal) => {
    if (principal?.tenant === "" && mayAll(principal, "admin")) {
      void tellMetrics(request, response, page, log);
    } else if (principal) {
      answer(
        response,
        request,
        403,
        "metrics need a principal without a tenant that is granted admin on all threads (*)\n",
      );
    } else {
      const text = "this server asks who calls: send authorization: Bearer and a key\n";
      answer(response, request, 401, text, { "www-authenticate": "Bearer" });
    }
  });
}

/** The page, made anew when the one before is older than `ms`. */
export function keepPage(make: () => string | Promise<string>, ms: number): () => Promise<string> {
  let made = Number.NEGATIVE_INFINITY;
  let page: Promise<string> | undefined;
  return () => {
    const now = performance.now();
    if (page === undefined || now - made > ms) {
      made = now;
      page = Promise.resolve(make());
      page.catch(() => {
        page = undefined;
      });
    }
    return page;
  };
}

/** The path that a request asks for, without what comes after a question mark. */
export const pathOf = ({ url }: Pick<NodeRequest, "url">) => url?.split("?", 1)[0];

function answer(
  response: NodeResponse,
  request: NodeRequest,
  status: number,
  body: string,
  headers: Record<string, string> = {},
): void {
  response.writeHead(status, { "content-type": "text/plain; charset=utf-8", ...headers });
  if (request.method === "HEAD") response.end();
  else response.end(body);
}
