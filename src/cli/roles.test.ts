/** Who serves owns nothing: the roles of docs/operate.md and of the embedded Postgres. */
import { randomBytes } from "node:crypto";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import pg from "pg";
import { describe, expect, inject, it } from "vitest";
import { ConnectSaver } from "../client/saver.js";
import { startEmbedded } from "../store/embedded.js";
import { migrate } from "../store/migrate.js";
import { captureLog } from "../testing/captured_log.js";
import { createDatabase } from "../testing/postgres.js";
import { runCommand, startServe } from "../testing/serve_process.js";
import { startTestServer } from "../testing/test_server.js";

async function query<Row extends pg.QueryResultRow>(url: string, text: string): Promise<Row[]> {
  const client = new pg.Client({ connectionString: url });
  client.on("error", () => {});
  await client.connect();
  try {
    return (await client.query<Row>(text)).rows;
  } finally {
    await client.end();
  }
}

/** What an agent and an operator do, through a server. */
async function useAll(url: string): Promise<void> {
  const saver = ConnectSaver.fromUrl(url);
  const config = { configurable: { thread_id: "t", checkpoint_ns: "" } };
  const checkpoint = {
    v: 4,
    id: "1ef00000-0000-6000-8000-000000000001",
    ts: "2026-01-01T00:00:00.000Z",
    channel_values: { a: ["x".repeat(3000)] },
    channel_versions: { a: 1 },
    versions_seen: {},
  };
  for (const id of [checkpoint.id, checkpoint.id.replace(/1$/, "2")]) {
    const metadata = { source: "loop" as const, step: 1, parents: {} };
    const stored = await saver.put(config, { ...checkpoint, id }, metadata, { a: 1 });
    await saver.putWrites(stored, [["a", 1]], "task");
  }
  expect((await saver.getTuple(config))?.checkpoint.channel_values).toEqual(
    checkpoint.channel_values,
  );
  const tuples = [];
  for await (const tuple of saver.list(config)) tuples.push(tuple);
  expect(tuples).toHaveLength(2);
  const [lease] = await saver.threads.claim({
    owner: "me",
    threadId: "t",
    status: ["completed", "pending", "interrupted", "failed"],
  });
  expect(lease?.token).toBeDefined();
  await saver.threads.copy("t", "copy");
  for await (const _ of saver.threads.prune({ threadIds: ["copy"], keepLast: 1 }));
  await saver.deleteThread("copy");
  const ids = [];
  for await (const { threadId } of saver.threads.list({ counts: true })) ids.push(threadId);
  expect(ids).toEqual(["t"]);
  await saver.end();
}

/** What only an owner or a superuser may do. */
const forbidden = [
  "COPY (SELECT 1) TO PROGRAM 'true'",
  "COPY checkpoints TO '/tmp/checkpointd-stolen'",
  "SELECT pg_read_file('PG_VERSION')",
  "CREATE TABLE public.mine (x int)",
  "CREATE SCHEMA mine",
  "CREATE ROLE mine",
  "DROP TABLE checkpoints",
  "TRUNCATE checkpoints",
  "ALTER TABLE checkpoints ADD COLUMN x int",
  "CREATE FUNCTION public.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
  "ALTER SYSTEM SET log_statement = 'all'",
];

async function expectLimited(url: string): Promise<void> {
  for (const text of forbidden) {
    await expect(query(url, text), text).rejects.toMatchObject({ code: "42501" });
  }
}

