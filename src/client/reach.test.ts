/** What a saver is told by what is at its URL, when that is not the service. */
import http from "node:http";
import http2 from "node:http2";
import https from "node:https";
import net from "node:net";
import { inspect } from "node:util";
import { Code, ConnectError } from "@connectrpc/connect";
import { describe, expect, it, onTestFinished } from "vitest";
import { createCertificate } from "../testing/certificate.js";
import { startEchoServer } from "../testing/echo_server.js";
import { startRelay } from "../testing/relay.js";
import { ConnectSaver, type ConnectSaverUrlOptions } from "./saver.js";

const ways: [string, ConnectSaverUrlOptions][] = [
  ["sessions", {}],
  ["connect", { session: false }],
  ["grpc", { protocol: "grpc" }],
  ["grpc-web", { protocol: "grpc-web" }],
];

const secret = "Bearer 5ecr3t";

async function listen(server: net.Server): Promise<string> {
  const sockets = new Set<net.Socket>();
  server.on("connection", (socket: net.Socket) => {
    sockets.add(socket);
    socket.on("error", () => {});
  });
  for (const event of ["sessionError", "tlsClientError"]) server.on(event, () => {});
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  onTestFinished(() => {
    server.close();
    for (const socket of sockets) socket.destroy();
  });
  return `127.0.0.1:${(server.address() as net.AddressInfo).port}`;
}

async function startHere(path = ""): Promise<string> {
  const server = await startEchoServer(() => {
    throw new ConnectError("reached", Code.NotFound);
  });
  onTestFinished(() => server.stop());
  return server.url + path;
}

/** Both kinds of call: one that is answered once and one that is streamed. */
async function failures(url: string, options: ConnectSaverUrlOptions): Promise<ConnectError[]> {
  const saver = ConnectSaver.fromUrl(url, { ...options, headers: { authorization: secret } });
  onTestFinished(() => saver.end());
  const calls = [
    () => saver.getTuple({ configurable: { thread_id: "t" } }),
    () => saver.threads.list().next(),
  ];
  const errors: ConnectError[] = [];
  for (const call of calls) {
    const error = await call().then(
      () => new Error("it succeeded"),
      (reason: ConnectError) => reason,
    );
    expect(error).toBeInstanceOf(ConnectError);
    // With its causes, as a log has it.
    expect(inspect(error, { depth: 20 })).not.toContain("5ecr3t");
    errors.push(error as ConnectError);
  }
  return errors;
}

const page = (status: number): http.RequestListener => {
  return (_, response) => {
    response.writeHead(status, { "content-type": "text/html" });
    response.end("<h1>hello</h1>");
  };
};
const { cert, key } = createCertificate("127.0.0.1");

