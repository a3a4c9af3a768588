/** Where `serve` listens, and that nobody gets in who should not. */
import { chown, mkdtemp, readFile, rm, stat, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import path from "node:path";
import { Code, ConnectError, createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import { CheckpointService } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { Health } from "../../gen/health/v1/health_pb.js";
import { createKey, isKey } from "../auth/api_keys.js";
import { createAuthority, createCertificate } from "../testing/certificate.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { runCommand, startServe } from "../testing/serve_process.js";

const authority = createAuthority("the service's authority");
let database: TestDatabase;
let folder: string;
beforeAll(async () => {
  database = await createDatabase();
  folder = await mkdtemp(path.join(tmpdir(), "listening-"));
});
afterAll(async () => {
  await database?.drop();
  await rm(folder, { recursive: true });
});

async function serve(...args: string[]) {
  const server = await startServe(["--database-url", database.url, ...args]);
  onTestFinished(() => void server.child.kill("SIGKILL"));
  await server.printed("is ready");
  return server;
}

/** What a `serve` says that ends at once. */
async function refusalOf(...args: string[]) {
  const { code, stderr } = await runCommand(["serve", "--database-url", database.url, ...args]);
  return { code, stderr };
}

async function tlsFlags(name: string): Promise<string[]> {
  const { cert, key } = createCertificate("localhost", { issuer: authority });
  const file = path.join(folder, name);
  await writeFile(`${file}.crt`, cert);
  await writeFile(`${file}.key`, key, { mode: 0o600 });
  return ["--tls-cert", `${file}.crt`, "--tls-key", `${file}.key`];
}

/** Over HTTP/2, with a connection of its own. */
function transportTo(url: string, more: object = {}) {
  const nodeOptions = { ca: authority.cert, ...more };
  return createConnectTransport({ baseUrl: url, httpVersion: "2", nodeOptions });
}
const get = (transport: ReturnType<typeof transportTo>, token?: string) =>
  createClient(CheckpointService, transport)
    .getTuple(
      { threadId: "t" },
      token === undefined ? {} : { headers: { authorization: `Bearer ${token}` } },
    )
    .then(
      () => "taken",
      (error: unknown) => Code[ConnectError.from(error).code],
    );

describe("serve", () => {
  it("does not listen openly without authentication and TLS", async () => {
    const open = await refusalOf("--host", "0.0.0.0", "--port", "0");
    expect(open.code).toBe(2);
    expect(open.stderr).toContain("it would ask nobody who they are: give --token-file");
    const files = await tlsFlags("open");
    const token = path.join(folder, "open.token");
    const plain = await refusalOf("--host", "::", "--port", "0", "--token-file", token);
    expect(plain.stderr).toContain("would not encrypt keys and threads: give --tls-cert");
    for (const [flags, sentence] of [
      [["--tls-cert", "x"], "--tls-cert and --tls-key need each other"],
      [["--tls-client-ca", "x"], "--tls-client-ca needs --tls-cert"],
      [["--token-file", token, "--auth-file", "x"], "--token-file is for servers without"],
      [["--port", "none"], "--port none leaves nothing to listen on"],
    ] as const) {
      const refused = await refusalOf(...flags);
      expect(refused.code).toBe(2);
      expect(refused.stderr).toContain(sentence);
    }
    const wrong = await refusalOf(
      "--tls-cert",
      files[1] as string,
      "--tls-key",
      files[1] as string,
    );
    expect(wrong.stderr).toMatch(/^checkpointd: .*open.crt holds no private key/);
  });

  it("says each time that it is insecure", async () => {
    const server = await serve("--host", "0.0.0.0", "--insecure");
    const { stderr } = await server.stop();
    expect(stderr).toMatch(/"level":"warn".*--insecure: .* 0\.0\.0\.0, and whoever reaches it may/);
  });

  it("makes a key, tells where, and takes no call without it, in each worker", async () => {
    const file = path.join(folder, "key");
    const start = async () => serve("--token-file", file, "--workers", "2");
    const first = await start();
    expect((await stat(file)).mode & 0o777).toBe(0o600);
    const key = (await readFile(file, "utf8")).trim();
    expect(isKey(key)).toBe(true);
    // On different connections, so on both workers.
    for (let i = 0; i < 4; i++) {
      const transport = transportTo(first.url);
      expect(await get(transport)).toBe("Unauthenticated");
      expect(await get(transport, `${key}x`)).toBe("Unauthenticated");
      expect(await get(transport, key)).toBe("taken");
      await createClient(Health, transport).check({});
    }
    const { stdout, stderr } = await first.stop();
    expect(stdout).toContain(`made a key, which every caller has to send: it is in ${file}\n`);
    expect(stdout).toContain(`, { token }) in an agent; then:`);
    expect(stdout).toContain(` --token-file ${file}\n`);
    expect(stdout + stderr).not.toContain(key);

    const second = await start();
    expect(await get(transportTo(second.url), key)).toBe("taken");
    expect((await second.stop()).stdout).toContain(`the key that every caller has to send: it is`);
  });

  it("refuses a key that others may have read, and a file without one", async () => {
    const open = path.join(folder, "others");
    for (const mode of [0o644, 0o640, 0o604]) {
      await rm(open, { force: true });
      await writeFile(open, "x", { mode });
      const { code, stderr } = await refusalOf("--port", "0", "--token-file", open);
      expect(code).toBe(1);
      expect(stderr).toContain(
        `checkpointd: the token file ${open} is open to others, who may have its key: remove it, and another is made\n`,
      );
    }
    await rm(open);
    await writeFile(open, "hunter2", { mode: 0o600 });
    const { stderr } = await refusalOf("--port", "0", "--token-file", open);
    expect(stderr).toContain("holds no key");
    expect(stderr).not.toContain("hunter2");
    const nowhere = path.join(folder, "no", "folder");
    expect((await refusalOf("--token-file", nowhere)).stderr).toContain("cannot be made (ENOENT)");
  });

  // Who is not root reads no file that is another's alone.
  it.runIf(process.getuid?.() === 0)("refuses a key that another user has put there", async () => {
    const planted = path.join(folder, "planted");
    await writeFile(planted, `${createKey()}\n`, { mode: 0o600 });
    await chown(planted, 12_345, 12_345);
    const { code, stderr } = await refusalOf("--port", "0", "--token-file", planted);
    expect(code).toBe(1);
    expect(stderr).toContain(`the token file ${planted} is another user's, who has its key`);
  });

  it("says where certificates of clients count for nothing", async () => {
    const tls = await tlsFlags("uncounted");
    const clientCa = path.join(folder, "uncounted.ca");
    await writeFile(clientCa, authority.cert);
    const flags = ["--tls-client-ca", clientCa, ...tls];
    const open = await serve(...flags);
    expect((await open.stop()).stderr).toContain("every caller may do everything");
    const key = path.join(folder, "uncounted.key-file");
    const closed = await serve(...flags, "--token-file", key);
    expect((await closed.stop()).stderr).toContain(
      "--tls-client-ca: with --token-file no certificate counts for anything: every caller needs the key",
    );
  });

  it.each(["1", "2"])("listens with TLS, in %s processes", async (workers) => {
    const server = await serve("--workers", workers, ...(await tlsFlags(`of${workers}`)));
    expect(server.url).toMatch(/^https:/);
    const url = server.url.replace("127.0.0.1", "localhost");
    for (let i = 0; i < 4; i++) expect(await get(transportTo(url))).toBe("taken");
    expect(await server.stop()).toMatchObject({ code: 0 });
  });

  it.each(["1", "2"])(
    "listens on a Unix socket of its user's, in %s processes",
    async (workers) => {
      const socket = path.join(folder, `s${workers}`);
      const start = (...args: string[]) =>
        serve("--listen-socket", socket, "--workers", workers, ...args);
      const server = await start("--port", "none");
      expect(server.url).toBe(`unix:${socket}`);
      expect((await stat(socket)).mode & 0o007).toBe(0);
      expect((await stat(socket)).isSocket()).toBe(true);
      const { connect } = await import("node:net");
      const transport = () =>
        transportTo("http://localhost", { createConnection: () => connect(socket) });
      for (let i = 0; i < 4; i++) expect(await get(transport())).toBe("taken");
      // Somebody listens there.
      const second = await refusalOf("--port", "none", "--listen-socket", socket);
      expect(second.stderr).toContain(`cannot listen on ${socket}: another process is listening`);
      expect(await get(transport())).toBe("taken");

      // One that was killed leaves its socket behind, which is in nobody's way.
      server.child.kill("SIGKILL");
      await server.finished;
      expect((await stat(socket)).isSocket()).toBe(true);
      const third = await start();
      expect(third.output().stdout).toContain(`listens on ${third.url} and unix:${socket}\n`);
      expect(third.url).toMatch(/^http:/);
      expect(await get(transport())).toBe("taken");
      expect(await get(transportTo(third.url))).toBe("taken");
      expect(await third.stop()).toMatchObject({ code: 0 });
      await expect(stat(socket)).rejects.toThrow("ENOENT");

      // What is no socket is not removed.
      await writeFile(socket, "mine");
      const refused = await refusalOf("--port", "none", "--listen-socket", socket);
      expect(refused.stderr).toContain(`cannot listen on ${socket}`);
      expect(await readFile(socket, "utf8")).toBe("mine");
    },
  );

  it("is not ready on a port that another process has", async () => {
    const taken = createServer().listen(0, "127.0.0.1");
    await new Promise((resolve) => taken.once("listening", resolve));
    const { port } = taken.address() as { port: number };
    const files = await tlsFlags("taken");
    const { code, stderr } = await refusalOf("--port", `${port}`, ...files);
    expect(code).toBe(1);
    expect(stderr).toContain(`cannot listen on 127.0.0.1 port ${port}`);
    taken.close();
  });
});
