import { once, setMaxListeners } from "node:events";
import * as http from "node:http";
import * as http2 from "node:http2";
import * as net from "node:net";
import { Writable } from "node:stream";
import { Code, ConnectError, createClient, type Transport } from "@connectrpc/connect";
import {
  connectNodeAdapter,
  createConnectTransport,
  createGrpcTransport,
  createGrpcWebTransport,
} from "@connectrpc/connect-node";
import { afterEach, expect, test, vi } from "vitest";
import { CheckpointService } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { Health } from "../../gen/health/v1/health_pb.js";
import { createLog } from "../log.js";
import { createHealth, ServingStatus } from "./health.js";
import { type Listener, type ListenerOptions, startListener } from "./http.js";

const log = createLog("silent");
const started: Listener[] = [];
afterEach(async () => {
  await Promise.all(started.splice(0).map((listener) => listener.drain(0)));
  vi.restoreAllMocks();
});

async function start(options: Partial<ListenerOptions> = {}) {
  const health = createHealth();
  health.setAll(ServingStatus.SERVING);
  const listener = await startListener({
    host: "127.0.0.1",
    port: 0,
    handler: connectNodeAdapter({ routes: (router) => router.service(Health, health.service) }),
    log,
    ...options,
  });
  started.push(listener);
  return { listener, health, baseUrl: `http://127.0.0.1:${listener.port}` };
}

/** A promise and the function that fulfils it. */
function gate() {
  let open = () => {};
  const opened = new Promise<void>((resolve) => {
    open = resolve;
  });
  return { open, opened };
}

function connectRaw({ port }: Listener): net.Socket {
  return net.connect({ port, host: "127.0.0.1", noDelay: true }).on("error", () => {});
}

/** Sends bytes over a connection of its own and returns what came back until it closed. */
async function exchange(listener: Listener, bytes: string | Buffer): Promise<string> {
  const socket = connectRaw(listener);
  const parts: Buffer[] = [];
  socket.on("data", (part) => parts.push(part));
  socket.write(bytes);
  await once(socket, "close");
  return Buffer.concat(parts).toString("latin1");
}

async function readBody(stream: AsyncIterable<Buffer>): Promise<Buffer> {
  const parts: Buffer[] = [];
  for await (const part of stream) parts.push(part);
  return Buffer.concat(parts);
}

/** One request over HTTP/2, answered in full. */
async function ask(session: http2.ClientHttp2Session, headers: http2.OutgoingHttpHeaders) {
  const stream = session.request(headers);
  const [answer] = (await once(stream, "response")) as [http2.IncomingHttpHeaders];
  return { headers: answer, body: (await readBody(stream)).toString() };
}

async function expectServing({ port }: Listener): Promise<void> {
  const baseUrl = `http://127.0.0.1:${port}`;
  const transports = [createGrpcTransport({ baseUrl }), connect11(baseUrl)];
  for (const transport of transports) {
    expect(await createClient(Health, transport).check({})).toMatchObject({ status: 1 });
  }
}

const connect11 = (baseUrl: string) => createConnectTransport({ baseUrl, httpVersion: "1.1" });

test("one port speaks Connect, gRPC and gRPC-Web over HTTP/1.1 and HTTP/2", async () => {
  const { baseUrl, health } = await start();
  const transports: Transport[] = [createGrpcTransport({ baseUrl })];
  for (const httpVersion of ["1.1", "2"] as const) {
    for (const useBinaryFormat of [true, false]) {
      transports.push(createConnectTransport({ baseUrl, httpVersion, useBinaryFormat }));
      transports.push(createGrpcWebTransport({ baseUrl, httpVersion, useBinaryFormat }));
    }
  }
  for (const transport of transports) {
    const client = createClient(Health, transport);
    expect(await client.check({})).toMatchObject({ status: ServingStatus.SERVING });
    const error = await client.check({ service: "nobody" }).catch(ConnectError.from);
    expect(error).toMatchObject({ code: Code.NotFound });
    const done = new AbortController();
    for await (const { status } of client.watch({}, { signal: done.signal })) {
      expect(status).toBe(ServingStatus.SERVING);
      break;
    }
    done.abort(); // leaving the loop does not end the call
  }
  await expect.poll(() => health.watchers()).toBe(0);
});

