/** What a pool does when its connections fail, at every message of the protocol. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import pg from "pg";
import { afterAll, afterEach, beforeAll, beforeEach, expect, it } from "vitest";
import { createDatabase, openPool, type TestDatabase } from "../testing/postgres.js";
import {
  type Fate,
  type Message,
  type PostgresRelay,
  startPostgresRelay,
} from "../testing/postgres_relay.js";
import { startTlsPostgres } from "../testing/tls_postgres.js";
import type { Db, Run } from "./db.js";
import { startEmbedded } from "./embedded.js";

let database: TestDatabase;
let sql: pg.Client;
let relay: PostgresRelay;
const pools: Db[] = [];
const unhandled: unknown[] = [];
const noteUnhandled = (error: unknown) => unhandled.push(error);

beforeAll(async () => {
  database = await createDatabase();
  sql = new pg.Client({ connectionString: database.url });
  await sql.connect();
  await sql.query("create table marks (n int primary key, texts text[])");
  process.on("unhandledRejection", noteUnhandled);
});
afterAll(async () => {
  process.off("unhandledRejection", noteUnhandled);
  await sql?.end();
  await database?.drop();
});
beforeEach(async () => {
  relay = await startPostgresRelay(database.url);
});
afterEach(async () => {
  await Promise.all(pools.splice(0).map((db) => db.close(0)));
  relay.close();
  expect(unhandled).toEqual([]);
});

function open(options: Parameters<typeof openPool>[1] = {}): Db {
  const db = openPool(relay.url, { poolSize: 2, ...options });
  pools.push(db);
  return db;
}

const insert = "insert into marks values ($1::int, $2::text[])";
let next = 1;

/** Marks that the pool acknowledged but that are not stored. */
async function lost(marks: readonly number[]): Promise<number[]> {
  const { rows } = await sql.query("select n from marks");
  const stored = new Set(rows.map(({ n }) => n));
  return marks.filter((n) => !stored.has(n));
}

/** A statement of each kind, and one that is cancelled; the marks that were acknowledged. */
async function useEverything(db: Db): Promise<number[]> {
  const marks: number[] = [];
  const mark = async (run: Run) => {
    const n = next++;
    const result = await run(insert, [n, ["a", null, '"\\']]);
    expect(result.count).toBe(1);
    marks.push(n);
  };
  const attempts = [
    () => mark(db.run),
    // Its statement is prepared already.
    () => mark(db.run),
    // Not prepared: it has no parameters.
    () => db.run("select 1", []),
    async () => {
      const inTransaction: number[] = [];
      await db.transaction(async (run) => {
        const n = next++;
        await run(insert, [n, []]);
        inTransaction.push(n);
      });
      marks.push(...inTransaction);
    },
    () => db.run("select $1::int from pg_sleep(60)", [1], AbortSignal.timeout(20)),
  ];
  // Whether they fail is for the fault to say; that they settle is for the test's time.
  for (const attempt of attempts) await attempt().catch(() => {});
  await expect.poll(() => db.load().running, { interval: 5, timeout: 20_000 }).toBe(0);
  return marks;
}

const name = ({ from, type }: Message) => `${from} ${type}`;

const faults: Record<"prepared" | "unprepared", Fate[]> = {
  prepared: ["reset", "end", "pass and reset", "fatal"],
  unprepared: ["pass and end", "fatal"],
};
for (const [kind, fates] of Object.entries(faults)) {
  const prepare = kind === "prepared";
  for (const fate of fates) {
    it(`survives a connection's end at each message: ${fate}, ${kind}`, {
      timeout: 300_000,
    }, async () => {
      const seen: string[] = [];
      relay.decide = (message) => {
        seen.push(name(message));
        return "pass";
      };
      const first = open({ prepare });
      await useEverything(first);
      await first.close(0);
      expect(seen).toContain("client cancel");
      expect(seen).toContain("postgres Z");
      const marks: number[] = [];
      for (let at = 0; at < seen.length; at++) {
        let messages = 0;
        relay.decide = () => (messages++ === at ? fate : "pass");
        const db = open({ prepare });
        marks.push(...(await useEverything(db)));
        // It goes on.
        await expect
          .poll(() => db.run("select 1", []).then(String, () => ""), { interval: 10 })
          .toBe("1");
        await db.close(0);
      }
      expect(await lost(marks)).toEqual([]);
      expect(marks.length).toBeGreaterThan(seen.length);
    });
  }
}

it("takes no answer for a statement that was not sent: nothing acknowledged is lost", {
  timeout: 120_000,
}, async () => {
  const db = open({ poolSize: 4 });
  const marks: number[] = [];
  let isOver = false;
  const cut = (async () => {
    for (let i = 0; i < 40 || marks.length <= 100; i++) {
      await sleep(60 + Math.random() * 60);
      relay.decide = () => "reset";
      await sleep(5);
      relay.decide = () => "pass";
    }
    isOver = true;
  })();
  const write = async () => {
    while (!isOver) {
      const n = next++;
      await db.run(insert, [n, []]).then(
        () => marks.push(n),
        () => {},
      );
    }
  };
  await Promise.all([cut, ...Array.from({ length: 16 }, write)]);
  expect(await lost(marks)).toEqual([]);
  expect(db.load()).toEqual({ running: 0, waiting: 0 });
});

