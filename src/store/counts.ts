/** How much is stored of a thread, or was removed of it: numbers of rows, and bytes. */
import { create } from "@bufbuild/protobuf";
import {
  type ThreadCounts,
  ThreadCountsSchema,
} from "../../gen/checkpointd/v1/thread_service_pb.js";
import type { Row } from "./db.js";
import { createColumns, text } from "./rows.js";

/** The names of the columns of `toCounts`: three numbers of rows, and bytes. */
export const countNames = ["checkpoints", "blobs", "writes", "stored_bytes"] as const;

/** The columns of statements that return counts alone. */
export const countColumns = createColumns(...countNames);

/** The SQL of `countColumns`, of three relations with the `bytes` of each row. */
export const countsOf = (checkpoints: string, blobs: string, writes: string) => ({
  checkpoints: `(select count(*) from ${checkpoints})`,
  blobs: `(select count(*) from ${blobs})`,
  writes: `(select count(*) from ${writes})`,
  stored_bytes: [checkpoints, blobs, writes]
    .map((relation) => `(select coalesce(sum(bytes), 0) from ${relation})`)
    .join(" + "),
});

/** Returns how much a row counts, nothing where there is no row. `at` is where its columns are. */
export function toCounts(row: Row | undefined, at: typeof countColumns.at): ThreadCounts {
  const count = (name: (typeof countNames)[number]) => BigInt(text(row?.[at[name]]));
  return create(ThreadCountsSchema, {
    checkpoints: count("checkpoints"),
    blobs: count("blobs"),
    writes: count("writes"),
    storedBytes: count("stored_bytes"),
  });
}

/** Adds `more` to `total`. */
export function add(total: ThreadCounts, more: ThreadCounts): void {
  total.checkpoints += more.checkpoints;
  total.blobs += more.blobs;
  total.writes += more.writes;
  total.storedBytes += more.storedBytes;
}
