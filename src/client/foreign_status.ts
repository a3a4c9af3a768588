/** What an HTTP status says that is not the service's but of something before it. */
import { Code } from "@connectrpc/connect";

/** Whether it tells of trouble that another try may not meet. */
export const isPassing = (status: number) => status >= 500 || status === 408 || status === 429;

const headersTooLarge =
  "are the headers too large for it (nginx: large_client_header_buffers, haproxy: tune.bufsize, " +
  "Envoy: max_request_headers_kb)?";

/** What to do, and the code if it is not the one that connect maps the status to. */
const advices: Record<number, readonly [string, Code?]> = {
  400: [
    `is it a port of TLS, so that the URL begins with https://, or ${headersTooLarge}`,
    Code.InvalidArgument,
  ],
  401: ["are the headers right that it wants?"],
  407: ["are the headers right that it wants?"],
  408: ["it gave up reading the request (nginx: client_body_timeout)"],
  413: [
    "something before the service takes no request that is so large: raise its limit " +
      '(nginx: "client_max_body_size 0;", the service has a limit of its own)',
    Code.ResourceExhausted,
  ],
  431: [headersTooLarge, Code.InvalidArgument],
  464: [
    "the balancer's target group speaks another version of HTTP (AWS: its protocol version)",
    Code.Unimplemented,
  ],
  502: [
    "the proxy there does not reach the service: does it run, has the proxy its address, and do they " +
      "speak the same (nginx: proxy_pass http:// or https://, grpc_pass grpc:// or grpcs://)?",
  ],
  503: ["no service is ready behind it: ask each for /readyz, and see what its log says"],
  504: [
    "the proxy there waited no longer for the service (nginx: proxy_read_timeout and " +
      "grpc_read_timeout, haproxy: timeout server, Envoy: the route's timeout)",
  ],
};

/** What to do about a status, and the code of an error that tells of it; undefined: nobody knows. */
export function adviceFor(status: number, hostname: string): readonly [string, Code?] | undefined {
  if (status !== 403) return advices[status];
  return [
    "are the headers right that it wants? If it is the service that says so, its log has the " +
      `reason: does it lack "--allowed-hosts ${hostname}"?`,
  ];
}
