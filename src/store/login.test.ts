/** TLS and password files mean the same to the pool, by postgres.js, and to migrations, by pg. */
import { chmod, mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { afterAll, afterEach, beforeAll, describe, expect, inject, it, vi } from "vitest";
import { openPool } from "../testing/postgres.js";
import { startTlsPostgres } from "../testing/tls_postgres.js";
import { withClient } from "./client.js";
import type { Embedded } from "./embedded.js";
import { readLogin } from "./login.js";
import { findOpenPassfile, findPassword } from "./passfile.js";

let folder: string;
let certificate: string;
let postgres: Embedded;

beforeAll(async () => {
  folder = await mkdtemp(path.join(tmpdir(), "login-"));
  ({ postgres, certificate } = await startTlsPostgres(folder));
}, 60_000);
afterEach(() => void vi.unstubAllEnvs());
afterAll(async () => {
  await postgres?.stop();
  await rm(folder, { recursive: true, force: true });
});

const isEncrypted = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";

/** Whether each speaks TLS: "t", "f", or that it was not connected. */
async function outcomes(databaseUrl: string): Promise<string[]> {
  const asPool = async () => {
    const db = openPool(databaseUrl, { poolSize: 1 });
    try {
      return String(await db.run(isEncrypted, []));
    } finally {
      await db.close(0);
    }
  };
  const asMigrate = () =>
    withClient({ databaseUrl }, async (client, url) => {
      const { rows } = await client.query({ text: isEncrypted, rowMode: "array" });
      // The URL of further sessions says what was found out.
      expect(readLogin(url).tls).not.toBe("prefer");
      return rows[0]?.[0] ? "t" : "f";
    });
  return Promise.all([asPool, asMigrate].map((ask) => ask().catch(() => "refused")));
}

describe("sslmode", () => {
  it.each([
    ["", "f", "f"],
    ["sslmode=disable", "f", "f"],
    ["sslmode=allow", "t", "f"],
    ["sslmode=prefer", "t", "f"],
    ["sslmode=prefer&sslrootcert=ROOT", "t", "f"],
    ["sslmode=require", "t", "refused"],
    ["sslmode=require&uselibpqcompat=true", "t", "refused"],
    ["ssl=require", "t", "refused"],
    ["sslmode=require&sslnegotiation=direct", "t", "refused"],
    ["sslmode=require&sslrootcert=ROOT", "t", "refused"],
    ["sslmode=verify-ca&sslrootcert=ROOT", "t", "refused"],
    ["sslmode=verify-ca", "refused", "refused"],
    // The certificate is of localhost, the URL's host is 127.0.0.1.
    ["sslmode=verify-full&sslrootcert=ROOT", "refused", "refused"],
    ["sslmode=verify-full", "refused", "refused"],
    ["sslmode=maybe", "refused", "refused"],
  ])(
    "%j means the same to serve and to migrate",
    { timeout: 60_000 },
    async (query, ...expected) => {
      for (const [i, base] of [postgres.databaseUrl, inject("postgresUrl")].entries()) {
        const found = await outcomes(
          `${base}?${query.replace("ROOT", encodeURIComponent(certificate))}`,
        );
        expect(found).toEqual([expected[i], expected[i]]);
      }
    },
  );

  it("verify-full takes whoever has the name and a certificate of the authority", async () => {
    const root = `sslmode=verify-full&sslrootcert=${encodeURIComponent(certificate)}`;
    const url = postgres.databaseUrl.replace("127.0.0.1", "localhost");
    expect(await outcomes(`${url}?${root}`)).toEqual(["t", "t"]);
  });

  it("is PGSSLMODE where the URL has none", async () => {
    vi.stubEnv("PGSSLMODE", "prefer");
    expect(await outcomes(postgres.databaseUrl)).toEqual(["t", "t"]);
    expect(await outcomes(inject("postgresUrl"))).toEqual(["f", "f"]);
    expect(await outcomes(`${postgres.databaseUrl}?sslmode=disable`)).toEqual(["f", "f"]);
  });

  it("is refused by a sentence where it is none", () => {
    expect(() => readLogin("postgres://h/x?sslmode=maybe")).toThrow("verify-full, not maybe");
    expect(() => readLogin("postgres://h/x?sslmode=require&sslrootcert=/none")).toThrow(
      /^sslrootcert of the database URL cannot be read \(ENOENT/,
    );
    expect(() => readLogin("postgres://h/x?sslmode=prefer&sslnegotiation=direct")).toThrow(
      "needs sslmode=require or stricter",
    );
  });
});

describe("the password file", () => {
  const write = async (text: string, mode = 0o600) => {
    const file = path.join(folder, "passfile");
    await writeFile(file, text);
    await chmod(file, mode);
    vi.stubEnv("PGPASSFILE", file);
    return file;
  };

  const wanted = { host: "h", port: "5432", database: "d", user: "u" };
  it.each([
    ["h:5432:d:u:secret", "secret"],
    ["*:*:*:*:secret", "secret"],
    ["#h:5432:d:u:no\n\nh:5432:d:other:no\nh:5432:d:u:secret\nh:5432:d:u:later", "secret"],
    ["h:5432:d:u:sec\\:r\\\\et\\x:more", "sec:r\\etx"],
    ["h:5432:d:u:secret\\\r\n", "secret\\"],
    ["\\h:5432:d:u:secret", "secret"],
    ["\\*:5432:d:u:secret", undefined],
    ["h:5433:d:u:secret", undefined],
    ["h:5432:d:u", undefined],
    ["", undefined],
  ])("%j gives %j", async (text, password) => {
    await write(text);
    expect(findPassword(wanted)).toBe(password);
  });

  it("names the default socket localhost, and an address by its numbers", async () => {
    await write("localhost:5432:d:u:by name\n/run/pg:5432:d:u:by folder\n\\:\\:1:5432:d:u:six");
    expect(findPassword({ ...wanted, host: "/tmp" })).toBe("by name");
    expect(readLogin("postgres://u@[::1]/d").url).toBe("postgres://u:six@[::1]/d");
  });

  it("is not read where others may read it, which can be told", async () => {
    const file = await write("*:*:*:*:secret", 0o640);
    expect(findPassword(wanted)).toBeUndefined();
    expect(findOpenPassfile()).toBe(file);
    await chmod(file, 0o600);
    expect(findOpenPassfile()).toBeUndefined();
  });

  it("is in the home folder unless PGPASSFILE names it", async () => {
    await write("*:*:*:*:secret");
    const home = path.join(folder, "home");
    await mkdir(home);
    await writeFile(path.join(home, ".pgpass"), "*:*:*:*:at home", { mode: 0o600 });
    vi.stubEnv("HOME", home);
    vi.stubEnv("PGPASSFILE", "");
    expect(findPassword(wanted)).toBe("at home");
  });

  it("is asked only where neither the URL nor PGPASSWORD has a password", async () => {
    await write("*:*:*:*:p@ss%:w");
    expect(readLogin("postgres://u@h/d").url).toBe("postgres://u:p%40ss%25@h/d");
    expect(readLogin("postgres:///d").url).toBe("postgres://:p%40ss%25@localhost/d");
    expect(readLogin("postgres://u:own@h/d").url).toBe("postgres://u:own@h/d");
    vi.stubEnv("PGPASSWORD", "env");
    expect(readLogin("postgres://u@h/d").url).toBe("postgres://u@h/d");
  });

  it("lets the pool and migrations in, each host with its own password", async () => {
    const urls = [postgres.databaseUrl, inject("postgresUrl")].map((url) => new URL(url));
    await write(
      urls
        .map(({ port, password }) => `127.0.0.1:${port}:postgres:postgres:${password}`)
        .join("\n"),
    );
    for (const { host } of urls) {
      expect(await outcomes(`postgres://postgres@${host}/postgres`)).toEqual(["f", "f"]);
    }
    const hosts = ["127.0.0.1:1", ...urls.map(({ host }) => host)].join();
    expect(await outcomes(`postgres://postgres@${hosts}/postgres`)).toEqual(["f", "f"]);
    const backwards = [...urls].reverse().map(({ host }) => host);
    expect(await outcomes(`postgres://postgres@${backwards}/postgres`)).toEqual(["f", "f"]);
    await write("*:*:*:*:wrong");
    expect(await outcomes(`postgres://postgres@${urls[0]?.host}/postgres`)).toEqual([
      "refused",
      "refused",
    ]);
  });
});
