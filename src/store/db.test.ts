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
