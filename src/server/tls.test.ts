/** The listener with TLS: what it speaks, whom it refuses, and what changes while it runs. */
import { once } from "node:events";
import { mkdtemp, rename, rm, writeFile } from "node:fs/promises";
import type * as http from "node:http";
import * as http2 from "node:http2";
import * as https from "node:https";
import * as net from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import * as tls from "node:tls";
import { Code, createClient, type Transport } from "@connectrpc/connect";
import {
  connectNodeAdapter,
  createConnectTransport,
  createGrpcTransport,
  createGrpcWebTransport,
} from "@connectrpc/connect-node";
import { afterAll, beforeAll, expect, onTestFinished, test, vi } from "vitest";
import { Health } from "../../gen/health/v1/health_pb.js";
import { captureLog } from "../testing/captured_log.js";
import { type Certificate, createAuthority, createCertificate } from "../testing/certificate.js";
import { atTime } from "./at_time.js";
import { createHealth, ServingStatus } from "./health.js";
import { type ListenerOptions, type NodeRequest, startListener } from "./http.js";
import { peerCertificate } from "./tls.js";

const authority = createAuthority("the service's authority");
const ca = authority.cert;
const clients = createAuthority("the clients' authority");
const day = 24 * 3_600_000;

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(path.join(tmpdir(), "tls-"));
});
afterAll(() => rm(folder, { recursive: true }));

let count = 0;

/** The files of a listener, in a folder of their own, and the two ways to replace them. */
async function writeFiles({ cert, key }: Certificate, clientCa?: string) {
  const name = path.join(folder, `${++count}`);
  const files = {
    cert: `${name}.crt`,
    key: `${name}.key`,
    ...(clientCa === undefined ? {} : { clientCa: `${name}.ca` }),
  };
  await writeFile(files.cert, cert);
  await writeFile(files.key, key);
  if (files.clientCa) await writeFile(files.clientCa, clientCa as string);
  return files;
}

/** Says who asks, on a connection of which kind. */
function tellPeer(request: NodeRequest, response: http.ServerResponse | http2.Http2ServerResponse) {
  const peer = peerCertificate(request);
  response.end(`${request.httpVersion} ${peer?.subject.CN ?? "nobody"}`);
}

async function start(options: Partial<ListenerOptions> = {}, certificate = createServerCert()) {
  const files = await writeFiles(certificate, clients.cert);
  const captured = captureLog();
  const listener = await startListener({
    host: "127.0.0.1",
    port: 0,
    tls: files,
    handler: tellPeer,
    log: captured.log,
    ...options,
  });
  onTestFinished(() => listener.drain(0));
  const { port } = listener;
  return { listener, files, captured, port, url: `https://127.0.0.1:${port}` };
}

const createServerCert = () => createCertificate("127.0.0.1", { issuer: authority });
const createClientCert = (name: string, more = {}) =>
  createCertificate(name, { issuer: clients, ...more });

/** Connects with TLS; resolves when the handshake is over on this side. */
async function connect(port: number, options: tls.ConnectionOptions = {}): Promise<tls.TLSSocket> {
  const socket = tls.connect({ port, host: "127.0.0.1", ca, ...options });
  socket.on("error", () => {});
  onTestFinished(() => void socket.destroy());
  await once(socket, "secureConnect");
  return socket;
}

/** What comes back on a connection until it closes. */
async function readAll(socket: net.Socket): Promise<string> {
  const parts: Buffer[] = [];
  socket.on("data", (part) => parts.push(part)).on("error", () => {});
  if (!socket.destroyed) await once(socket, "close");
  return Buffer.concat(parts).toString("latin1");
}

async function askOver1(port: number, options: https.RequestOptions = {}): Promise<string> {
  const asking = https.get({ port, host: "127.0.0.1", ca, agent: false, ...options });
  const [response] = (await once(asking, "response")) as [http.IncomingMessage];
  response.setEncoding("utf8");
  let body = "";
  for await (const part of response) body += part;
  return body;
}

async function askOver2(session: http2.ClientHttp2Session): Promise<string> {
  const stream = session.request({ ":path": "/" }).setEncoding("utf8");
  let body = "";
  for await (const part of stream) body += part;
  return body;
}

function connect2(port: number, options: http2.SecureClientSessionOptions = {}) {
  const session = http2.connect(`https://127.0.0.1:${port}`, { ca, ...options });
  session.on("error", () => {});
  onTestFinished(() => session.destroy());
  return session;
}