/** Writes to a connection; the first bytes leave one by one, each in a packet of its own. */
function drip(socket: net.Socket, slowBytes = 60): Writable {
  let left = slowBytes;
  return new Writable({
    async write(chunk: Buffer, _encoding, done) {
      let at = 0;
      for (; at < chunk.length && left > 0; at++, left--) {
        socket.write(chunk.subarray(at, at + 1));
        await new Promise((resolve) => setTimeout(resolve, 1));
      }
      // Nothing is left of a short request, and its answer may have closed the connection.
      if (at === chunk.length) done();
      else socket.write(chunk.subarray(at), done);
    },
  });
}

test("the protocol is told when the first bytes arrive one by one", async () => {
  const { listener } = await start({
    handler: (request, response) => void response.end(`${request.method} ${request.httpVersion}`),
  });
  const proxy = net.createServer((client) => {
    const server = connectRaw(listener);
    server.pipe(client);
    client.pipe(drip(server)).on("finish", () => server.end());
  });
  await once(proxy.listen(0, "127.0.0.1"), "listening");
  const session = http2.connect(`http://127.0.0.1:${(proxy.address() as net.AddressInfo).port}`);
  expect((await ask(session, { ":path": "/" })).body).toBe("GET 2.0");
  session.destroy();
  proxy.close();

  // Both begin as HTTP/2's preface does.
  for (const method of ["PUT", "PROPFIND"]) {
    const socket = connectRaw(listener);
    const answer = readBody(socket);
    drip(socket).write(`${method} / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n`);
    expect((await answer).toString()).toMatch(new RegExp(`\r\n\r\n${method} 1.1$`));
  }
});

test("a first packet that holds a whole request is not lost", async () => {
  const { listener } = await start();
  const head =
    "POST /grpc.health.v1.Health/Check HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n";
  const answer = await exchange(
    listener,
    `${head}content-type: application/json\r\ncontent-length: 2\r\n\r\n{}`,
  );
  expect(answer).toContain('{"status":"SERVING"}');
});

test("garbage is refused and harms nobody", async () => {
  const { listener } = await start();
  const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
  expect(await exchange(listener, "\0\u0001\u0002 garbage\r\n\r\n")).toMatch(/^HTTP\/1.1 400 /);
  expect(await exchange(listener, "PRI * HTTP/1.9\r\n\r\n")).toMatch(/^HTTP\/1.1 400 /);
  const clientHello = Buffer.from("16030100a5010000a10303", "hex");
  expect(await exchange(listener, clientHello)).toMatch(/^HTTP\/1.1 400 /);
  await exchange(listener, "PRI * HTTP/2.0 and then something else, at some length");
  await exchange(listener, `${preface}${"not a frame ".repeat(50)}`);
  await expectServing(listener);
});

test("headers above the limit are refused", async () => {
  const { listener, baseUrl } = await start({ limits: { headerBytes: 4096 } });
  const big = "x".repeat(8192);
  const answer = await exchange(
    listener,
    `GET / HTTP/1.1\r\nhost: localhost\r\nbig: ${big}\r\n\r\n`,
  );
  expect(answer).toMatch(/^HTTP\/1.1 431 /);

  const session = http2.connect(baseUrl);
  await once(session, "remoteSettings"); // until then the client may send Node's 64 KiB
  const stream = session.request({ ":path": "/", big });
  await expect(once(stream, "response")).rejects.toThrow();
  session.destroy();
  await expectServing(listener);
});

test("a host that makes no URL, or none, is answered 400", async () => {
  const { listener } = await start();
  const head = "content-type: application/json\r\nconnection: close\r\ncontent-length: 2\r\n\r\n{}";
  const line = "POST /grpc.health.v1.Health/Check";
  expect(await exchange(listener, `${line} HTTP/1.1\r\nhost: [\r\n${head}`)).toContain(" 400 ");
  expect(await exchange(listener, `${line} HTTP/1.0\r\n${head}`)).toContain(" 400 ");
  await expectServing(listener);
});