describe("the roles of docs/operate.md", () => {
  it.each(["migrated anew", "migrated before"])(
    "serve a database %s",
    { timeout: 60_000 },
    async (when) => {
      const page = await readFile(new URL("../../docs/operate.md", import.meta.url), "utf8");
      const blocks = [...page.matchAll(/```sql\n([\s\S]*?)```/g)].map(([, sql = ""]) => sql);
      expect(blocks).toHaveLength(2);
      const suffix = randomBytes(4).toString("hex");
      const named = (sql: string) =>
        sql.replaceAll(/checkpointd_(migrate|serve)\b/g, `$&_${suffix}`);
      const isAnew = when === "migrated anew";
      const database = await createDatabase({ template: !isAnew });
      const folder = await mkdtemp(path.join(tmpdir(), "roles-"));
      const toUrl = (role: string, password: string) => {
        const url = new URL(database.url);
        url.username = `${role}_${suffix}`;
        url.password = password;
        return url.href;
      };
      const migrateUrl = toUrl("checkpointd_migrate", "one of its own");
      const serveUrl = toUrl("checkpointd_serve", "another");
      try {
        for (const sql of isAnew ? blocks.slice(0, 1) : blocks)
          await query(database.url, named(sql));
        if (!isAnew) {
          await query(database.url, "DELETE FROM checkpointd_migrations WHERE name ~ '^0010'");
        }
        const file = path.join(folder, "migrate.url");
        await writeFile(file, `${migrateUrl}\nnot this\n`, { mode: 0o600 });
        const migrated = await runCommand(["migrate", "--database-url-file", file]);
        expect(migrated).toMatchObject({ code: 0, stdout: expect.stringContaining("0010") });
        const captured = captureLog();
        const server = await startTestServer(serveUrl, {
          migrate: false,
          retention: [
            { text: "keep_last=5", keepLast: 5, metadata: undefined, olderThanMs: undefined },
          ],
          log: captured.log,
        });
        await useAll(server.url);
        await expect.poll(() => captured.lines().map(({ msg }) => msg)).toContain("retention");
        expect(captured.lines().filter(({ level }) => Number(level) >= 40)).toEqual([]);
        await expectLimited(serveUrl);
        await server.drain();
      } finally {
        await database.drop();
        await rm(folder, { recursive: true });
        for (const role of ["checkpointd_migrate", "checkpointd_serve"]) {
          await query(inject("postgresUrl"), `DROP ROLE IF EXISTS ${role}_${suffix}`);
        }
      }
    },
  );
});

