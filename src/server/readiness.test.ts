/** What a look at the database finds, says in the log and answers. */
import { setTimeout as sleep } from "node:timers/promises";
import { Code, type ConnectError } from "@connectrpc/connect";
import pg from "pg";
import { afterEach, expect, test } from "vitest";
import type { ErrorReason } from "../errors.js";
import { lookAtTables } from "../store/look.js";
import { migrate } from "../store/migrate.js";
import { createAuthFile, everything } from "../testing/auth_file.js";
import { block } from "../testing/blocking.js";
import { captureLog } from "../testing/captured_log.js";
import { createClients, expectTold, failureOf, make, ways } from "../testing/edge.js";
import { createDatabase, openPool } from "../testing/postgres.js";
import { startTestServer } from "../testing/test_server.js";
import { version } from "../version.js";
import { startReadiness } from "./readiness.js";

const cleanups: (() => Promise<unknown> | unknown)[] = [];
afterEach(async () => {
  for (const cleanup of cleanups.splice(0).reverse()) await cleanup();
});

async function setUp(template = true) {
  const database = await createDatabase({ template });
  const client = new pg.Client({ connectionString: database.url });
  client.on("error", () => {});
  await client.connect();
  cleanups.push(
    () => database.drop(),
    () => client.end(),
  );
  return { url: database.url, sql: async (text: string) => (await client.query(text)).rows };
}

/** Watches a database as a server does. */
function watch(databaseUrl: string, migrates = false) {
  const { log, lines } = captureLog();
  const db = openPool(databaseUrl, { poolSize: 1 });
  const options = { databaseUrl, schema: "public", poolSize: 1, prepare: true };
  const limits = { queueLimit: 10, queueTimeoutMs: 10_000 };
  const readiness = startReadiness(db, { ...options, ...limits, migrate: migrates }, log, () => {});
  cleanups.push(async () => {
    readiness.stop();
    await db.close(500);
  });
  const warned = async (text: string) => {
    for (;;) {
      const line = lines({ level: 40 }).find(({ msg }) => String(msg).includes(text));
      if (line) return line;
      await sleep(20);
    }
  };
  return { readiness, lines, warned };
}

/** A role that may log in and nothing else; the URL with it. */
async function createRole(url: string, sql: (text: string) => Promise<unknown>) {
  const role = `role_${Math.random().toString(36).slice(2)}`;
  await sql(`create role ${role} login password 'x'`);
  cleanups.push(() => sql(`drop owned by ${role}; drop role ${role}`));
  const limited = new URL(url);
  limited.username = role;
  limited.password = "x";
  return { role, url: limited.href };
}

test("each column that is missing is named, and it is not ready", async () => {
  const { url, sql } = await setUp();
  await sql("alter table checkpoints rename metadata to meta");
  await sql("alter table checkpoint_blobs drop column blob");
  const { readiness, warned, lines } = watch(url);
  const line = await warned("no column checkpoint_blobs.blob, no column checkpoints.metadata");
  expect(line).toMatchObject({ error: { code: "42703" } });
  expect(readiness.isReady()).toBe(false);
  await sleep(1200);
  expect(lines({ level: 40 })).toHaveLength(1);
  await sql("alter table checkpoints rename meta to metadata");
  await warned("(no column checkpoint_blobs.blob)");
  await sql("alter table checkpoint_blobs add column blob bytea");
  await readiness.firstTime;
  expect(readiness.isReady()).toBe(true);
});

test("a privilege that is missing is named", async () => {
  const { url, sql } = await setUp();
  const limited = await createRole(url, sql);
  await sql(`grant select, insert, update, delete on checkpoints, checkpoint_blobs,
    checkpoint_writes, checkpointd_claims to ${limited.role}`);
  await sql(`revoke delete on checkpoint_writes from ${limited.role}`);
  const { readiness, warned } = watch(limited.url);
  await warned("lacks a privilege: grant it what docs/operate.md names");
  expect(await warned("(no DELETE on checkpoint_writes)")).toMatchObject({
    error: { code: "42501" },
  });
  await sql(`grant delete on checkpoint_writes to ${limited.role}`);
  await readiness.firstTime;
  // It may not read which migrations ran, which is said and does no harm.
  await warned("grant SELECT on it");
});

