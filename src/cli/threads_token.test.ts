/** How the `threads` commands show who calls, and reach servers that are not open to all. */
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, beforeAll, describe, expect, it, onTestFinished } from "vitest";
import { createKey } from "../auth/api_keys.js";
import type { ServerOptions } from "../server/server.js";
import { createAuthority, createCertificate } from "../testing/certificate.js";
import { createDatabase, type TestDatabase } from "../testing/postgres.js";
import { runCommand } from "../testing/serve_process.js";
import { startTestServer } from "../testing/test_server.js";
import { chooseToken } from "./threads_token.js";

const key = createKey();
let database: TestDatabase;
let folder: string;
let tokenFile: string;
beforeAll(async () => {
  database = await createDatabase();
  folder = await mkdtemp(path.join(tmpdir(), "threads-token-"));
  tokenFile = await write("key", `${key}\n`);
});
afterAll(async () => {
  await database?.drop();
  await rm(folder, { recursive: true });
});

async function write(name: string, text: string): Promise<string> {
  const file = path.join(folder, name);
  await writeFile(file, text, { mode: 0o600 });
  return file;
}

async function start(options: Partial<ServerOptions> = {}): Promise<string> {
  const server = await startTestServer(database.url, { tokenFile, ...options });
  onTestFinished(() => server.drain());
  return server.url;
}

const ls = (url: string, args: string[] = [], env: Record<string, string> = {}) =>
  runCommand(["threads", "ls", "--url", url, ...args], env);

describe("checkpointd threads", () => {
  it("takes the token by file and by variable", async () => {
    const url = await start();
    const refused = await ls(url);
    expect(refused).toMatchObject({ code: 1, stdout: "" });
    expect(refused.stderr).toContain("this server asks who calls");
    for (const [args, env] of [
      [["--token-file", tokenFile], {}],
      [[], { CHECKPOINTD_TOKEN_FILE: tokenFile }],
      [[], { CHECKPOINTD_TOKEN: key }],
      [[`--token-file=${tokenFile}`], { CHECKPOINTD_TOKEN: "another" }],
      [["--header", `authorization: Bearer ${key}`], {}],
    ] as [string[], Record<string, string>][]) {
      expect(await ls(url, args, env)).toMatchObject({ code: 0, stderr: "No threads.\n" });
    }
    const wrong = await ls(url, [], { CHECKPOINTD_TOKEN: "5ecr3t" });
    expect(wrong.code).toBe(1);
    expect(wrong.stderr).not.toContain("5ecr3t");
  });

  it("does not guess which token is meant, and tells what is wrong with one", async () => {
    const env = { CHECKPOINTD_TOKEN: "5ecr3t" };
    expect(chooseToken(undefined, [], env)).toBe("5ecr3t");
    expect(chooseToken(undefined, [], {})).toBeUndefined();
    expect(() => chooseToken(tokenFile, [], env)).toThrow("not by both");
    const nowhere = path.join(folder, "nowhere");
    const missing = await ls("http://127.0.0.1:1", ["--token-file", nowhere]);
    expect(missing.code).toBe(2);
    expect(missing.stderr).toContain(`--token-file: ${nowhere} cannot be read (ENOENT).`);
    const twice = await ls("http://127.0.0.1:1", ["--header", "authorization: 5ecr3t"], env);
    expect(twice.code).toBe(2);
    expect(twice.stderr).toContain("give either token or the header authorization");
    expect(twice.stderr).not.toContain("5ecr3t");
  });

  it("trusts the authority that it is told", async () => {
    const authority = createAuthority("the service's authority");
    const { cert, key } = createCertificate("127.0.0.1", { issuer: authority });
    const tls = { cert: await write("cert", cert), key: await write("tls.key", key) };
    const url = await start({ tls });
    const args = ["--token-file", tokenFile];
    const ca = await write("ca", authority.cert);
    expect(await ls(url, [...args, "--tls-ca", ca])).toMatchObject({ code: 0 });
    expect(await ls(url, args, { CHECKPOINTD_TLS_CA: ca })).toMatchObject({ code: 0 });
    expect((await ls(url, args)).stderr).toContain("is not trusted");
    expect((await ls(url, [...args, "--tls-ca", "/none"])).stderr).toContain("tls.ca is neither");
  });

  it("finds a socket", async () => {
    const url = await start({ port: undefined, socketPath: path.join(folder, "sock") });
    expect(url).toMatch(/^unix:/);
    expect(await ls(url, ["--token-file", tokenFile])).toMatchObject({ code: 0 });
    expect((await ls("unix:/none", [])).stderr).toContain("there is no such socket");
  });
});
