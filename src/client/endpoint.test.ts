/** The saver over TLS, with certificates on both sides, and on a socket of Unix. */
import { mkdtemp, rename, rm, writeFile } from "node:fs/promises";
import { createServer, type RequestListener, request, type Server } from "node:http";
import { createServer as createSecureServer } from "node:https";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import type { TLSSocket } from "node:tls";
import { fileURLToPath } from "node:url";
import { Code, type ConnectError } from "@connectrpc/connect";
import * as grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import { uuid6 } from "@langchain/langgraph-checkpoint";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import { captureLog } from "../testing/captured_log.js";
import { type Certificate, createAuthority, createCertificate } from "../testing/certificate.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { startTestServer } from "../testing/test_server.js";
import { ConnectSaver, type ConnectSaverUrlOptions } from "./saver.js";

const ways: [string, ConnectSaverUrlOptions][] = [
  ["sessions", {}],
  ["connect", { session: false }],
  ["grpc", { protocol: "grpc" }],
  ["grpc-web", { protocol: "grpc-web" }],
];
const authority = createAuthority("the service's authority");
const clients = createAuthority("the clients' authority");
const createServerCert = () => createCertificate("127.0.0.1", { issuer: authority });
const createClientCert = (name: string, more = {}) =>
  createCertificate(name, { issuer: clients, ...more });

let database: TestDatabase;
let folder: string;
beforeAll(async () => {
  database = await createDatabase();
  folder = await mkdtemp(path.join(tmpdir(), "endpoint-"));
});
afterAll(async () => {
  await database?.drop();
  await rm(folder, { recursive: true });
});

let count = 0;

/** Writes a file that replaces the one of its name, and returns its path. */
async function write(name: string, text: string): Promise<string> {
  const file = path.join(folder, name);
  await writeFile(`${file}.new`, text);
  await rename(`${file}.new`, file);
  return file;
}

async function writePair(name: string, { cert, key }: Certificate) {
  return { cert: await write(`${name}.crt`, cert), key: await write(`${name}.key`, key) };
}

/** A server that knows its callers by their certificates: of "ann" and of "brief". */
async function start(options: Partial<Parameters<typeof startTestServer>[1]> = {}) {
  const name = `${++count}`;
  const grants = [{ operations: ["read", "write", "delete"], threads: ["*"] }];
  const authFile = await write(
    `${name}.json`,
    JSON.stringify({
      principals: [{ name: "clients", certificates: ["CN=ann", "CN=brief"], grants }],
    }),
  );
  const clientCa = await write(`${name}.ca`, clients.cert);
  const tls = { ...(await writePair(name, createServerCert())), clientCa };
  const captured = captureLog();
  const server = await startTestServer(database.url, {
    tls,
    authFile,
    log: captured.log,
    ...options,
  });
  onTestFinished(() => server.drain());
  return { server, name, captured, url: server.url };
}

function open(url: string, options: ConnectSaverUrlOptions): ConnectSaver {
  const saver = ConnectSaver.fromUrl(url, options);
  onTestFinished(() => saver.end());
  return saver;
}

const config = (thread_id: string) => ({ configurable: { thread_id } });
let step = 0;

async function put(saver: ConnectSaver, threadId: string): Promise<void> {
  const id = uuid6(step++);
  await saver.put(
    config(threadId),
    {
      v: 4,
      id,
      ts: new Date(0).toISOString(),
      channel_values: { a: "x".repeat(2000) },
      channel_versions: { a: step },
      versions_seen: {},
    },
    { source: "loop", step, parents: {} },
    { a: step },
  );
}

/** Writes, reads and lists. */
async function useAll(saver: ConnectSaver, threadId: string): Promise<void> {
  await put(saver, threadId);
  expect((await saver.getTuple(config(threadId)))?.checkpoint.channel_values).toEqual({
    a: "x".repeat(2000),
  });
  let listed = 0;
  for await (const _ of saver.list(config(threadId))) listed++;
  expect(listed).toBeGreaterThan(0);
}