test("one port speaks Connect, gRPC and gRPC-Web over HTTP/1.1 and HTTP/2 with TLS", async () => {
  const health = createHealth();
  health.setAll(ServingStatus.SERVING);
  const { url: baseUrl } = await start({
    handler: connectNodeAdapter({ routes: (router) => router.service(Health, health.service) }),
  });
  const nodeOptions = { ca };
  const transports: Transport[] = [createGrpcTransport({ baseUrl, nodeOptions })];
  for (const httpVersion of ["1.1", "2"] as const) {
    transports.push(createConnectTransport({ baseUrl, httpVersion, nodeOptions }));
    transports.push(createGrpcWebTransport({ baseUrl, httpVersion, nodeOptions }));
  }
  for (const transport of transports) {
    const client = createClient(Health, transport);
    expect(await client.check({})).toMatchObject({ status: ServingStatus.SERVING });
    await expect(client.check({ service: "nobody" })).rejects.toMatchObject({
      code: Code.NotFound,
    });
  }
});

test("what is spoken is negotiated, and told by the first bytes where it was not", async () => {
  const { port } = await start();
  const negotiated = async (ALPNProtocols?: string[]) =>
    (await connect(port, ALPNProtocols ? { ALPNProtocols } : {})).alpnProtocol;
  expect(await negotiated(["h2", "http/1.1"])).toBe("h2");
  expect(await negotiated(["http/1.1"])).toBe("http/1.1");
  expect(await negotiated()).toBe(false);
  await expect(connect(port, { ALPNProtocols: ["spdy/1"] })).rejects.toThrow();

  const silent = await connect(port);
  const session = http2.connect("https://127.0.0.1", { createConnection: () => silent });
  expect(await askOver2(session)).toBe("2.0 nobody");
  session.destroy();
});

test("TLS before 1.2 is refused", async () => {
  const { port } = await start();
  expect((await connect(port, { maxVersion: "TLSv1.2" })).getProtocol()).toBe("TLSv1.2");
  expect((await connect(port)).getProtocol()).toBe("TLSv1.3");
  const old = { minVersion: "TLSv1", maxVersion: "TLSv1.1" } as const;
  // Or OpenSSL would not even offer it.
  const ciphers = "DEFAULT@SECLEVEL=0";
  await expect(connect(port, { ...old, ciphers })).rejects.toThrow(/alert protocol version/);
});

test("a client's certificate is told when it was verified, on every kind of connection", async () => {
  const taken: string[] = [];
  const { port, captured } = await start({
    upgrade: (request, socket) => {
      taken.push(String(peerCertificate(request)?.subject.CN ?? "nobody"));
      socket.end("HTTP/1.1 101 Switching Protocols\r\nupgrade: it\r\nconnection: upgrade\r\n\r\n");
      return true;
    },
  });
  const upgrade = async (options: https.RequestOptions) => {
    const headers = { connection: "upgrade", upgrade: "it" };
    const asking = https.get({ port, host: "127.0.0.1", ca, agent: false, headers, ...options });
    const [, socket] = (await once(asking, "upgrade")) as [unknown, net.Socket];
    socket.destroy();
  };
  const someone = createClientCert("ann", { uri: "spiffe://prod/ann" });
  const self = createCertificate("self");
  const late = createClientCert("late", { notAfter: Date.now() - 1000 });
  const expected: [https.RequestOptions, string, string | undefined][] = [
    [{}, "nobody", undefined],
    [someone, "ann", undefined],
    [self, "nobody", "DEPTH_ZERO_SELF_SIGNED_CERT"],
    [late, "nobody", "CERT_HAS_EXPIRED"],
    // Of an authority that the server's own clients trust, and not of one it trusts.
    [createServerCert(), "nobody", "SELF_SIGNED_CERT_IN_CHAIN"],
  ];
  for (const maxVersion of ["TLSv1.2", "TLSv1.3"] as const) {
    for (const [certificate, name, reason] of expected) {
      const options = { ...certificate, maxVersion };
      expect(await askOver1(port, options)).toBe(`1.1 ${name}`);
      const session = connect2(port, options as http2.SecureClientSessionOptions);
      expect(await askOver2(session)).toBe(`2.0 ${name}`);
      await upgrade(options);
      expect(taken.pop()).toBe(name);
      // Three connections; and of each only the reason.
      const lines = captured.lines({ msg: "a client's certificate was not accepted" }).slice(-3);
      if (reason) expect(lines.map((line) => line.reason)).toEqual([reason, reason, reason]);
    }
  }
  // The name that only the certificate's own holder knows stays out of the log.
  expect(captured.text()).not.toContain("late");
});

