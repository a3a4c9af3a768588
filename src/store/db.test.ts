import { setTimeout as sleep } from "node:timers/promises";
import { expect, it } from "vitest";
import { createDatabase, openPool } from "../testing/postgres.js";

it("delivers all rows and nothing else after a statement that failed half way", async () => {
  const database = await createDatabase();
  const db = openPool(database.url, { poolSize: 1, queueLimit: 1 });
  for (const signal of [undefined, new AbortController().signal]) {
    const failing = db.run("select 1 / (4 - i) from generate_series(1, 5) i", [], signal);
    await expect(failing).rejects.toMatchObject({ code: "22012" });
    const rows = await db.run("select i from generate_series(1, 5) i", [], signal);
    expect(Array.from(rows, (row) => String(row?.[0]))).toEqual(["1", "2", "3", "4", "5"]);
  }
  await db.close(1000);
  await database.drop();
});

it("leaves room for short statements beside any number of long reads", async () => {
  const database = await createDatabase();
  const db = openPool(database.url, { poolSize: 8 });
  const long = Promise.all(
    Array.from({ length: 20 }, () => db.runLong("select pg_sleep(0.2)", [])),
  );
  await expect.poll(() => db.load()).toEqual({ running: 2, waiting: 18 });
  // The others are free.
  await Promise.all(Array.from({ length: 6 }, () => db.run("select 1", [])));
  expect(db.load().waiting).toBeGreaterThan(0);
  await long;
  expect(db.load()).toEqual({ running: 0, waiting: 0 });
  await db.close(1000);
  await database.drop();
});

it("carries out nothing that it was asked for before it stood still", async () => {
  const database = await createDatabase();
  const db = openPool(database.url, { poolSize: 1 });
  await db.run("create table marks ()", []);
  const slow = db.run("select pg_sleep(0.3)", []);
  // It waits for the connection when the process stops.
  const waiting = db.run("insert into marks default values", []);
  await sleep(50);
  const until = performance.now() + 4_500;
  while (performance.now() < until);
  const asked = db.run("insert into marks default values", []);
  asked.catch(() => {});
  const refusal = { code: "unavailable", detail: { reason: "SERVER_STALLED" } };
  await expect(waiting).rejects.toMatchObject(refusal);
  await expect(asked).rejects.toMatchObject(refusal);
  await slow;
  const ask = () => db.run("select count(*) from marks", []).then(String, () => "");
  await expect.poll(ask, { timeout: 10_000 }).toBe("0");
  await db.close(1000);
  await database.drop();
});

it("fails nobody who asks when it goes on again, with connections from before", async () => {
  const database = await createDatabase();
  const db = openPool(database.url, { poolSize: 3 });
  const three = () =>
    Promise.allSettled([1, 2, 3].map(() => db.run("select pg_sleep(0.1)", []))).then((all) =>
      all.map((each) => (each.status === "fulfilled" ? "fulfilled" : each.reason.code)),
    );
  expect(await three()).toEqual(Array(3).fill("fulfilled"));
  const until = performance.now() + 4_500;
  while (performance.now() < until);
  await sleep(2_000);
  expect(await three()).toEqual(Array(3).fill("fulfilled"));
  await db.close(1000);
  await database.drop();
});