const failureOf = (call: Promise<unknown>): Promise<ConnectError> =>
  call.then(
    () => Promise.reject(new Error("it succeeded")),
    (error) => error,
  );

describe.each(ways)("over TLS and %s, a saver", (way, options) => {
  it("trusts the authority that it is given, and shows its certificate", async () => {
    const { url } = await start();
    const ann = createClientCert("ann");
    const files = await writePair(`ann-${way}`, ann);
    const ca = await write("ca.pem", authority.cert);
    await useAll(open(url, { ...options, tls: { ca, ...files } }), `files-${way}`);
    await useAll(open(url, { ...options, tls: { ca: authority.cert, ...ann } }), `pem-${way}`);

    const without = open(url, { ...options, tls: { ca } });
    expect(await failureOf(without.getTuple(config("t")))).toMatchObject({
      code: Code.Unauthenticated,
    });
    const stranger = open(url, { ...options, tls: { ca, ...createServerCert() } });
    expect(await failureOf(stranger.getTuple(config("t")))).toMatchObject({
      code: Code.Unauthenticated,
    });
    const distrustful = open(url, { ...options, tls: ann });
    const error = await failureOf(distrustful.getTuple(config("t")));
    expect(error.code).toBe(Code.FailedPrecondition);
    expect(error.message).toContain("the option tls.ca, or NODE_EXTRA_CA_CERTS");
  });

  it("is told to use TLS where it does not", async () => {
    const { url } = await start();
    const plain = url.replace("https:", "http:");
    const error = await failureOf(open(plain, options).getTuple(config("t")));
    expect(error.rawMessage).toBe(`${plain} speaks TLS: begin the URL with https://`);
    expect(error.code).toBe(Code.FailedPrecondition);
  });

  it("calls on while the certificates of both sides are replaced", async () => {
    const { url, name, captured } = await start({ sessionAgeMs: 1_500 });
    const files = await writePair(`rotating-${way}`, createClientCert("ann"));
    const savers = Array.from({ length: 4 }, () =>
      open(url, { ...options, tls: { ca: authority.cert, ...files } }),
    );
    let calls = 0;
    let goesOn = true;
    const load = savers.map(async (saver, i) => {
      while (goesOn) {
        await put(saver, `${way}-${i}`);
        await saver.getTuple(config(`${way}-${i}`));
        calls++;
      }
    });
    // Every call that fails fails the test.
    const loaded = Promise.all(load);
    loaded.catch(() => {});
    const reloads = () =>
      captured.lines({
        msg: "the files of TLS have changed: new connections get the new certificate",
      }).length;
    for (let turn = 1; turn <= 3; turn++) {
      const before = reloads();
      await writePair(name, createServerCert());
      await writePair(`rotating-${way}`, createClientCert("ann"));
      await Promise.race([expect.poll(reloads).toBeGreaterThan(before), loaded]);
      // Long enough that every connection is another one.
      await Promise.race([new Promise((resolve) => setTimeout(resolve, 2_000)), loaded]);
    }
    goesOn = false;
    await loaded;
    expect(calls).toBeGreaterThan(20);
  });

  it("calls on when the certificate of its connection ends, with the next one", async () => {
    const { url, captured } = await start();
    const brief = () => createClientCert("brief", { notAfter: Date.now() + 4_000 });
    const files = await writePair(`brief-${way}`, brief());
    const saver = open(url, { ...options, tls: { ca: authority.cert, ...files } });
    const ends = Date.now() + 10_000;
    let renewed = Date.now();
    while (Date.now() < ends) {
      if (Date.now() > renewed + 1_000) {
        await writePair(`brief-${way}`, brief());
        renewed = Date.now();
      }
      await put(saver, `brief-${way}`);
      await saver.getTuple(config(`brief-${way}`));
      await new Promise((resolve) => setTimeout(resolve, 20));
    }
    await writePair(`brief-${way}`, createClientCert("brief", { notAfter: Date.now() - 1_000 }));
    await expect
      .poll(async () => (await saver.getTuple(config("t")).catch((error) => error))?.code)
      .toBe(Code.Unauthenticated);
    expect(captured.lines({ reason: "CERT_HAS_EXPIRED" })).not.toEqual([]);
  });
});

