import type { Db } from "./db.js";
import { text } from "./rows.js";

/**
 * Counts the bytes of all values, writes and checkpoints in a schema, as they are stored, and a little
 * for each row. Reads every row and no value: 1,000,000 rows take about a second.
 */
export async function storedBytes(db: Db): Promise<number> {
  let bytes = 0;
  for (const sum of sums) {
    const [row] = await db.runLong(sum(db.schema), []);
    bytes += Number(text(row?.[0]));
  }
  return bytes;
}

// Not pg_total_relation_size, which does not shrink when rows are deleted.
const sums = [
  (schema: string) =>
    `select coalesce(sum(pg_column_size(checkpoint) + pg_column_size(metadata) + 128), 0) from ${schema}.checkpoints`,
  (schema: string) =>
    `select coalesce(sum(coalesce(octet_length(blob), 0) + 128), 0) from ${schema}.checkpoint_blobs`,
  (schema: string) =>
    `select coalesce(sum(octet_length(blob) + 128), 0) from ${schema}.checkpoint_writes`,
];