test("a database that takes no writes is not ready, and said to be read-only", async () => {
  const { url, sql } = await setUp();
  const readOnly = (value: string) =>
    sql(`do $$ begin execute format(
      'alter database %I set default_transaction_read_only = ${value}', current_database()); end $$`);
  await readOnly("on");
  const { readiness, warned } = watch(url);
  expect(await warned("the database is read-only (a standby")).toMatchObject({
    error: { code: "25006" },
  });
  expect(readiness.isReady()).toBe(false);
  // Sessions that are open stay as they are: it has to open others.
  await readOnly("off");
  await readiness.firstTime;
  expect(readiness.isReady()).toBe(true);

  // Later too; but reads may still be served then.
  await readOnly("on");
  await sql(`select pg_terminate_backend(pid) from pg_stat_activity
    where datname = current_database() and application_name = 'checkpointd'`);
  while (readiness.isReady()) await sleep(50);
  expect(readiness.wasReady()).toBe(true);
  await readOnly("off");
  while (!readiness.isReady()) await sleep(50);
});

test.each([
  ["a wrong password", (url: URL) => (url.password = "wrong"), "refuses the user or the password"],
  ["no password", (url: URL) => (url.password = ""), "refuses the user or the password"],
  ["an unknown database", (url: URL) => (url.pathname = "/nobody"), "does not exist: create it"],
  [
    "a port without Postgres",
    (url: URL) => (url.port = "1"),
    "cannot be reached: see that it runs",
  ],
  ["an unknown host", (url: URL) => (url.hostname = "nobody.invalid"), "is not known: correct its"],
])("%s is said at once, migrating or not, and once", async (_, change, sentence) => {
  const { url } = await setUp();
  const wrong = new URL(url);
  change(wrong);
  const look = async (migrates: boolean) => {
    const { warned, lines, readiness } = watch(wrong.href, migrates);
    expect(String((await warned(sentence)).msg)).toMatch(/^not ready: .*; trying again/);
    await sleep(1200);
    expect(lines({ level: 40 })).toHaveLength(1);
    expect(readiness.isReady()).toBe(false);
    expect(JSON.stringify(lines())).not.toContain(wrong.password || "secret");
  };
  await Promise.all([look(false), look(true)]);
});

test("looking takes no transaction id and writes nothing", async () => {
  const { url } = await setUp();
  const db = openPool(url);
  cleanups.push(() => db.close(500));
  const signal = AbortSignal.timeout(20_000);
  const taken = await db.transaction(async (run) => {
    const found = await lookAtTables({ ...db, run }, "public", signal);
    expect(found).toMatchObject({ trouble: undefined, newer: [], missing: [], locks: [] });
    expect(found).toMatchObject({ mayReadMigrations: true, needs: undefined });
    const [row] = await run("select pg_current_xact_id_if_assigned()", []);
    return row?.[0];
  }, signal);
  expect(taken).toBeNull();
});

test("a table that somebody has locked does not make it not ready; who has is said once", async () => {
  const { url } = await setUp();
  const locker = await block(
    url,
    "lock table checkpoints, checkpoint_blobs, checkpoint_writes, checkpointd_claims",
  );
  const { warned, readiness, lines } = watch(url);
  await readiness.firstTime;
  expect(String((await warned("holds a lock")).locks)).toMatch(
    /AccessExclusiveLock on checkpoint_blobs \(process \d+\)/,
  );
  await sleep(5_500);
  expect(readiness.isReady()).toBe(true);
  expect(lines({ level: 40 })).toHaveLength(1);
  await locker.release();
});