test("a handler that throws is answered 500", async () => {
  const { baseUrl } = await start({
    handler: async () => {
      throw new Error("secret");
    },
  });
  const response = await fetch(baseUrl);
  expect(response.status).toBe(500);
  expect(await response.text()).toBe("");
});

test("a client that says nothing, or never ends its headers, is sent away", async () => {
  const { listener } = await start({ limits: { helloMs: 500, headersMs: 500 } });
  const silent = connectRaw(listener).resume();
  await once(silent, "close");
  const partOfPreface = connectRaw(listener).resume();
  partOfPreface.write("PRI * HT");
  await once(partOfPreface, "close");
  expect(await exchange(listener, "GET / HTTP/1.1\r\nhost: localhost\r\nslow: ")).toMatch(/ 408 /);
  await expect.poll(() => listener.connections()).toBe(0);
});

test("connections above the limit are closed", async () => {
  const { listener } = await start({ limits: { connections: 2 } });
  const first = [connectRaw(listener), connectRaw(listener)];
  await Promise.all(first.map((socket) => once(socket, "connect")));
  await once(connectRaw(listener).resume(), "close");
  expect(listener.connections()).toBe(2);
  first[0]?.destroy();
  await expect.poll(() => listener.connections()).toBe(1);
  await expectServing(listener).catch(() => {}); // takes two connections at once
  for (const socket of first) socket.destroy();
});

test("an HTTP/2 client is told how much it may send at once", async () => {
  const { baseUrl } = await start({ limits: { streams: 7 } });
  const session = http2.connect(baseUrl);
  const [settings] = (await once(session, "remoteSettings")) as [http2.Settings];
  expect(settings).toMatchObject({ maxConcurrentStreams: 7, initialWindowSize: 4 * 1024 * 1024 });
  await ask(session, { ":path": "/" });
  expect(session.state.remoteWindowSize).toBe(16 * 1024 * 1024);
  session.destroy();
});

test("a connection is retired at its age", async () => {
  const { baseUrl } = await start({ limits: { ageMs: 50 } });
  const session = http2.connect(baseUrl);
  expect((await once(session, "goaway"))[0]).toBe(http2.constants.NGHTTP2_NO_ERROR);
  await once(session, "close");
});

test("a port in use is told in a sentence", async () => {
  const { listener } = await start();
  const second = startListener({ host: "127.0.0.1", port: listener.port, handler() {}, log });
  await expect(second).rejects.toThrow(
    `cannot listen on 127.0.0.1 port ${listener.port}: another process is listening there`,
  );
  await expect(start({ host: "192.0.2.1" })).rejects.toThrow("this machine has no such address");
});

test("a page of a named origin may call, others may not", async () => {
  const { baseUrl } = await start({ corsOrigins: ["https://app.example"] });
  const url = `${baseUrl}/grpc.health.v1.Health/Check`;
  const preflight = (origin: string) =>
    fetch(url, {
      method: "OPTIONS",
      headers: {
        origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "connect-protocol-version,content-type",
      },
    });

  const allowed = await preflight("https://app.example");
  expect(allowed.status).toBe(204);
  expect(allowed.headers.get("access-control-allow-origin")).toBe("https://app.example");
  expect(allowed.headers.get("access-control-allow-methods")).toBe("POST, GET");
  const allowedHeaders = allowed.headers.get("access-control-allow-headers")?.toLowerCase();
  for (const name of ["content-type", "connect-protocol-version", "x-grpc-web", "grpc-timeout"]) {
    expect(allowedHeaders).toContain(name);
  }
  expect(allowed.headers.get("access-control-max-age")).toBe("7200");
  expect(allowed.headers.get("vary")).toBe("Origin");

  const refused = await preflight("https://app.example.evil");
  expect(refused.status).toBe(204);
  expect([...refused.headers.keys()].filter((name) => name.startsWith("access-"))).toEqual([]);
  expect(refused.headers.get("vary")).toBe("Origin");

  const call = async (origin: string, status = 200) => {
    const headers = { origin, "content-type": "application/json" };
    const response = await fetch(url, { method: "POST", headers, body: "{}" });
    expect(response.status).toBe(status);
    expect(response.headers.get("vary")).toBe("Origin");
    return response.headers;
  };
  const own = await call("https://app.example");
  expect(own.get("access-control-allow-origin")).toBe("https://app.example");
  expect(own.get("access-control-expose-headers")?.toLowerCase()).toContain("grpc-status");
  const other = await call("null", 403);
  expect([...other.keys()].filter((name) => name.startsWith("access-"))).toEqual([]);
});