describe.each(ways)("on a socket of Unix and over %s, a saver", (way, options) => {
  it("calls as anywhere", async () => {
    const socketPath = path.join(folder, `${way} sock`);
    const server = await startTestServer(database.url, { port: undefined, socketPath });
    onTestFinished(() => server.drain());
    expect(server.url).toBe(`unix:${socketPath}`);
    await useAll(open(server.url, options), `unix-${way}`);
    await useAll(open(new URL(`unix://${socketPath}`).href, options), `unix-${way}`);
  });

  it("is told what is wrong with it", async () => {
    const brief = { ...options, timeoutMs: 500, retry: { attempts: 2 } };
    const nowhere = open("unix:/no/such.sock", brief);
    const error = await failureOf(nowhere.getTuple(config("t")));
    expect(error.code).toBe(Code.Unavailable);
    expect(error.rawMessage).toMatch(
      /^cannot reach unix:\/no\/such.sock: there is no such socket; is the service started/,
    );
  });
});

describe.each(ways.filter(([way]) => way !== "grpc"))(
  "over HTTP/1.1 alone and %s",
  (way, options) => {
    /** Passes plain requests on, unless their token is an old one, and nothing else. */
    async function startProxy(create: (listener: RequestListener) => Server, socketPath?: string) {
      const server = await startTestServer(database.url);
      const callers: (string | undefined)[] = [];
      const proxy = create((asked, answer) => {
        // Each call has a connection of its own, which could resume the TLS of the one before.
        answer.shouldKeepAlive = false;
        const { authorization, connection: _, upgrade: __, host: ___, ...headers } = asked.headers;
        if (authorization !== "Bearer new") {
          answer.writeHead(401).end();
          return;
        }
        const socket = asked.socket as TLSSocket;
        callers.push(socket.getPeerCertificate?.().subject?.CN as string | undefined);
        const { method } = asked;
        const passed = request(new URL(asked.url ?? "", server.url), { method, headers });
        passed.on("response", (response) => {
          answer.writeHead(response.statusCode ?? 0, response.headers);
          response.pipe(answer);
        });
        passed.on("error", () => answer.destroy());
        asked.pipe(passed);
      });
      await new Promise<void>((resolve) => {
        if (socketPath) proxy.listen(socketPath, resolve);
        else proxy.listen(0, "127.0.0.1", resolve);
      });
      onTestFinished(async () => {
        proxy.close();
        proxy.closeAllConnections();
        await server.drain();
      });
      return { proxy, callers };
    }

    const createToken = () => {
      const tokens = ["old"];
      return () => tokens.shift() ?? "new";
    };

    it("calls with its certificates, those that replaced them, and its token", async () => {
      const { proxy, callers } = await startProxy((listener) => {
        const own = { ...createServerCert(), ca: clients.cert, requestCert: true };
        return createSecureServer(own, listener);
      });
      const { port } = proxy.address() as AddressInfo;
      const files = await writePair(`http1-${way}`, createClientCert("ann"));
      const tls = { ca: authority.cert, ...files };
      const url = `https://localhost.test:${port}`;
      const lookup: ConnectSaverUrlOptions["lookup"] = (_, __, callback) =>
        callback(null, [{ address: "127.0.0.1", family: 4 }]);
      const wrong = open(url, { ...options, lookup, tls, token: createToken() });
      // The name is not the certificate's, which is looked at over either version.
      expect((await failureOf(wrong.getTuple(config("t")))).code).toBe(Code.FailedPrecondition);

      const saver = open(`https://127.0.0.1:${port}`, { ...options, tls, token: createToken() });
      await useAll(saver, `http1-${way}`);
      expect(new Set(callers)).toEqual(new Set(["ann"]));
      await writePair(`http1-${way}`, createClientCert("brief"));
      callers.length = 0;
      proxy.closeAllConnections();
      await useAll(saver, `http1-${way}`);
      expect(new Set(callers)).toEqual(new Set(["brief"]));
    });

    it("calls on a socket of Unix", async () => {
      const socketPath = path.join(folder, `http1 ${way}`);
      const { callers } = await startProxy(createServer, socketPath);
      await useAll(
        open(`unix:${socketPath}`, { ...options, token: createToken() }),
        `http1-${way}`,
      );
      expect(callers).not.toEqual([]);
    });

    it("resolves names as it is told", async () => {
      const { proxy, callers } = await startProxy(createServer);
      const { port } = proxy.address() as AddressInfo;
      const lookup: ConnectSaverUrlOptions["lookup"] = (_, __, callback) =>
        callback(null, [{ address: "127.0.0.1", family: 4 }]);
      const url = `http://checkpointd.test:${port}`;
      const saver = open(url, { ...options, lookup, token: createToken() });
      await useAll(saver, `http1-${way}`);
      expect(callers).not.toEqual([]);
    });
  },
);

