import type { CheckpointRow, Rows } from "./call_history.js";
import { blobKey, writeKey } from "./check_things.js";

/** The rows of one thread. */
export class Stored {
  readonly checkpoints = new Map<string, CheckpointRow>();
  readonly blobs = new Map<string, string>();
  readonly writes = new Map<string, Map<string, string>>();
  /** What lies in a namespace that no agent writes to. */
  readonly strange: string[] = [];

  constructor(rows: Rows) {
    for (const row of rows.checkpoints) {
      if (row.ns === "") this.checkpoints.set(row.id, row);
      else this.strange.push(`${row.ns} ${row.id}`);
    }
    for (const row of rows.blobs) {
      if (row.ns === "") this.blobs.set(blobKey(row.channel, row.version), row.sum);
      else this.strange.push(`the blob ${row.ns} ${row.channel}`);
    }
    for (const row of rows.writes) {
      if (row.ns !== "") {
        this.strange.push(`the write ${row.ns} ${row.checkpoint}`);
        continue;
      }
      const writes = this.writes.get(row.checkpoint) ?? new Map<string, string>();
      this.writes.set(row.checkpoint, writes.set(writeKey(row.task, row.idx), row.sum));
    }
  }

  writesOf(checkpoint: string): ReadonlyMap<string, string> {
    return this.writes.get(checkpoint) ?? new Map();
  }
}