test("a breaking migration of a newer version: calls are refused until it is undone", async () => {
  const { url, sql } = await setUp();
  const { log, lines } = captureLog();
  const server = await startTestServer(url, { log, migrate: false });
  cleanups.push(() => server.drain());
  const clients = createClients(server.url);
  const ready = async () => (await fetch(`${server.url}/readyz`)).status === 200;
  const untilReady = async (wanted: boolean) => {
    while ((await ready()) !== wanted) await sleep(50);
  };
  const insert = (name: string, safe: boolean) =>
    sql(
      `insert into checkpointd_migrations (name, run_on, safe) values ('${name}', now(), ${safe})`,
    );
  const said = (text: string) => lines().some(({ msg }) => String(msg).includes(text));
  const expectRefused = async (reason: ErrorReason) => {
    for (const way of ways) {
      const error = await failureOf(make(clients[way], { rpc: "list", request: {} }));
      expectTold(error, { code: Code.Unavailable, reason });
    }
  };

  await insert("9998_of_the_future", true);
  await sleep(5_500);
  expect(await ready()).toBe(true);
  await insert("9999_rename_everything", false);
  await untilReady(false);
  await expectRefused("SCHEMA_NEW");
  expect(said("(9999_rename_everything)")).toBe(true);
  expect(said("start the newer version")).toBe(true);
  await sql("delete from checkpointd_migrations where name = '9999_rename_everything'");
  await untilReady(true);
  await make(clients.connect, { rpc: "list", request: {} });

  // An older dump was restored.
  await sql("delete from checkpointd_migrations where name >= '0010'");
  await untilReady(false);
  while (!said("run checkpointd migrate")) await sleep(50);
  await expectRefused("SCHEMA_OLD");
  expect(said("without 0010_compress_writes, 9998")).toBe(false);
  expect(said("(without 0010_compress_writes): run checkpointd migrate")).toBe(true);
  await migrate({ databaseUrl: url, schema: "public" });
  await untilReady(true);
  expect(said("database ready again")).toBe(true);
}, 60_000);

test("a tenant's tables are looked at as well: newer or older, its calls alone are refused", async () => {
  const { url, sql } = await setUp();
  const auth = createAuthFile(
    { red: { schema: "red" }, blue: { schema: "blue" } },
    {
      red: { tenant: "red", grants: everything },
      blue: { tenant: "blue", grants: everything },
      own: { grants: everything },
    },
  );
  cleanups.push(() => auth.remove());
  // Somebody brought this one up to date before the server was started, and with another version.
  await migrate({ databaseUrl: url, schema: "blue" });
  const record = (schema: string) =>
    sql(`insert into ${schema}.checkpointd_migrations (name, run_on, safe, min_server)
      values ('9901_of_the_future', now(), false, '900.0.0')`);
  const forget = (schema: string, from: string) =>
    sql(`delete from ${schema}.checkpointd_migrations where name >= '${from}'`);
  await record("blue");
  const { log, lines } = captureLog();
  const server = await startTestServer(url, { log, authFile: auth.file });
  cleanups.push(() => server.drain());
  const of = (name: "red" | "blue" | "own") => createClients(server.url, auth.keys[name]).connect;
  const list = (name: "red" | "blue" | "own") =>
    make(of(name), { rpc: "list", request: {} }).then(
      () => undefined,
      (error: unknown) => error as ConnectError,
    );
  const untilAnswered = async (name: "red" | "blue" | "own") => {
    while ((await list(name)) !== undefined) await sleep(50);
  };
  const untilRefused = async (name: "red" | "blue" | "own", reason: ErrorReason) => {
    let error = await list(name);
    for (; error === undefined; error = await list(name)) await sleep(50);
    expectTold(error, { code: Code.Unavailable, reason });
    return error;
  };
  const said = (text: string) => lines().some(({ msg }) => String(msg).includes(text));

  await untilRefused("blue", "SCHEMA_NEW");
  await untilAnswered("red");
  await record("red");
  expect((await untilRefused("red", "SCHEMA_NEW")).rawMessage).toContain("need 900.0.0 or later");
  expect(said("a tenant's tables cannot be served: a newer version")).toBe(true);
  expect((await fetch(`${server.url}/readyz`)).status).toBe(200);
  await untilAnswered("own");

  await forget("red", "99");
  await forget("blue", "99");
  await untilAnswered("red");
  await untilAnswered("blue");
  expect(said("a tenant's tables can be served again")).toBe(true);
  await forget("red", "0010");
  await untilRefused("red", "SCHEMA_OLD");
  await untilAnswered("blue");
}, 60_000);