/** Where each other try would meet the same: what is there, its URL, and what is told. */
const final: Record<string, [() => Promise<string>, RegExp, Code]> = {
  "an HTTP/1.1 server": [
    async () => `http://${await listen(http.createServer(page(404)))}`,
    /^(there is no checkpointd service at URL \(HTTP 404, text\/html\): is it another server's port|URL is not a checkpointd service, or is behind a proxy that passes no HTTP\/2: it answers in HTTP\/1.1, with status 404. gRPC needs HTTP\/2 all the way \(nginx: .+grpc_pass)/,
    Code.Unimplemented,
  ],
  "a proxy that takes no request so large": [
    async () => `http://${await listen(http2.createServer(page(413) as never))}`,
    /^HTTP 413 from URL: .+ raise its limit \(nginx: "client_max_body_size 0;"/,
    Code.ResourceExhausted,
  ],
  "a proxy that takes no headers so large": [
    async () => `http://${await listen(http2.createServer(page(400) as never))}`,
    /^HTTP 400 from URL: is it a port of TLS.+are the headers too large.+large_client_header_buffers/,
    Code.InvalidArgument,
  ],
  "a name that the service does not answer to": [
    async () => `http://${await listen(http2.createServer(page(403) as never))}`,
    /^HTTP 403 from URL: .+does it lack "--allowed-hosts 127.0.0.1"/,
    Code.PermissionDenied,
  ],
  "an HTTP/2 server": [
    async () => `http://${await listen(http2.createServer(page(200) as never))}`,
    /^there is no checkpointd service at URL \(HTTP 200, text\/html\): is it another server's port/,
    Code.Unimplemented,
  ],
  "a proxy that wants other credentials": [
    async () => `http://${await listen(http2.createServer(page(401) as never))}`,
    /^HTTP 401 from URL: are the headers right/,
    Code.Unauthenticated,
  ],
  "a server of something else": [
    async () =>
      `http://${await listen(net.createServer((socket) => socket.write("220 hello\r\n")))}`,
    /^URL is not a checkpointd service: it speaks no HTTP/,
    Code.Unimplemented,
  ],
  "a path that does not exist": [
    () => startHere("/api/checkpoints"),
    /there is no checkpointd service at URL(?=.*path)/,
    Code.Unimplemented,
  ],
  "the service in cleartext, for https:": [
    async () => (await startHere()).replace("http:", "https:"),
    /^URL does not speak TLS: begin the URL with http:\/\/$/,
    Code.FailedPrecondition,
  ],
  "a TLS server, for http:": [
    async () => `http://${await listen(https.createServer({ cert, key }, page(200)))}`,
    /^URL speaks TLS: begin the URL with https:\/\/$/,
    Code.FailedPrecondition,
  ],
  "a certificate that nobody vouches for": [
    async () =>
      `https://${await listen(http2.createSecureServer({ cert, key }, page(200) as never))}`,
    /^the certificate of URL is not trusted \(.+\); the option tls.ca, or NODE_EXTRA_CA_CERTS/,
    Code.FailedPrecondition,
  ],
};

describe.each(ways)("over %s, a call is told at once of", (_, options) => {
  it.each(Object.entries(final))("%s", async (_, [start, told, code]) => {
    const url = await start();
    for (const error of await failures(url, options)) {
      expect(error.rawMessage.replace(url, "URL")).toMatch(told);
      expect(error.rawMessage).not.toContain("gave up");
      expect(error.code).toBe(code);
    }
  });
});

describe.each(ways.slice(0, 3))(
  "over %s, a call goes on to its deadline, and is told of",
  (_, options) => {
    const brief = { ...options, timeoutMs: 1_000, retry: { initialDelayMs: 50, maxDelayMs: 50 } };

    it.each<[string, () => Promise<string>, RegExp]>([
      [
        "a port on which nobody listens",
        async () => "http://127.0.0.1:1",
        /^cannot reach URL: nothing listens there; .+\(connect ECONNREFUSED 127.0.0.1:1\); gave up/,
      ],
      [
        "a name of which there are several addresses",
        async () => "http://localhost:1",
        /^cannot reach URL: nothing listens there; .+\(connect ECONNREFUSED .+\); gave up after/,
      ],
      [
        "a host that does not exist",
        async () => "http://no.such.host.invalid:80",
        /^cannot reach .+: (there is no host of that name|the host's name cannot be resolved now) /,
      ],
      [
        "a proxy without a server behind it",
        async () => `http://${await listen(http.createServer(page(503)))}`,
        /^(HTTP 503 from URL: no service is ready behind it.+|cannot reach URL: it answers in HTTP\/1.1, with status 503 .+)gave up after/,
      ],
      [
        "a proxy of HTTP/2 without a server behind it",
        async () => `http://${await listen(http2.createServer(page(502) as never))}`,
        /^HTTP 502 from URL: the proxy there does not reach the service.+proxy_pass.+; gave up after/,
      ],
      [
        "a port that closes each connection",
        async () => `http://${await listen(net.createServer((socket) => socket.end()))}`,
        /^cannot reach URL: it closes connections; .+ gave up after/,
      ],
      [
        "a mute port",
        async () => `http://${await listen(net.createServer((socket) => socket.resume()))}`,
        /nothing was heard from URL: it accepts connections and says nothing/,
      ],
      [
        "a mute port, for https:",
        async () => `https://${await listen(net.createServer((socket) => socket.resume()))}`,
        /nothing was heard from URL: (it accepts connections and says nothing|.+does it speak TLS)/,
      ],
    ])("%s", async (_, start, told) => {
      const url = await start();
      for (const error of await failures(url, brief)) {
        expect(error.rawMessage.replace(url, "URL")).toMatch(told);
        expect([Code.Unavailable, Code.DeadlineExceeded]).toContain(error.code);
      }
    });

    it("a service that comes late", async () => {
      const url = await startHere();
      const relay = await startRelay(() => Number(new URL(url).port));
      onTestFinished(() => relay.close());
      relay.door = "accepts and closes";
      setTimeout(() => {
        relay.door = "open";
      }, 300);
      const patient = { ...brief, timeoutMs: 20_000 };
      for (const error of await failures(relay.url, patient))
        expect(error.rawMessage).toMatch(/^reached/);
    });

    it("a service that went away", async () => {
      const url = await startHere();
      const relay = await startRelay(() => Number(new URL(url).port));
      const saver = ConnectSaver.fromUrl(relay.url, brief);
      onTestFinished(() => saver.end());
      const call = () => saver.getTuple({ configurable: { thread_id: "t" } });
      await expect(call()).rejects.toThrow("reached");
      relay.close();
      await expect(call()).rejects.toThrow(`cannot reach ${relay.url}: nothing listens there`);
    });
  },
);

it("asks what is there without the caller's headers", async () => {
  const seen: http.IncomingHttpHeaders[] = [];
  const server = http.createServer((request, response) => {
    if (request.url?.endsWith("/healthz")) seen.push(request.headers);
    response.writeHead(404).end();
  });
  // Other protocols ask what they came to ask.
  await failures(`http://${await listen(server)}`, { protocol: "grpc" });
  expect(seen).toHaveLength(1);
  expect(seen[0]?.authorization).toBeUndefined();
});
