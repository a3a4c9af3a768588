import type pg from "pg";

/** The tables that lie by thread. */
export const partitioned = [
  "checkpoints",
  "checkpoint_blobs",
  "checkpoint_writes",
  "checkpointd_claims",
];

/** How many partitions each of them gets. */
export const partitions = 8;

/**
 * Makes the tables of a migrated database anew, empty and in hash partitions by thread_id: as Citus
 * does it, on one Postgres. Partition 3 of checkpoints is checkpoints_p3.
 */
export async function partitionByThread(client: pg.Client): Promise<void> {
  for (const table of partitioned) {
    await client.query(`alter table ${table} rename to old`);
    await client.query(
      `create table ${table} (like old including all) partition by hash (thread_id)`,
    );
    await client.query("drop table old");
    for (let i = 0; i < partitions; i++) {
      await client.query(
        `create table ${table}_p${i} partition of ${table}
         for values with (modulus ${partitions}, remainder ${i})`,
      );
    }
  }
}
