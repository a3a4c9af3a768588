/** Bytes as they are, both ways: in every mode of a connection, the first time and later. */

import { randomBytes } from "node:crypto";
import { connect as connectTcp, createServer } from "node:net";
import { afterAll, beforeAll, expect, it, onTestFinished } from "vitest";
import { createDatabase, openPool, type TestDatabase } from "../testing/postgres.js";
import { withBind } from "./bind.js";

let database: TestDatabase;
beforeAll(async () => {
  database = await createDatabase();
});
afterAll(() => database?.drop());

const every = Buffer.from(Array.from({ length: 256 }, (_, i) => i));
/** What looks like the text of other bytes, none, what is copied into the message and what is not. */
const values = [
  every,
  Buffer.from("\\x00"),
  Buffer.alloc(0),
  randomBytes(16 * 1024 - 1),
  randomBytes(16 * 1024),
  randomBytes(3_000_000),
  null,
];

const statement =
  "select n, $1::bytea, $2::text, $3::int[], $4::bytea, null::bytea from generate_series(1, $5::int) as n";

it.each([true, false])("carries them with everything else, prepared: %s", async (prepare) => {
  const db = openPool(database.url, { poolSize: 1, prepare });
  onTestFinished(() => db.close(1_000));
  for (let time = 0; time < 3; time++) {
    for (const [i, value] of values.entries()) {
      const other = values[(i + 1) % values.length]!;
      const text = "é漢😀\\x'\"".repeat(i);
      const rows = await db.run(statement, [value, text, [1, null, -3], other, 2]);
      expect(rows.map(([n]) => String(n))).toEqual(["1", "2"]);
      for (const [, a, b, c, d, e] of rows) {
        expect([a && Buffer.compare(a, value!), d && Buffer.compare(d, other)]).toEqual([
          value && 0,
          other && 0,
        ]);
        expect([String(b), String(c), e]).toEqual([text, "{1,NULL,-3}", null]);
      }
    }
  }
});

it("carries them without parameters, where nothing is known of the columns before", async () => {
  const db = openPool(database.url, { poolSize: 1 });
  onTestFinished(() => db.close(1_000));
  for (let time = 0; time < 2; time++) {
    const [row] = await db.run("select '\\x00ff5c'::bytea, 1", []);
    expect([[...(row?.[0] ?? [])], String(row?.[1])]).toEqual([[0, 255, 92], "1"]);
  }
});

it("carries them whenever the answers arrive, and after a plan was no good any more", async () => {
  const { hostname, port } = new URL(database.url);
  // A byte at a time, so that nothing of what Postgres says arrives together.
  const relay = createServer((client) => {
    const postgres = connectTcp(Number(port), hostname);
    client.on("error", () => postgres.destroy()).on("close", () => postgres.destroy());
    postgres.on("error", () => client.destroy()).on("close", () => client.destroy());
    client.setNoDelay();
    client.pipe(postgres);
    let queue = Promise.resolve();
    postgres.on("data", (data: Buffer) => {
      queue = queue.then(async () => {
        for (let i = 0; i < data.length; i++) {
          client.write(data.subarray(i, i + 1));
          await new Promise((resolve) => setImmediate(resolve));
        }
      });
    });
  });
  await new Promise<void>((resolve) => relay.listen(0, "127.0.0.1", resolve));
  const url = new URL(database.url);
  url.port = String((relay.address() as { port: number }).port);
  url.hostname = "127.0.0.1";
  const db = openPool(url.href, { poolSize: 1 });
  onTestFinished(async () => {
    await db.close(1_000);
    relay.close();
  });
  await db.run("create table changing (a bytea)", []);
  await db.run("insert into changing values ($1::bytea)", [every]);
  for (let time = 0; time < 3; time++) {
    const [row] = await db.run("select * from changing where octet_length(a) > $1::int", [1]);
    expect(row?.[0] && Buffer.compare(row[0], every)).toBe(0);
    if (time === 1) await db.run("alter table changing add column b int default 7", []);
    if (time === 2) expect(row?.map((cell) => cell?.length)).toEqual([256, 1]);
  }
  await db.run("alter table changing drop column a", []);
  await db.run("alter table changing add column a text default 'text'", []);
  const [row] = await db.run("select * from changing where b > $1::int", [1]);
  expect(row?.map(String)).toEqual(["7", "text"]);
});

it("changes nothing but a Bind of the messages that are written", () => {
  const startUp = Buffer.from([0, 0, 0, 8, 4, 210, 22, 47]);
  const sync = Buffer.from([0x53, 0, 0, 0, 4]);
  const never = () => {
    throw new Error("there is no Bind");
  };
  expect(withBind(startUp, never)).toEqual([startUp]);
  expect(withBind(sync, never)).toEqual([sync]);
  const names = Buffer.from("portal\0B\0");
  const head = Buffer.from([0x42, 0, 0, 0, 4 + names.length + 6]);
  const bind = Buffer.concat([head, names, Buffer.alloc(6)]);
  const written = Buffer.concat([sync, bind, sync]);
  const parameters = ["a", 12, null, Buffer.from([0])];
  const made = Buffer.concat(withBind(written, () => ({ parameters, formats: [0, 1] })));
  const expected = Buffer.concat([
    names,
    Buffer.from([0, 4, 0, 0, 0, 0, 0, 0, 0, 1]),
    Buffer.from([0, 4, 0, 0, 0, 1, 97, 0, 0, 0, 2, 49, 50, 255, 255, 255, 255, 0, 0, 0, 1, 0]),
    Buffer.from([0, 2, 0, 0, 0, 1]),
  ]);
  const length = Buffer.from([0x42, 0, 0, 0, 4 + expected.length]);
  expect(made).toEqual(Buffer.concat([sync, length, expected, sync]));
});