test("of what it does not know the greatest version counts, and is named to who calls", async () => {
  const { url, sql } = await setUp();
  const { log, lines } = captureLog();
  const server = await startTestServer(url, { log, migrate: false });
  cleanups.push(() => server.drain());
  const clients = createClients(server.url);
  const insert = (name: string, minServer: string | null) =>
    sql(`insert into checkpointd_migrations (name, run_on, safe, min_server)
      values ('${name}', now(), false, ${minServer === null ? "null" : `'${minServer}'`})`);
  const untilReady = async (wanted: boolean) => {
    while (((await fetch(`${server.url}/readyz`)).status === 200) !== wanted) await sleep(50);
  };
  const expectSaid = async (ofServer: string, ofCalls: string) => {
    while (!lines().some(({ msg }) => String(msg).includes(ofServer))) await sleep(50);
    for (const way of ways) {
      const error = await failureOf(make(clients[way], { rpc: "list", request: {} }));
      expectTold(error, { code: Code.Unavailable, reason: "SCHEMA_NEW" });
      expect(error.rawMessage).toContain(ofCalls);
    }
  };
  const own = version();
  const next = (by: number) => own.replace(/^(\d+)\.(\d+)/, (_, a, b) => `${a}.${Number(b) + by}`);

  // What earlier versions broke with, and what this one has.
  await insert("9901_old", "0.0.9");
  await insert("9902_own", own.replace(/-.*/, ""));
  await sleep(5_500);
  await untilReady(true);
  await make(clients.connect, { rpc: "list", request: {} });

  await insert("9903_far", next(10));
  await insert("9904_near", next(9));
  await untilReady(false);
  await expectSaid(
    `(9903_far,9904_near): start version ${next(10)} or a later one, this is ${own}; calls are`,
    `it is version ${own}, and they need ${next(10)} or later`,
  );
  // Another kind of answer, or none, is one that we do not understand.
  await insert("9905_odd", "newest");
  await expectSaid("(9903_far,9904_near,9905_odd): start the newer version", "too old for them");
  await sql("delete from checkpointd_migrations where name > '9902_own'");
  await untilReady(true);
}, 60_000);

test("migrations applied before they were marked are marked, by who owns the table", async () => {
  const { url, sql } = await setUp();
  const limited = await createRole(url, sql);
  await sql(`grant select on checkpointd_migrations to ${limited.role}`);
  await sql("alter table checkpointd_migrations drop column safe");
  await sql("insert into checkpointd_migrations (name, run_on) values ('9999_unknown', now())");
  const { warned } = watch(url);
  // Who cannot say what it is must not be trusted.
  await warned("(9999_unknown)");
  const schema = "public";
  expect(await migrate({ databaseUrl: limited.url, schema })).toEqual({ applied: [] });
  expect(await migrate({ databaseUrl: url, schema })).toEqual({ applied: [] });
  expect(await migrate({ databaseUrl: limited.url, schema })).toEqual({ applied: [] });
  expect(await sql("select name from checkpointd_migrations where not safe order by name")).toEqual(
    [{ name: "9999_unknown" }],
  );
});