describe("the embedded Postgres", () => {
  const inFolder = async (use: (folder: string) => Promise<void>) => {
    const folder = await mkdtemp(path.join(tmpdir(), "roles-"));
    try {
      await use(folder);
    } finally {
      await rm(folder, { recursive: true, force: true });
    }
  };
  const quick = { settings: { fsync: "off" }, onProgress: () => {} };
  const owners = `SELECT DISTINCT n.nspname || ' ' || pg_get_userbyid(relowner) AS owner
    FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
    WHERE relname ~ '^checkpoint' AND relkind = 'r' ORDER BY 1`;

  it(
    "serves by a role that can do no more, also in a schema that it makes",
    { timeout: 90_000 },
    () =>
      inFolder(async (dataDir) => {
        const embedded = await startEmbedded({ dataDir, ...quick });
        try {
          for (const schema of ["public", "new one"]) {
            const { servingUrl, migrationUrl } = await embedded.makeRoles();
            const server = await startTestServer(servingUrl, { migrationUrl, schema });
            await useAll(server.url);
            await server.drain();
            await expectLimited(servingUrl);
            await expect(query(migrationUrl, forbidden[0]!)).rejects.toMatchObject({
              code: "42501",
            });
          }
          const owned = await query(embedded.databaseUrl, owners);
          expect(owned.map(({ owner }) => owner)).toEqual([
            "new one checkpointd_migrate",
            "public checkpointd_migrate",
          ]);
          expect(await readFile(path.join(dataDir, ".gitignore"), "utf8")).toBe("*\n");
        } finally {
          await embedded.stop();
        }
      }),
  );

  it("hands over what the superuser made, and keeps it", { timeout: 90_000 }, () =>
    inFolder(async (dataDir) => {
      const before = await startEmbedded({ dataDir, ...quick });
      const { databaseUrl } = before;
      for (const schema of ["public", "agents"]) await migrate({ databaseUrl, schema });
      await query(
        databaseUrl,
        `INSERT INTO agents.checkpoints (thread_id, checkpoint_id, checkpoint, metadata)
         VALUES ('old', '1', '{"v": 4}', '{}');
         DELETE FROM agents.checkpointd_migrations WHERE name ~ '^0010';
         CREATE TABLE own AS SELECT 1 AS x`,
      );
      await before.stop();
      await rm(path.join(dataDir, ".gitignore"));

      const args = ["--data-dir", dataDir, "--schema", "agents", "--workers", "2"];
      const serve = await startServe([...args, "--retention", "keep_last=5"]);
      await serve.printed("is ready");
      const { stdout } = serve.output();
      const saver = ConnectSaver.fromUrl(serve.url);
      expect(await saver.threads.get("old")).toBeDefined();
      await saver.deleteThread("old");
      await saver.end();
      await useAll(serve.url);
      // As a person does who types the line that is printed.
      const [, port] = / -p (\d+) -U postgres postgres\n/.exec(stdout) ?? [];
      const password = (await readFile(path.join(dataDir, "password"), "utf8")).trim();
      const superuser = `postgres://postgres:${password}@127.0.0.1:${port}/postgres`;
      const found = await query(superuser, owners);
      expect(found.map(({ owner }) => owner)).toEqual([
        "agents checkpointd_migrate",
        "public checkpointd_migrate",
      ]);
      const [own] = await query(
        superuser,
        "SELECT tableowner FROM pg_tables WHERE tablename = 'own'",
      );
      expect(own).toEqual({ tableowner: "postgres" });
      const users = await query(
        superuser,
        `SELECT DISTINCT usename, usesuper FROM pg_stat_activity JOIN pg_user USING (usename)
         WHERE application_name = 'checkpointd'`,
      );
      expect(users).toEqual([{ usename: "checkpointd_serve", usesuper: false }]);
      const end = await serve.stop();
      expect(end.code).toBe(0);
      expect(end.stderr).not.toMatch(/"level":"(error|warn)"/);
      expect(await readFile(path.join(dataDir, ".gitignore"), "utf8")).toBe("*\n");
    }),
  );

  it("writes no .gitignore where there are other things", { timeout: 60_000 }, () =>
    inFolder(async (dataDir) => {
      await writeFile(path.join(dataDir, "mine.txt"), "");
      const embedded = await startEmbedded({ dataDir, ...quick });
      await embedded.stop();
      await expect(readFile(path.join(dataDir, ".gitignore"))).rejects.toThrow("ENOENT");
    }),
  );
});

describe("a password in the flag", () => {
  it("is warned of in the log, and by migrate", { timeout: 60_000 }, async () => {
    const { url, drop } = await createDatabase();
    const serve = await startServe(["--database-url", url]);
    await serve.printed("is ready");
    const { stderr } = await serve.stop();
    expect(stderr).toMatch(/"level":"warn",.*the password in --database-url can be read/);
    const migrated = await runCommand(["migrate", `--database-url=${url}`]);
    expect(migrated.stderr).toMatch(/^warning: the password in --database-url can be read/);
    const quiet = await runCommand(["migrate"], { DATABASE_URL: url });
    expect(quiet).toMatchObject({ code: 0, stderr: "" });
    await drop();
  });

  it("is not needed with a password file", { timeout: 60_000 }, async () => {
    const { url, drop } = await createDatabase();
    const folder = await mkdtemp(path.join(tmpdir(), "roles-"));
    const { password, host, pathname } = new URL(url);
    const file = path.join(folder, "pgpass");
    await writeFile(file, `127.0.0.1:*:*:postgres:${password}\n`, { mode: 0o600 });
    const args = ["--database-url", `postgres://postgres@${host}${pathname}`];
    const env = { PGPASSFILE: file };
    expect(await runCommand(["migrate", ...args], env)).toMatchObject({ code: 0, stderr: "" });
    const serve = await startServe([...args, "--workers", "2", "--retention", "keep_last=5"], env);
    await serve.printed("is ready");
    await useAll(serve.url);
    expect((await serve.stop()).stderr).not.toMatch(/"level":"(error|warn)"/);
    await drop();
    await rm(folder, { recursive: true });
  });
});