it("refuses certificates and paths that cannot be used, without a word of them", async () => {
  const url = "https://127.0.0.1:1";
  const empty = await write("empty", "");
  const { cert } = createClientCert("ann");
  const other = createClientCert("bob");
  const refusal = (options: ConnectSaverUrlOptions, to = url) => {
    try {
      ConnectSaver.fromUrl(to, options);
    } catch (error) {
      expect(error).toBeInstanceOf(TypeError);
      return (error as Error).message;
    }
    throw new Error("it was taken");
  };
  expect(refusal({ tls: { cert } })).toBe("tls.cert and tls.key need each other");
  expect(refusal({ tls: { cert, key: other.key } })).toContain("cannot be used");
  expect(refusal({ tls: { ca: "/no/such/file" } })).toBe(
    "tls.ca is neither PEM nor the path of a file (ENOENT)",
  );
  expect(refusal({ tls: { ca: empty } })).toBe("tls.ca names a file without PEM");
  expect(refusal({ tls: { ca: 7 as never } })).toBe("tls.ca must be PEM or a file's path");
  expect(refusal({ tls: { certs: empty } as never })).toContain("Did you mean cert?");
  expect(refusal({ tls: { ca: cert } }, "http://127.0.0.1:1")).toContain("https://");
  for (const wrong of ["unix:relative.sock", "unix://host/path", "unix:", "unix:/a?b"]) {
    expect(refusal({}, wrong), wrong).toMatch(/the URL must (have an absolute path|not have)/);
  }
});

it("serves clients of gRPC that are not ours, with and without a certificate", async () => {
  const { url } = await start();
  const protos = fileURLToPath(new URL("../../proto", import.meta.url));
  const definition = loadSync("checkpointd/v1/checkpoint_service.proto", { includeDirs: [protos] });
  const Service = grpc.makeClientConstructor(
    definition["checkpointd.v1.CheckpointService"] as grpc.ServiceDefinition,
    "CheckpointService",
  );
  const get = (more: [Buffer, Buffer] | []) => {
    const credentials = grpc.credentials.createSsl(Buffer.from(authority.cert), ...more);
    const client = new Service(new URL(url).host, credentials) as unknown as grpc.Client &
      Record<string, CallableFunction>;
    onTestFinished(() => client.close());
    return new Promise((resolve) => {
      client.GetTuple?.({ threadId: "t" }, (error: grpc.ServiceError | null) =>
        resolve(error?.code ?? grpc.status.OK),
      );
    });
  };
  const ann = createClientCert("ann");
  expect(await get([Buffer.from(ann.key), Buffer.from(ann.cert)])).toBe(grpc.status.OK);
  expect(await get([])).toBe(grpc.status.UNAUTHENTICATED);
});
