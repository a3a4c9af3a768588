/** What a web page must not do that a browser lets it do: see docs/operate.md, "Browsers". */
import { BlockList, isIP } from "node:net";
import type { NodeRequest } from "./http.js";

const loopback = new BlockList();
loopback.addSubnet("127.0.0.0", 8, "ipv4");
loopback.addAddress("::1", "ipv6");

/** Whether an address or a name leads to the machine itself. */
export function isLoopback(host: string): boolean {
  const name = host
    .toLowerCase()
    .replace(/^\[(.*)\]$/, "$1")
    .replace(/\.$/, "");
  const family = isIP(name);
  if (family === 0) return name === "localhost" || name.endsWith(".localhost");
  return loopback.check(name, family === 4 ? "ipv4" : "ipv6");
}

/**
 * Returns a function that tells why a request is refused, in a sentence for who runs the server;
 * undefined if it is not.
 *
 * A server on loopback answers only to the names of loopback and those that are allowed: any page
 * may have the name it came from lead to 127.0.0.1 (DNS rebinding) and is of the same origin then.
 * On another address it answers to every name, unless some are allowed: then to these and loopback's.
 *
 * An Origin has to be allowed, or to be that of the host that is asked. Programs send none; a page
 * that may not read the answer could still write.
 */
export function createWebGuard(
  listensOn: string,
  allowedHosts: readonly string[],
  corsOrigins: readonly string[],
): (request: NodeRequest) => string | undefined {
  const hosts = new Set(allowedHosts.map((host) => host.toLowerCase()));
  const isAnyHost = hosts.size === 0 && !isLoopback(listensOn);
  const origins = new Set(corsOrigins);
  return (request) => {
    const asked = "authority" in request ? request.authority : request.headers.host;
    const url = `http://${asked}`;
    // What makes no URL is refused for that. A balancer's probe asks an address.
    if (asked === undefined || !URL.canParse(url)) return undefined;
    if (request.url === "/healthz" || request.url === "/readyz") return undefined;
    const { hostname, host } = new URL(url);
    if (!isAnyHost && !isLoopback(hostname) && !hosts.has(hostname)) {
      return `not served under the name ${hostname}: allow it with --allowed-hosts`;
    }
    const { origin } = request.headers;
    if (origin === undefined || origins.has("*") || origins.has(origin)) return undefined;
    // Without the scheme, which is another one before a proxy that ends TLS.
    if (URL.canParse(origin) && new URL(origin).host === host) return undefined;
    return "pages of this origin may not call: allow it with --cors-origins";
  };
}