test("CORS works over HTTP/2, and * names every origin", async () => {
  const { baseUrl } = await start({ corsOrigins: ["*"] });
  const session = http2.connect(baseUrl);
  const path = "/grpc.health.v1.Health/Check";
  const origin = "https://any.example";
  const { headers } = await ask(session, {
    ":method": "OPTIONS",
    ":path": path,
    origin,
    "access-control-request-method": "POST",
  });
  expect(headers[":status"]).toBe(204);
  expect(headers["access-control-allow-origin"]).toBe("*");
  const get = `${path}?encoding=json&message=%7B%7D`;
  const actual = await ask(session, { ":path": get, origin });
  expect(actual.headers["access-control-allow-origin"]).toBe("*");
  session.destroy();
});

const messageBytes = 64 * 1024;

/** A List that goes on for as long as its reader reads, and counts; Put swallows anything. */
async function startSource(messages: number) {
  // connectNodeAdapter writes there when a reader goes away in the middle (from Node 22 on).
  vi.spyOn(console, "error").mockImplementation(() => {});
  const source = { sent: 0, running: 0 };
  const value = { type: "bytes", data: Buffer.alloc(messageBytes) };
  const handler = connectNodeAdapter({
    acceptCompression: [],
    routes: (router) => {
      router.service(CheckpointService, {
        async *list() {
          source.running++;
          try {
            for (let left = messages; left > 0; left--) {
              source.sent++;
              yield { tuple: { blobs: [{ channel: "c", version: "1", value }] } };
            }
          } finally {
            source.running--;
          }
        },
        put: () => ({}),
        getTuple: () => ({}),
      });
    },
  });
  return { ...(await start({ handler })), source };
}

test("a handler is held back by a reader that stalls, and goes on with it", async () => {
  const messages = 1024; // 64 MiB, more than all buffers on the way hold
  const { baseUrl, source } = await startSource(messages);
  const options = { baseUrl, acceptCompression: [] };
  const transports = [
    createGrpcTransport(options),
    createConnectTransport({ ...options, httpVersion: "2" }),
    createConnectTransport({ ...options, httpVersion: "1.1" }),
  ];
  for (const transport of transports) {
    source.sent = 0;
    const client = createClient(CheckpointService, transport);
    const stream = client.list({})[Symbol.asyncIterator]();
    let read = (await stream.next()).done ? 0 : 1;
    // Others are served meanwhile, over HTTP/2 on the same connection.
    for (let i = 0; i < 200; i++) await client.getTuple({ threadId: "t" });
    expect(source.sent).toBeLessThan(messages / 2);
    while (!(await stream.next()).done) read++;
    expect(read).toBe(messages);
  }
  expect(source.running).toBe(0);
});

test("a handler whose stalled reader goes away is ended", async () => {
  const { baseUrl, source } = await startSource(10_000);
  const options = { baseUrl, acceptCompression: [] };
  const transports = [
    createGrpcTransport(options),
    createConnectTransport({ ...options, httpVersion: "2" }),
    createConnectTransport({ ...options, httpVersion: "1.1" }),
  ];
  for (const transport of transports) {
    const client = createClient(CheckpointService, transport);
    const gone = new AbortController();
    const stream = client.list({}, { signal: gone.signal })[Symbol.asyncIterator]();
    await stream.next();
    expect(source.running).toBe(1);
    gone.abort();
    await expect(stream.next()).rejects.toThrow();
    await expect.poll(() => source.running).toBe(0);
  }
});

