import pg from "pg";
import { expect, test } from "vitest";
import { createDatabase } from "./postgres.js";

test("clones of the template are migrated, apart from each other, and removed", async () => {
  const [one, two, empty] = await Promise.all([
    createDatabase(),
    createDatabase(),
    createDatabase({ template: false }),
  ]);
  const tables = async (url: string) => {
    const client = new pg.Client({ connectionString: url });
    await client.connect();
    const { rows } = await client.query<{ relname: string }>(
      "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1",
    );
    await client.end();
    return rows.map(({ relname }) => relname);
  };
  expect(one.url).not.toBe(two.url);
  expect(await tables(empty.url)).toEqual([]);
  expect(await tables(two.url)).toEqual([
    "checkpoint_blobs",
    "checkpoint_migrations",
    "checkpoint_writes",
    "checkpointd_claims",
    "checkpointd_migrations",
    "checkpoints",
  ]);
  await Promise.all([one.drop(), two.drop(), empty.drop()]);
  await expect(tables(one.url)).rejects.toThrow("does not exist");
});