it("finds connections that were cut without a word, while new ones pass", {
  timeout: 60_000,
}, async () => {
  const db = open({ poolSize: 4 });
  const sleepAll = (ms: number) =>
    Promise.all([1, 2, 3, 4].map(() => db.run(`select pg_sleep(${ms / 1000})`, [])));
  await sleepAll(100);
  expect(relay.connections()).toBe(4);
  relay.decide = ({ connection }) => (connection < 4 ? "lose" : "pass");
  const results = await Promise.allSettled([1, 2, 3, 4].map(() => db.run("select 1", [])));
  // Without a deadline of their own: Postgres told that it does not know of them.
  for (const result of results) {
    expect(result).toMatchObject({ status: "rejected", reason: { code: "CONNECTION_DEAD" } });
  }
  expect(String(await db.run("select 1", []))).toBe("1");
});

it("ends what Postgres keeps of a connection whose end was kept from it", {
  timeout: 60_000,
}, async () => {
  const busy = async (): Promise<number[]> => {
    const { rows } = await sql.query(
      `select pid from pg_stat_activity
       where application_name = 'checkpointd' and datname = current_database()
         and state <> 'idle'`,
    );
    return rows.map(({ pid }) => pid);
  };
  // Of earlier tests, some of which end connections for good.
  const before = await busy();
  const db = open({ poolSize: 1 });
  await db.run("select 1", []);
  // Half a statement has arrived, and holds a lock.
  relay.decide = ({ from, type }) => (from === "client" && type === "B" ? "lose" : "pass");
  const half = db.run(insert, [next++, []]);
  await expect(half).rejects.toMatchObject({ code: "CONNECTION_DEAD" });
  relay.decide = () => "pass";
  // A whole one whose connection and cancel requests are lost.
  const whole = db.run("select $1::int from pg_sleep(60)", [1], AbortSignal.timeout(300));
  relay.decide = ({ type }) => (type === "cancel" ? "lose" : "pass");
  await expect(whole).rejects.toThrow("timeout");
  await expect.poll(() => db.run("select 1", []).then(String, () => "")).toBe("1");
  await expect
    .poll(async () => (await busy()).filter((pid) => !before.includes(pid)), { timeout: 20_000 })
    .toEqual([]);
});

it("leaves a statement alone that waits for long", { timeout: 60_000 }, async () => {
  const db = open();
  await db.run("select $1::int from pg_sleep(9)", [1]);
  // One for the statement and one that asked after it.
  expect(relay.connections()).toBe(2);
});

it("gives a connection up of which neither statement nor cancel is answered", {
  timeout: 60_000,
}, async () => {
  const db = open({ poolSize: 1 });
  await db.run("select 1", []);
  relay.decide = () => "lose";
  await expect(db.run("select 1", [], AbortSignal.timeout(100))).rejects.toThrow("timeout");
  relay.decide = () => "pass";
  // The pool's one connection is the dead one until it is given up.
  expect(String(await db.run("select 1", []))).toBe("1");
});

it("opens few connections to what accepts and closes them, and answers who waits", {
  timeout: 60_000,
}, async () => {
  relay.decide = () => "end";
  const db = open({ poolSize: 8, queueTimeoutMs: 3_000 });
  const until = performance.now() + 3_000;
  let answers = 0;
  let slowest = 0;
  const ask = async () => {
    while (performance.now() < until) {
      const began = performance.now();
      await expect(db.run("select 1", [])).rejects.toThrow();
      slowest = Math.max(slowest, performance.now() - began);
      answers++;
    }
  };
  await Promise.all(Array.from({ length: 50 }, ask));
  expect(answers).toBeGreaterThanOrEqual(50);
  expect(slowest).toBeLessThan(10_000);
  expect(relay.connections()).toBeLessThan(40);
  // Nobody waits, so nobody tries.
  const after = relay.connections();
  await sleep(1_500);
  expect(relay.connections()).toBeLessThanOrEqual(after + 1);
  relay.decide = () => "pass";
  expect(String(await db.run("select 1", []))).toBe("1");
});

it("does not take an acknowledged rollback for a commit", async () => {
  const db = open();
  const n = next++;
  const use = async (run: Run) => {
    await run(insert, [n, []]);
    await run(insert, [n, []]).catch(() => {});
  };
  await expect(db.transaction(use)).rejects.toMatchObject({ code: "NOT_ACKNOWLEDGED" });
  expect(String(await db.run("select 1", []))).toBe("1");
});