test("200 stalled readers on one connection do not stop a large Put", async () => {
  const { baseUrl, source, listener } = await startSource(10_000);
  const transport = createGrpcTransport({ baseUrl, acceptCompression: [] });
  const client = createClient(CheckpointService, transport);
  const gone = new AbortController();
  setMaxListeners(0, gone.signal);
  const streams = Array.from({ length: 200 }, () =>
    client.list({}, { signal: gone.signal })[Symbol.asyncIterator](),
  );
  await Promise.all(streams.map((stream) => stream.next()));
  expect(source.running).toBe(200);
  expect(listener.connections()).toBe(1);
  const value = { type: "bytes", data: Buffer.alloc(32 * 1024 * 1024) };
  await client.put({ threadId: "t", blobs: [{ channel: "c", version: "1", value }] });
  gone.abort();
  await Promise.allSettled(streams.map((stream) => stream.next()));
  await expect.poll(() => source.running).toBe(0);
});

/** Answers each request with "begun " at once, and with "done" when the gate opens. */
async function startGated() {
  const { open, opened } = gate();
  const state = { begun: 0, closed: 0 };
  const started = await start({
    async handler(request, response) {
      if (request.url === "/quick") return void response.end("quick");
      state.begun++;
      response.on("close", () => state.closed++);
      if (request.url !== "/late-head") (response as http.ServerResponse).write("begun ");
      await opened;
      response.end("done");
    },
  });
  return { ...started, open, state };
}

test("drain lets streams finish, refuses connections and closes the rest", async () => {
  const { listener, baseUrl, open, state } = await startGated();
  const session = http2.connect(baseUrl);
  const idle = http2.connect(baseUrl);
  await once(idle, "remoteSettings");
  const agent = new http.Agent({ keepAlive: true });
  const get = async (path: string) => {
    const [response] = (await once(http.get(`${baseUrl}${path}`, { agent }), "response")) as [
      http.IncomingMessage,
    ];
    return response;
  };
  await readBody(await get("/quick")); // leaves an idle connection behind
  const silent = connectRaw(listener).resume();
  await once(silent, "connect");

  const over2 = ask(session, { ":path": "/" });
  const over1 = get("/");
  const lateHead = get("/late-head");
  await expect.poll(() => state.begun).toBe(3);
  const idleOver1 = connectRaw(listener).resume();
  idleOver1.write("GET /quick HTTP/1.1\r\nhost: localhost\r\n\r\n");
  await once(idleOver1, "data");

  let drained = false;
  const goaway = once(session, "goaway");
  const gone = [idle, silent, idleOver1].map((it) => once(it, "close"));
  const draining = listener.drain(60_000).then(() => {
    drained = true;
  });
  await goaway;
  await Promise.all(gone);
  const refused = connectRaw(listener).resume();
  const [error] = (await once(refused, "error").catch((reason) => [reason])) as [Error];
  expect(error).toMatchObject({ code: "ECONNREFUSED" });
  await expect.poll(() => listener.connections()).toBe(3);
  expect(drained).toBe(false);

  open();
  expect((await over2).body).toBe("begun done");
  expect((await readBody(await over1)).toString()).toBe("begun done");
  const late = await lateHead;
  expect(late.headers.connection).toBe("close");
  expect((await readBody(late)).toString()).toBe("done");
  await draining;
  expect(listener.connections()).toBe(0);
  await listener.drain(0);
});

test("drain cuts what does not finish in time, and both sides learn of it", async () => {
  const { listener, baseUrl, state } = await startGated();
  const grpc = createClient(Health, createGrpcTransport({ baseUrl }));
  const connect = createClient(Health, connect11(baseUrl));
  const calls = Promise.allSettled([grpc.check({}), connect.check({})]);
  await expect.poll(() => state.begun).toBe(2);
  await listener.drain(50);
  expect(listener.connections()).toBe(0);
  expect((await calls).map(({ status }) => status)).toEqual(["rejected", "rejected"]);
  await expect.poll(() => state.closed).toBe(2);
});

test("a second drain can cut what the first one waits for", async () => {
  const { listener, baseUrl, state } = await startGated();
  const call = createClient(Health, createGrpcTransport({ baseUrl }))
    .check({})
    .catch((error) => error);
  await expect.poll(() => state.begun).toBe(1);
  const patient = listener.drain(600_000);
  await listener.drain(0);
  await patient;
  expect(await call).toBeInstanceOf(Error);
});

