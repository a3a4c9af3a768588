/** Behind real proxies, as docs/proxies has them and as people have them: `npm run test:proxies`. */
import { randomBytes } from "node:crypto";
import { lookup } from "node:dns";
import { readFileSync } from "node:fs";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import type { LookupFunction } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { Code, createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { emptyCheckpoint } from "@langchain/langgraph-checkpoint";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import { Health } from "../../gen/health/v1/health_pb.js";
import { captureLog } from "../testing/captured_log.js";
import { createCertificate } from "../testing/certificate.js";
import { noChromium, startChromium } from "../testing/chromium.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { findProgram, type Program, readConfig, startProxy } from "../testing/proxy.js";
import { startTestServer } from "../testing/test_server.js";
import { Endpoint } from "./endpoint.js";
import { ConnectSaver, type ConnectSaverUrlOptions } from "./saver.js";
import { openUpgraded } from "./session_socket.js";

let database: TestDatabase;
let tlsFolder: string;
beforeAll(async () => {
  database = await createDatabase();
  tlsFolder = await mkdtemp(path.join(tmpdir(), "checkpointd-proxy-tls-"));
  const { cert, key } = createCertificate("127.0.0.1");
  await writeFile(path.join(tlsFolder, "cert.pem"), cert);
  await writeFile(path.join(tlsFolder, "key.pem"), key);
  await writeFile(path.join(tlsFolder, "both.pem"), cert + key);
  // Node reads NODE_EXTRA_CA_CERTS once, before this file could make a certificate.
  process.env.NODE_TLS_REJECT_UNAUTHORIZED = "0";
});
afterAll(async () => {
  delete process.env.NODE_TLS_REJECT_UNAUTHORIZED;
  await database?.drop();
  if (tlsFolder) await rm(tlsFolder, { recursive: true });
});

async function serve(port = 0) {
  const { log, lines } = captureLog();
  const server = await startTestServer(database.url, { port, log, drainTimeoutMs: 10_000 });
  onTestFinished(() => server.drain());
  /** How many operations came on sessions, whose requests are numbered, and how many by themselves. */
  const carried = () => {
    const ids = lines({ msg: "call" }).map(({ requestId }) => String(requestId));
    const onSessions = ids.filter((id) => /\/\d+$/.test(id)).length;
    return { onSessions, alone: ids.length - onSessions };
  };
  return { server, carried, lines };
}

/** A configuration and what is changed in it to run here. */
interface Setup {
  program: Program;
  config: () => string;
  scheme?: "https";
  changes: (ports: number[]) => [string, string][];
}

const nginxServers = (ports: number[]) =>
  ports.map((port) => `server 127.0.0.1:${port};`).join(" ");
const haproxyServers = (ports: number[]) =>
  ports.map((port) => `server at${port} 127.0.0.1:${port}`).join("\n    ");

const tracking = "server one 127.0.0.1:8080 proto h2 track sessions/one";
const haproxyPairs = (ports: number[]): [string, string][] => [
  [
    tracking,
    ports
      .map((port) => `server at${port} 127.0.0.1:${port} proto h2 track sessions/at${port}`)
      .join("\n    "),
  ],
  ["server one 127.0.0.1:8080", haproxyServers(ports)],
];

/** As docs/proxies has them. */
const documented: Record<string, Setup> = {
  "nginx-http1.conf": {
    program: "nginx",
    config: () => readConfig("nginx-http1.conf"),
    changes: (ports) => [
      ["listen 80;", "listen 127.0.0.1:PORT;"],
      ["server 127.0.0.1:8080;", nginxServers(ports)],
    ],
  },
  "nginx-http2.conf": {
    program: "nginx",
    scheme: "https",
    config: () => readConfig("nginx-http2.conf"),
    changes: (ports) => [
      ["listen 443 ssl http2;", "listen 127.0.0.1:PORT ssl http2;"],
      ["/etc/nginx/tls/checkpointd.crt", path.join(tlsFolder, "cert.pem")],
      ["/etc/nginx/tls/checkpointd.key", path.join(tlsFolder, "key.pem")],
      ["server 127.0.0.1:8080;", nginxServers(ports)],
    ],
  },
  "haproxy-tcp.cfg": {
    program: "haproxy",
    config: () => readConfig("haproxy-tcp.cfg"),
    changes: (ports) => [
      ["bind :80", "bind 127.0.0.1:PORT"],
      ["server one 127.0.0.1:8080", haproxyServers(ports)],
    ],
  },
  "haproxy-http.cfg": {
    program: "haproxy",
    config: () => readConfig("haproxy-http.cfg"),
    changes: (ports) => [["bind :80", "bind 127.0.0.1:PORT"], ...haproxyPairs(ports)],
  },
  "haproxy-http.cfg with TLS": {
    program: "haproxy",
    scheme: "https",
    config: () => readConfig("haproxy-http.cfg"),
    changes: (ports) => [
      ["bind :80", `bind 127.0.0.1:PORT ssl crt ${tlsFolder}/both.pem alpn h2,http/1.1`],
      ...haproxyPairs(ports),
    ],
  },
  "envoy.yaml": {
    program: "envoy",
    config: () => readConfig("envoy.yaml"),
    changes: (ports) => [
      ["0.0.0.0, port_value: 80 }", "127.0.0.1, port_value: PORT }"],
      ["interval: 2s", "interval: 0.5s"],
      [lastEndpoint, ports.map((port) => lastEndpoint.replace("8080", `${port}`)).join("")],
    ],
  },
};
const lastEndpoint = `              - endpoint:
                  address:
                    socket_address: { address: 127.0.0.1, port_value: 8080 }
`;

async function startSetup(
  { program, config, scheme = "http" as "https", changes }: Setup,
  ports: number[],
) {
  const proxy = await startProxy(program, config(), changes(ports));
  onTestFinished(() => proxy.close());
  return { proxy, url: `${scheme}://127.0.0.1:${proxy.port}` };
}

function open(url: string, options: ConnectSaverUrlOptions = {}): ConnectSaver {
  const saver = ConnectSaver.fromUrl(url, { graph: "g", ...options });
  onTestFinished(() => saver.end());
  return saver;
}

const newConfig = () => ({
  configurable: { thread_id: `t-${randomBytes(4).toString("hex")}`, checkpoint_ns: "" },
});

let versions = 0;

function put(saver: ConnectSaver, config: ReturnType<typeof newConfig>, bytes = 10) {
  const checkpoint = emptyCheckpoint();
  const a = ++versions;
  checkpoint.channel_values = { a: randomBytes(bytes).toString("base64") };
  checkpoint.channel_versions = { a };
  return saver.put(config, checkpoint, { source: "loop", step: 0, parents: {} }, { a });
}

async function count(messages: AsyncIterable<unknown>): Promise<number> {
  let count = 0;
  for await (const _ of messages) count++;
  return count;
}

/** What an agent and a recovery worker do, with values of some MB too. */
async function useAll(saver: ConnectSaver): Promise<void> {
  const config = newConfig();
  const { thread_id: threadId } = config.configurable;
  await put(saver, config);
  const stored = await put(saver, config, 3_000_000);
  await saver.putWrites(stored, [["a", 1]], "task");
  expect((await saver.getTuple(stored))?.checkpoint.channel_values.a).toHaveLength(4_000_000);
  expect(await count(saver.list(config))).toBe(2);
  expect(await count(saver.threads.list({ prefix: threadId }))).toBe(1);
  expect(await saver.threads.get(threadId)).toMatchObject({ threadId, graph: "g" });
  await saver.threads.copy(threadId, `${threadId}-copy`);
  const history = { config: stored, channels: ["a"] };
  expect(await saver.getDeltaChannelHistory(history)).toBeDefined();
  expect(await count(saver.threads.prune({ prefix: threadId, keepLast: 1 }))).toBeGreaterThan(0);
  await saver.deleteThread(threadId);
  await saver.deleteThread(`${threadId}-copy`);
  expect(await count(saver.threads.list({ prefix: threadId }))).toBe(0);
}

const ways: [string, ConnectSaverUrlOptions][] = [
  ["sessions", {}],
  ["connect", { session: false }],
  ["grpc-web", { protocol: "grpc-web" }],
  ["grpc", { protocol: "grpc" }],
];

/** Envoy is not to be had everywhere. */
const isHere = ({ program }: Setup) => program !== "envoy" || findProgram("envoy") !== undefined;
const setups = Object.entries(documented).filter(([, setup]) => isHere(setup));

describe.each(setups)("docs/proxies/%s", (name, setup) => {
  it.each(ways)("carries everything over %s", async (way, options) => {
    const { server, carried } = await serve();
    const { url } = await startSetup(setup, [server.port]);
    const saver = open(url, options);
    if (name === "nginx-http1.conf" && way === "grpc") {
      await expect(saver.getTuple(newConfig())).rejects.toThrow(
        /gRPC needs HTTP\/2 all the way \(nginx: "listen … http2" with grpc_pass/,
      );
      return;
    }
    await useAll(saver);
    if (way === "sessions") expect(carried().onSessions).toBeGreaterThan(5);
    else expect(carried().onSessions).toBe(0);
  });

  it("lets a connection be upgraded, which a session costs least on", async () => {
    const { server } = await serve();
    const { url } = await startSetup(setup, [server.port]);
    const address = { endpoint: new Endpoint(url, lookup as LookupFunction), headers: undefined };
    const session = await openUpgraded(address, new AbortController().signal);
    session.destroy();
  });

  it("loses no call when one service of two stops, and another starts in its place", {
    timeout: 120_000,
  }, async () => {
    const { server: first } = await serve();
    const { server: second } = await serve();
    const { url } = await startSetup(setup, [first.port, second.port]);
    const savers = [open(url), open(url), open(url, { session: false })];
    let isOver = false;
    let calls = 0;
    const agents = savers.flatMap((saver) =>
      Array.from({ length: 4 }, async () => {
        const config = newConfig();
        while (!isOver) {
          await put(saver, config);
          await count(saver.threads.list({ prefix: config.configurable.thread_id }));
          calls += 2;
        }
      }),
    );
    const until = async (more: number) => {
      const goal = calls + more;
      while (calls < goal) await Promise.race([sleep(20), ...agents]);
    };
    await until(100);
    await first.drain();
    await until(100);
    await serve(first.port);
    // The proxy finds it again.
    await sleep(3_000);
    await second.drain();
    await until(100);
    isOver = true;
    await Promise.all(agents);
  });

  it("has sessions again soon after there was nothing behind it", {
    timeout: 120_000,
  }, async () => {
    const { server } = await serve();
    const { url } = await startSetup(setup, [server.port]);
    const saver = open(url, { timeoutMs: 60_000 });
    const config = newConfig();
    await put(saver, config);
    await server.drain();
    const waiting = put(saver, config);
    await sleep(6_000);
    const { carried } = await serve(server.port);
    await waiting;
    await expect
      .poll(async () => {
        await put(saver, config);
        return carried().onSessions;
      })
      .toBeGreaterThan(0);
  });
});

const plain = (server: string): Setup => ({
  program: "nginx",
  config: () => `server { listen 80; ${server} }`,
  changes: ([port = 0]) => [
    ["listen 80", "listen 127.0.0.1:PORT"],
    ["127.0.0.1:8080", `127.0.0.1:${port}`],
  ],
});
const defaultNginx = plain("location / { proxy_pass http://127.0.0.1:8080; }");

describe("as people have them", () => {
  it.each(ways.slice(0, 3))(
    "nginx with nothing but proxy_pass carries calls, %s",
    async (_, options) => {
      const { server, carried } = await serve();
      const { url } = await startSetup(defaultNginx, [server.port]);
      const saver = open(url, options);
      const config = newConfig();
      const stored = await put(saver, config);
      expect(await saver.getTuple(stored)).toBeDefined();
      expect(await count(saver.list(config))).toBe(1);
      const { thread_id: prefix } = config.configurable;
      expect(await count(saver.threads.list({ prefix }))).toBe(1);
      expect(await count(saver.threads.prune({ prefix, keepLast: 1 }))).toBeGreaterThanOrEqual(0);
      expect(carried().onSessions).toBe(0);
    },
  );

  it("nginx with nothing but proxy_pass does not hold back what is streamed", async () => {
    const { server } = await serve();
    const { url } = await startSetup(defaultNginx, [server.port]);
    const transport = createConnectTransport({ baseUrl: url, httpVersion: "1.1" });
    const controller = new AbortController();
    const { signal } = controller;
    for await (const { status } of createClient(Health, transport).watch({}, { signal })) {
      expect(status).toBe(1);
      break;
    }
    controller.abort();
  });

  const limited: [string, Setup][] = [
    ["nginx with nothing but proxy_pass", defaultNginx],
    [
      "nginx with grpc_pass",
      {
        ...plain("location / { grpc_pass grpc://127.0.0.1:8080; }"),
        config: () => "server { listen 80 http2; location / { grpc_pass grpc://127.0.0.1:8080; } }",
      },
    ],
  ];
  it.each(limited)(
    "%s: what is above its 1 MB is told so, at once, and nothing else suffers",
    async (_, setup) => {
      const { server } = await serve();
      const { url } = await startSetup(setup, [server.port]);
      for (const [way, options] of ways) {
        if (way === "grpc" && setup === defaultNginx) continue;
        const saver = open(url, options);
        const config = newConfig();
        await put(saver, config);
        await expect(put(saver, config, 3_000_000)).rejects.toMatchObject({
          code: Code.ResourceExhausted,
          rawMessage: expect.stringMatching(
            /^HTTP 413 from .+: raise its limit \(nginx: "client_max_body_size 0;"/,
          ),
        });
        // On a stream of HTTP/2 it holds for all that a session carried.
        for (let i = 0; i < 5; i++) await put(saver, config, 200_000);
      }
    },
  );

  it("nginx whose service does not answer there says so", async () => {
    const { server } = await serve();
    const { url } = await startSetup(defaultNginx, [server.port]);
    await server.drain();
    for (const [, options] of ways.slice(0, 3)) {
      const saver = open(url, { ...options, timeoutMs: 1_500 });
      await expect(put(saver, newConfig())).rejects.toMatchObject({
        code: Code.Unavailable,
        rawMessage: expect.stringMatching(
          /^HTTP 502 from .+does not reach the service.+proxy_pass.+gave up after/,
        ),
      });
    }
  });

  it("nginx that names itself to the service is told how to allow it", async () => {
    const { server } = await serve();
    const named = plain(
      "location / { proxy_pass http://127.0.0.1:8080; proxy_set_header Host agents.example.com; }",
    );
    const { url } = await startSetup(named, [server.port]);
    for (const [, options] of ways.slice(0, 3)) {
      await expect(put(open(url, options), newConfig())).rejects.toThrow(
        /^\[permission_denied\] HTTP 403 from .+the service.+"--allowed-hosts/,
      );
    }
  });

  it("nginx with TLS and no HTTP/2 carries sessions and calls; gRPC is told what it lacks", async () => {
    const { server, carried } = await serve();
    const tls = `ssl_certificate ${tlsFolder}/cert.pem; ssl_certificate_key ${tlsFolder}/key.pem;`;
    const base = readConfig("nginx-http1.conf").replace("listen 80;", `listen 80 ssl; ${tls}`);
    const setup: Setup = {
      program: "nginx",
      scheme: "https",
      config: () => base,
      changes: (ports) => [
        ["listen 80", "listen 127.0.0.1:PORT"],
        ["server 127.0.0.1:8080;", nginxServers(ports)],
      ],
    };
    const { url } = await startSetup(setup, [server.port]);
    for (const [way, options] of ways) {
      const saver = open(url, options);
      if (way === "grpc") {
        await expect(put(saver, newConfig())).rejects.toThrow(
          /speaks TLS and no HTTP\/2.+gRPC needs HTTP\/2/,
        );
      } else await useAll(saver);
      if (way === "sessions") expect(carried().onSessions).toBeGreaterThan(5);
    }
    const cleartext = open(url.replace("https", "http"));
    await expect(put(cleartext, newConfig())).rejects.toThrow(
      /begin(s)? (the URL )?with https:\/\//,
    );
  });

  it.skipIf(noChromium)("nginx has the page below a path, as docs/inspector.md says", async () => {
    const { server } = await serve();
    const docs = readFileSync(new URL("../../docs/inspector.md", import.meta.url), "utf8");
    const [location = ""] = /location \/checkpointd\/ \{.+?\}/s.exec(docs) ?? [];
    const { url } = await startSetup(plain(location), [server.port]);
    const saver = open(url.replace(/$/, "/checkpointd"));
    const { configurable } = newConfig();
    await put(saver, { configurable });
    const chromium = await startChromium();
    onTestFinished(() => chromium.close());
    const page = await chromium.browser.newPage();
    await page.goto(`${url}/checkpointd/?prefix=${configurable.thread_id}`);
    await page.locator(".row").first().click();
    await page.getByRole("heading", { level: 1, name: configurable.thread_id }).waitFor();
    await page.locator(".history li").first().waitFor();
  });

  it("haproxy in mode http with nothing else carries all but gRPC's own errors", async () => {
    const { server, carried } = await serve();
    const setup: Setup = {
      program: "haproxy",
      config: () =>
        "defaults\n mode http\n timeout connect 5s\n timeout client 30s\n timeout server 30s\nlisten x\n bind :80\n server one 127.0.0.1:8080\n",
      changes: (ports) => [
        ["bind :80", "bind 127.0.0.1:PORT"],
        ["server one 127.0.0.1:8080", haproxyServers(ports)],
      ],
    };
    const { url } = await startSetup(setup, [server.port]);
    for (const [way, options] of ways) {
      await useAll(open(url, options));
      if (way === "sessions") expect(carried().onSessions).toBeGreaterThan(5);
    }
  });

  it.runIf(findProgram("envoy"))(
    "Envoy that lets nothing be upgraded has sessions on streams of HTTP/2",
    async () => {
      const { server, carried } = await serve();
      const setup: Setup = {
        ...(documented["envoy.yaml"] as Setup),
        config: () =>
          readConfig("envoy.yaml").replace(
            / +upgrade_configs:\n +- upgrade_type: checkpointd-session\n/,
            "",
          ),
      };
      expect(setup.config()).not.toContain("upgrade_configs");
      const { url } = await startSetup(setup, [server.port]);
      await useAll(open(url));
      expect(carried().onSessions).toBeGreaterThan(5);
    },
  );
});
