import type { ConnectRouter, ConnectRouterOptions } from "@connectrpc/connect";
import { Code, ConnectError, createConnectRouter } from "@connectrpc/connect";
import type { connectNodeAdapter } from "@connectrpc/connect-node";
import {
  universalRequestFromNodeRequest,
  universalResponseToNodeResponse,
} from "@connectrpc/connect-node";
import { sessionPath } from "../envelope.js";
import type { Log } from "../log.js";

/** A listener of Node's http and http2 servers. */
export type NodeHandler = ReturnType<typeof connectNodeAdapter>;

/**
 * Answers the RPCs of the routes; everything else goes to `fallback`. `carrySession` may take a
 * session over before the routes see it.
 *
 * Stands in for connectNodeAdapter, which prints a stack to the console for every reader that
 * goes away, and answers an unknown gRPC method with a plain 404 that gRPC clients report as a
 * broken stream.
 */
export function createHandler(
  routes: (router: ConnectRouter) => void,
  options: ConnectRouterOptions,
  log: Log,
  carrySession: (...exchange: Parameters<NodeHandler>) => boolean,
  fallback: NodeHandler,
): NodeHandler {
  const router = createConnectRouter(options);
  routes(router);
  const handlers = new Map(router.handlers.map((handler) => [handler.requestPath, handler]));
  return (request, response) => {
    const path = request.url?.split("?", 1)[0] ?? "";
    if (path === sessionPath && carrySession(request, response)) return;
    const handler = handlers.get(path);
    if (handler === undefined) {
      if (!request.headers["content-type"]?.startsWith("application/grpc")) {
        fallback(request, response);
        return;
      }
      response.writeHead(200, {
        "content-type": request.headers["content-type"],
        "grpc-status": Code.Unimplemented,
        "grpc-message": "unknown service or method",
      });
      response.end();
      return;
    }
    handler(universalRequestFromNodeRequest(request, response, undefined, undefined))
      .then((answer) => universalResponseToNodeResponse(answer, response))
      .catch((error) => {
        // Mostly a client that went away; the call itself is in the log already.
        log.debug(
          { rpc: handler.requestPath, error: ConnectError.from(error).rawMessage },
          "answer not delivered",
        );
      });
  };
}