test("drain sends a response in full whose reader is slow", async () => {
  const total = 64 * 1024 * 1024;
  const { listener, baseUrl } = await start({
    handler: (_request, response) => void response.end(Buffer.alloc(total)),
  });
  const session = http2.connect(baseUrl);
  const over2 = session.request({ ":path": "/" });
  await once(over2, "response");
  const [over1] = (await once(http.get(baseUrl), "response")) as [http.IncomingMessage];
  const draining = listener.drain(60_000);
  await once(session, "goaway");
  expect((await readBody(over1)).length).toBe(total);
  expect((await readBody(over2)).length).toBe(total);
  await draining;
});

test("a request that meets a drain on its way is served, or refused untouched", async () => {
  for (let turns = 0; turns < 6; turns++) {
    let served = 0;
    const { listener, baseUrl } = await start({
      handler: (_request, response) => {
        served++;
        response.end();
      },
    });
    const session = http2.connect(baseUrl);
    await ask(session, { ":path": "/" });
    const calls = Promise.allSettled(
      Array.from({ length: 20 }, () => ask(session, { ":path": "/" })),
    );
    for (let turn = 0; turn < turns; turn++) await new Promise((resolve) => setImmediate(resolve));
    await listener.drain(60_000);
    const settled = await calls;
    const refused = settled.filter((call) => call.status === "rejected");
    for (const { reason } of refused) expect(reason.message).toContain("NGHTTP2_REFUSED_STREAM");
    expect(served + refused.length).toBe(21);
  }
});

const post = (fields: string, body: string) =>
  `POST /grpc.health.v1.Health/Check HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n` +
  `${fields}content-length: ${body.length}\r\n\r\n${body}`;

test("a request that would like another protocol is answered in this one", async () => {
  const asked: (string | undefined)[] = [];
  const { listener } = await start({
    upgrade: (request) => {
      asked.push(request.headers.upgrade);
      return false;
    },
  });
  // As curl --http2 and Java's HttpClient ask on cleartext.
  const h2c = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAA\r\n";
  const socket = connectRaw(listener);
  const slow = drip(socket, 400);
  for (const [body, status] of [
    ["{}", 200],
    ['{"service":"nobody"}', 404],
    ["{}", 200],
  ] as const) {
    slow.write(post(h2c, body));
    expect(String(await once(socket, "data"))).toMatch(`HTTP/1.1 ${status} `);
  }
  socket.write(`GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n`);
  expect(String(await once(socket, "data"))).toMatch("HTTP/1.1 404 ");
  expect(asked).toEqual(["h2c", "h2c", "h2c"]);
  await once(socket, "close");

  // However many headers it has: the last of them is the body's length.
  const fields = `${h2c}connection: close\r\n${"a:\r\n".repeat(1100)}`;
  const many = await exchange(listener, post(fields, "{}"));
  expect(many.match(/HTTP\/1\.1 \d+/g)).toEqual(["HTTP/1.1 200"]);

  // One that does not wait for its answers is to ask again.
  const answers = await exchange(listener, post("", "{}") + post(h2c, "{}"));
  expect(answers.match(/HTTP\/1\.1 \d+/g)).toEqual(["HTTP/1.1 200"]);
  expect(answers).toMatch(/connection: close/i);
  await expectServing(listener);
});

test("a connection that was taken over is not HTTP's any more", async () => {
  const { listener } = await start({
    limits: { headersMs: 500, requestMs: 500, keepAliveMs: 500, ageMs: 500 },
    upgrade: (_, socket) => {
      socket.on("data", (chunk) => socket.write(chunk));
      return true;
    },
  });
  const socket = connectRaw(listener);
  const ask = "GET / HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
  socket.write(`${ask}at once`);
  expect(String(await once(socket, "data"))).toBe("at once");
  // Longer than every limit of HTTP.
  await new Promise((resolve) => setTimeout(resolve, 1500));
  socket.write("later");
  expect(String(await once(socket, "data"))).toBe("later");
  let drained = false;
  const drain = listener.drain(10_000).then(() => {
    drained = true;
  });
  socket.write("while draining");
  expect(String(await once(socket, "data"))).toBe("while draining");
  expect(drained).toBe(false);
  socket.end();
  await drain;
});