it("leaves a server that became read-only for the one its address leads to now", async () => {
  const db = open({ poolSize: 2 });
  const name = new URL(database.url).pathname.slice(1);
  await sql.query(`alter database ${name} set default_transaction_read_only = on`);
  const refused = () => db.run(insert, [next++, []]);
  await expect(refused()).rejects.toMatchObject({ code: "25006" });
  await sql.query(`alter database ${name} reset default_transaction_read_only`);
  // Connections of that time go on refusing, until they are replaced.
  await expect
    .poll(
      () =>
        db.run(insert, [next++, []]).then(
          () => "stored",
          () => "refused",
        ),
      {
        timeout: 10_000,
      },
    )
    .toBe("stored");
});

it("takes the first of several hosts that takes writes", { timeout: 60_000 }, async () => {
  const folders = await Promise.all([1, 2].map(() => mkdtemp(path.join(tmpdir(), "hosts-"))));
  const start = (dataDir: string) =>
    startEmbedded({ dataDir, onProgress: () => {}, settings: { fsync: "off" } });
  const standby = await start(folders[0]!);
  const primary = await start(folders[1]!);
  const admin = new pg.Client({ connectionString: standby.databaseUrl });
  admin.on("error", () => {});
  await admin.connect();
  const setReadOnly = async (value: string) => {
    await admin.query("set default_transaction_read_only = off");
    await admin.query(`alter system set default_transaction_read_only = ${value}`);
    await admin.query("select pg_reload_conf()");
  };
  try {
    const { password } = new URL(primary.databaseUrl);
    await admin.query(`alter role postgres password '${password}'`);
    await setReadOnly("on");
    const host = ({ databaseUrl }: typeof primary) => new URL(databaseUrl).host;
    // Nobody listens on the first one.
    const hosts = ["127.0.0.1:1", host(standby), host(primary)];
    const url = (attributes = "") =>
      `postgres://postgres:${password}@${hosts.join()}/postgres${attributes}`;
    const port = (db: Db) => db.run("select current_setting('port')", []).then(String);
    for (const attributes of ["", "?target_session_attrs=read-write"]) {
      const db = openPool(url(attributes));
      pools.push(db);
      expect(await port(db)).toBe(new URL(primary.databaseUrl).port);
    }
    const any = openPool(url("?target_session_attrs=any"), { poolSize: 1 });
    pools.push(any);
    expect(await port(any)).toBe(new URL(standby.databaseUrl).port);
    expect(() => openPool(url("?target_session_attrs=standby"))).toThrow("the service writes");

    // Who took over is found when the other one is gone.
    const db = openPool(url(), { poolSize: 1 });
    pools.push(db);
    expect(await port(db)).toBe(new URL(primary.databaseUrl).port);
    await primary.stop();
    await expect.poll(() => port(db).catch(({ code }) => code)).toBe("25006");
    await setReadOnly("off");
    await expect
      .poll(() => port(db).catch(() => ""), { timeout: 20_000 })
      .toBe(new URL(standby.databaseUrl).port);
  } finally {
    await Promise.all(pools.splice(0).map((db) => db.close(0)));
    await admin.end();
    await standby.stop();
    await primary.stop();
    for (const folder of folders) await rm(folder, { recursive: true, force: true });
  }
});

it("speaks TLS where the URL says so, and checks whom it speaks to", {
  timeout: 60_000,
}, async () => {
  const folder = await mkdtemp(path.join(tmpdir(), "tls-"));
  const { postgres } = await startTlsPostgres(folder);
  try {
    const isEncrypted = "select ssl from pg_stat_ssl where pid = pg_backend_pid()";
    for (const [mode, expected] of [
      ["disable", "f"],
      ["prefer", "t"],
      ["require", "t"],
    ]) {
      const db = openPool(`${postgres.databaseUrl}?sslmode=${mode}`, { poolSize: 1 });
      pools.push(db);
      expect(String(await db.run(isEncrypted, []))).toBe(expected);
      const large = Buffer.alloc(3_000_000, "\0\xff\\", "latin1");
      for (let time = 0; time < 2; time++) {
        const [row] = await db.run("select $1::bytea", [large]);
        expect(row?.[0]?.equals(large)).toBe(true);
      }
      const sleeping = db.run("select $1::int from pg_sleep(60)", [1], AbortSignal.timeout(50));
      await expect(sleeping).rejects.toThrow("timeout");
      const ended = db.run("select pg_terminate_backend(pg_backend_pid())", []);
      await expect(ended).rejects.toMatchObject({ code: "CONNECTION_LOST" });
      expect(String(await db.run(isEncrypted, []))).toBe(expected);
    }
    const strict = openPool(`${postgres.databaseUrl}?sslmode=verify-full`);
    pools.push(strict);
    await expect(strict.run(isEncrypted, [])).rejects.toMatchObject({
      code: "CONNECT_FAILED",
      message: expect.stringContaining("self-signed certificate"),
    });
  } finally {
    await Promise.all(pools.splice(0).map((db) => db.close(0)));
    await postgres.stop();
    await rm(folder, { recursive: true, force: true });
  }
});
