/** Behind real proxies, as docs/proxies has them and as people have them: `npm run test:proxies`. */
import { randomBytes } from "node:crypto";
import { emptyCheckpoint } from "@langchain/langgraph-checkpoint";
import { afterAll, beforeAll, describe, it, onTestFinished } from "vitest";
import type { Server } from "../server/server.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { type Program, readConfig, startProxy } from "../testing/proxy.js";
import { startTestServer } from "../testing/test_server.js";
import { ConnectSaver, type ConnectSaverUrlOptions } from "./saver.js";

let database: TestDatabase;
let server: Server;
beforeAll(async () => {
  database = await createDatabase();
  server = await startTestServer(database.url);
});
afterAll(async () => {
  await server?.drain();
  await database?.drop();
});

const configs: Record<string, [Program, () => string, [string, string][]]> = {
  "nginx-http1": [
    "nginx",
    () => readConfig("nginx-http1.conf"),
    [["listen 80;", "listen 127.0.0.1:PORT;"]],
  ],
  "nginx default": [
    "nginx",
    () => "server { listen 127.0.0.1:80; location / { proxy_pass http://127.0.0.1:8080; } }",
    [["127.0.0.1:80;", "127.0.0.1:PORT;"]],
  ],
  "nginx-http2 plain": [
    "nginx",
    () => readConfig("nginx-http2.conf"),
    [
      ["listen 443 ssl http2;", "listen 127.0.0.1:PORT http2;"],
      ["ssl_certificate     /etc/nginx/tls/checkpointd.crt;", ""],
      ["ssl_certificate_key /etc/nginx/tls/checkpointd.key;", ""],
    ],
  ],
  "nginx-http2 1m": [
    "nginx",
    () => readConfig("nginx-http2.conf").replace("client_max_body_size 0;", ""),
    [
      ["listen 443 ssl http2;", "listen 127.0.0.1:PORT http2;"],
      ["ssl_certificate     /etc/nginx/tls/checkpointd.crt;", ""],
      ["ssl_certificate_key /etc/nginx/tls/checkpointd.key;", ""],
    ],
  ],
  "haproxy-tcp": [
    "haproxy",
    () => readConfig("haproxy-tcp.cfg"),
    [["bind :80", "bind 127.0.0.1:PORT"]],
  ],
  "haproxy-http": [
    "haproxy",
    () => readConfig("haproxy-http.cfg"),
    [["bind :80", "bind 127.0.0.1:PORT"]],
  ],
  "haproxy-http plain": [
    "haproxy",
    () =>
      "defaults\n mode http\n timeout connect 5s\n timeout client 30s\n timeout server 30s\nlisten x\n bind :80\n server one 127.0.0.1:8080\n",
    [["bind :80", "bind 127.0.0.1:PORT"]],
  ],
  envoy: [
    "envoy",
    () => readConfig("envoy.yaml"),
    [
      ["port_value: 80 }", "port_value: PORT }"],
      ["port_value: 8080 }", "port_value: UPSTREAM }"],
    ],
  ],
};

const ways: [string, ConnectSaverUrlOptions][] = [
  ["sessions", {}],
  ["calls", { session: false }],
  ["grpc", { protocol: "grpc" }],
  ["grpc-web", { protocol: "grpc-web" }],
];

describe.each(Object.entries(configs))("%s", (_, [program, config, changes]) => {
  it.each(ways)("%s", async (_, options) => {
    const up = new URL(server.url).port;
    const proxy = await startProxy(program, config(), [
      ...changes.map(([a, b]) => [a, b.replace("UPSTREAM", up)] as const),
      ...(config().includes("127.0.0.1:8080")
        ? [["127.0.0.1:8080", `127.0.0.1:${up}`] as const]
        : []),
    ]);
    onTestFinished(() => proxy.close());
    const saver = ConnectSaver.fromUrl(`http://127.0.0.1:${proxy.port}`, {
      ...options,
      timeoutMs: 6000,
      graph: "g",
    });
    onTestFinished(() => saver.end());
    const out: Record<string, unknown> = {};
    const tell = async (name: string, f: () => Promise<unknown>) => {
      const t = performance.now();
      try {
        out[name] = `ok ${await f()} ${Math.round(performance.now() - t)} ms`;
      } catch (e) {
        out[name] = `${Math.round(performance.now() - t)} ms: ${(e as Error).message}`;
      }
    };
    const config1 = {
      configurable: { thread_id: `t${randomBytes(4).toString("hex")}`, checkpoint_ns: "" },
    };
    const put = (bytes: number) => {
      const cp = emptyCheckpoint();
      cp.channel_values = { a: randomBytes(bytes).toString("base64") };
      cp.channel_versions = { a: 1 };
      return saver.put(config1, cp, { source: "loop", step: 0, parents: {} }, { a: 1 });
    };
    await tell("put", () => put(10).then(() => ""));
    await tell("getTuple", () => saver.getTuple(config1).then((t) => t?.checkpoint.id.length));
    await tell("list", async () => {
      let n = 0;
      for await (const _ of saver.list(config1)) n++;
      return n;
    });
    await tell("threads", async () => {
      let n = 0;
      for await (const _ of saver.threads.list({ limit: 5 })) n++;
      return n;
    });
    await tell(
      "get",
      async () => (await saver.threads.get(config1.configurable.thread_id))?.status,
    );
    await tell("put5MB", () => put(5_000_000).then(() => ""));
    await tell("getTuple", () => saver.getTuple(config1).then((t) => t?.checkpoint.id.length));
    console.log(JSON.stringify(out, null, 1), proxy.log().slice(0, 1500));
  });
});