test("a session of TLS that is resumed is believed no more than the first", async () => {
  const { port } = await start();
  const notAfter = Date.now() + 4_000;
  const brief = createClientCert("brief", { notAfter });
  const resume = async (options: tls.ConnectionOptions) => {
    const first = tls.connect({ port, host: "127.0.0.1", ca, ...options });
    let ticket: Buffer | undefined;
    first.on("session", (session) => {
      ticket = session;
    });
    first.write("GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    await readAll(first);
    return async () => {
      const again = await connect(port, { ...options, session: ticket as Buffer });
      expect(again.isSessionReused()).toBe(true);
      again.write("GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
      return (await readAll(again)).split("\r\n").at(-1);
    };
  };
  for (const maxVersion of ["TLSv1.2", "TLSv1.3"] as const) {
    const without = await resume({ maxVersion });
    expect(await without()).toBe("1.1 nobody");
    const ann = await resume({ maxVersion, ...createClientCert("ann") });
    expect(await ann()).toBe("1.1 ann");
  }
  const late = await resume(brief);
  await new Promise((resolve) => setTimeout(resolve, notAfter + 1000 - Date.now()));
  expect(await late()).toBe("1.1 nobody");
});

test("a connection is closed when its client's certificate has ended", async () => {
  const { port, listener } = await start({
    upgrade: (_, socket) => {
      socket.write(
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: it\r\nconnection: upgrade\r\n\r\n",
      );
      return true;
    },
    handler: (request, response) => {
      if (request.url === "/open") (response as http.ServerResponse).write("begun");
      else tellPeer(request, response);
    },
  });
  const notAfter = Date.now() + 5_000;
  const brief = createClientCert("brief", { notAfter });
  const session = connect2(port, brief);
  expect(await askOver2(session)).toBe("2.0 brief");
  const open = session.request({ ":path": "/open" }).on("error", () => {});
  const upgraded = await connect(port, brief);
  upgraded.write("GET / HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: it\r\n\r\n");
  const rests = await connect(port, brief);
  rests.write("GET / HTTP/1.1\r\nhost: localhost\r\n\r\n");
  const lasts = await connect(port, createClientCert("ann"));
  lasts.write("GET / HTTP/1.1\r\nhost: localhost\r\n\r\n");
  // Asked to go before, so that nothing of it need be lost.
  const closes = [session, upgraded.resume(), rests.resume()].map((it) => once(it, "close"));
  await once(session, "goaway");
  expect(Date.now()).toBeLessThan(notAfter);
  expect(open.closed).toBe(false);
  await Promise.all(closes);
  expect(Date.now()).toBeGreaterThanOrEqual(notAfter - 1000);
  await expect.poll(() => listener.connections()).toBe(1);
});

test("a time beyond what Node's timers take is waited for", () => {
  vi.useFakeTimers();
  onTestFinished(() => void vi.useRealTimers());
  let fired = 0;
  const year = Date.now() + 365 * day;
  atTime(year, () => fired++);
  const cancel = atTime(year, () => fired++);
  atTime(Date.now() - day, () => fired++);
  vi.advanceTimersByTime(1);
  expect(fired).toBe(1);
  vi.advanceTimersByTime(365 * day - 2);
  expect(fired).toBe(1);
  cancel();
  vi.advanceTimersByTime(1);
  expect(fired).toBe(2);
});

test("a client without TLS is told to use it", async () => {
  const { port, captured } = await start();
  const plain = net.connect(port, "127.0.0.1");
  plain.write("GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n");
  const answer = await readAll(plain);
  expect(answer).toMatch(/^HTTP\/1.1 400 /);
  expect(answer).toMatch(/\r\n\r\nthis port speaks TLS: begin the URL with https:\/\/\n$/);

  const session = http2.connect(`http://127.0.0.1:${port}`).on("error", () => {});
  const told: [number, string][] = [];
  session.on("goaway", (code, _, text) => told.push([code, String(text)]));
  await new Promise((resolve) => session.on("close", resolve));
  expect(told).toEqual([
    [http2.constants.NGHTTP2_INADEQUATE_SECURITY, expect.stringContaining("https://")],
  ]);
  const lines = captured.lines({ msg: "a client does not speak TLS where it is wanted" });
  expect(lines).toHaveLength(2);
  expect(await askOver1(port)).toBe("1.1 nobody");
});

test("a client with TLS finds out that there is none", async () => {
  const { port, captured } = await start({ tls: undefined });
  await expect(connect(port)).rejects.toThrow(/wrong version number/i);
  expect(captured.lines({ msg: "a client speaks TLS where there is none" })).toHaveLength(1);
});

const clientHello = Buffer.from("16030100a5010000a10303", "hex");

test("a handshake that stands still is ended, and so is silence after one", async () => {
  const { port, listener } = await start({ limits: { helloMs: 700 } });
  const began = Date.now();
  const half = net.connect(port, "127.0.0.1").resume();
  half.write(clientHello);
  const silent = net.connect(port, "127.0.0.1").resume();
  const noRequest = (await connect(port)).resume();
  await Promise.all([half, silent, noRequest].map((socket) => once(socket, "close")));
  expect(Date.now() - began).toBeGreaterThan(500);
  await expect.poll(() => listener.connections()).toBe(0);
});

test("handshakes that stand still keep nobody out", async () => {
  const { port, listener } = await start({ limits: { handshakes: 10 } });
  const halves: net.Socket[] = [];
  for (let i = 0; i < 60; i++) {
    const half = net.connect(port, "127.0.0.1").on("error", () => {});
    half.write(clientHello);
    halves.push(half);
  }
  await expect.poll(() => listener.connections()).toBe(10);
  expect(await askOver1(port)).toBe("1.1 nobody");
  for (const half of halves) half.destroy();
  await expect.poll(() => listener.connections()).toBe(0);
});

test("garbage harms nobody", async () => {
  const { port, listener } = await start();
  const noise = Buffer.alloc(500, 0xaa);
  for (const bytes of [
    clientHello,
    Buffer.concat([clientHello, noise]),
    Buffer.from("PRI * HT"),
    Buffer.from("160301ffff", "hex"),
    noise,
  ]) {
    const socket = net.connect(port, "127.0.0.1").resume();
    socket.on("error", () => {});
    socket.end(bytes);
    await once(socket, "close");
  }
  // TLS within TLS.
  const secured = await connect(port);
  secured.write(clientHello);
  expect(await readAll(secured)).toMatch(/^HTTP\/1.1 400 /);
  expect(await askOver1(port)).toBe("1.1 nobody");
  await expect.poll(() => listener.connections()).toBe(0);
});

test("a refusal of the first request arrives", async () => {
  const { port } = await start();
  for (const [line, status] of [
    [`GET / HTTP/1.1\r\nhost: localhost\r\nbig: ${"x".repeat(40_000)}\r\n`, 431],
    ["GARBAGE\r\n", 400],
  ] as const) {
    // With the last bytes of the handshake.
    const socket = tls.connect({ port, host: "127.0.0.1", ca });
    socket.write(`${line}\r\n`);
    expect(await readAll(socket)).toMatch(new RegExp(`^HTTP/1.1 ${status} `));
  }
});

test("files that cannot be used are told in a sentence", async () => {
  const good = await writeFiles(createServerCert(), clients.cert);
  const other = await writeFiles(createServerCert());
  const empty = path.join(folder, "empty");
  await writeFile(empty, "");
  const missing = path.join(folder, "missing");
  const withFiles = (more: object) =>
    startListener({
      host: "127.0.0.1",
      port: 0,
      handler() {},
      log: captureLog().log,
      tls: { ...good, ...more },
    });
  await expect(withFiles({ cert: missing })).rejects.toThrow(`${missing} cannot be read (ENOENT)`);
  await expect(withFiles({ key: other.key })).rejects.toThrow(
    `the key in ${other.key} does not belong to the certificate in ${good.cert}`,
  );
  for (const file of [empty, good.key]) {
    const says = `${file} holds no certificate`;
    await expect(withFiles({ cert: file })).rejects.toThrow(says);
    await expect(withFiles({ clientCa: file })).rejects.toThrow(says);
  }
  await expect(withFiles({ key: good.cert })).rejects.toThrow(`${good.cert} holds no private key`);
});

/** The common name that the server shows. */
async function shown(port: number): Promise<string> {
  const socket = await connect(port, { rejectUnauthorized: false });
  const name = String(socket.getPeerCertificate().subject.CN);
  socket.destroy();
  return name;
}

test("files that change are read anew, broken ones change nothing, and nothing is dropped", async () => {
  const { port, files, captured } = await start();
  const before = connect2(port);
  expect(await askOver2(before)).toBe("2.0 nobody");
  const replace = async (file: string, text: string) => {
    await writeFile(`${file}.new`, text);
    await rename(`${file}.new`, file);
  };
  const second = createCertificate("localhost", { issuer: authority });
  await replace(files.cert, second.cert);
  await expect
    .poll(() => captured.lines({ level: 50 }).map(({ msg }) => msg))
    .toEqual([
      `the files of TLS have changed and cannot be used, so the old stay: the key in ${files.key} does not belong to the certificate in ${files.cert}`,
    ]);
  expect(await shown(port)).toBe("127.0.0.1");
  await replace(files.key, second.key);
  await expect.poll(() => shown(port)).toBe("localhost");

  // In its place, as some tools do, and gone for a moment.
  await rm(files.cert);
  await expect.poll(() => captured.lines({ level: 50 }).length).toBe(2);
  expect(await shown(port)).toBe("localhost");
  const third = createServerCert();
  await writeFile(files.key, third.key);
  await writeFile(files.cert, third.cert);
  await expect.poll(() => shown(port)).toBe("127.0.0.1");
  expect(await askOver2(before)).toBe("2.0 nobody");

  // Another authority of clients: a ticket that the first one's client got is worth nothing.
  const others = createAuthority("another authority of clients");
  const bob = createCertificate("bob", { issuer: others });
  expect(await askOver1(port, bob)).toBe("1.1 nobody");
  await replace(files.clientCa as string, others.cert);
  await expect.poll(() => askOver1(port, bob)).toBe("1.1 bob");
  expect(await askOver1(port, createClientCert("ann"))).toBe("1.1 nobody");
});

test("an authority that is taken out ends the connections of its clients, and no others", async () => {
  const { port, files, captured } = await start();
  const others = createAuthority("the authority that stays");
  const replace = async (text: string) => {
    await writeFile(`${files.clientCa}.new`, text);
    await rename(`${files.clientCa}.new`, files.clientCa as string);
  };
  const ann = createClientCert("ann");
  const bob = createCertificate("bob", { issuer: others });
  await replace(clients.cert + others.cert);
  await expect.poll(() => askOver1(port, bob)).toBe("1.1 bob");
  // One of an authority between, whose session is resumed, of which Node has only the first.
  const between = createCertificate("between", { issuer: others, isAuthority: true });
  const leaf = createCertificate("eve", { issuer: { ...between, name: "between" } });
  const eve = { cert: leaf.cert + between.cert, key: leaf.key };
  const once1 = await connect(port, eve);
  const [session] = (await once(once1.resume(), "session")) as [Buffer];
  const resumed = await connect(port, { ...eve, session });
  expect(resumed.isSessionReused()).toBe(true);
  resumed.write("GET / HTTP/1.1\r\nhost: localhost\r\n\r\n");
  await once(resumed, "data");
  const [hers, his, nobodys] = [connect2(port, ann), connect2(port, bob), connect2(port)];
  expect(await askOver2(hers)).toBe("2.0 ann");
  expect(await askOver2(his)).toBe("2.0 bob");
  expect(await askOver2(nobodys)).toBe("2.0 nobody");
  // A certificate of the service's that is renewed ends nobody.
  const renewed = createServerCert();
  await writeFile(files.key, renewed.key);
  await writeFile(files.cert, renewed.cert);
  await expect.poll(() => captured.lines({ level: 30 }).length).toBeGreaterThan(1);
  expect(await askOver2(hers)).toBe("2.0 ann");
  await replace(others.cert);
  await expect.poll(() => hers.destroyed).toBe(true);
  expect(captured.text()).toContain("whose client's authority was taken out of the file");
  expect(await askOver2(his)).toBe("2.0 bob");
  expect(await askOver2(nobodys)).toBe("2.0 nobody");
  resumed.write("GET / HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
  expect(await readAll(resumed)).toMatch(/1\.1 eve$/);
});
