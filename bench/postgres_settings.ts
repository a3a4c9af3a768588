/** What holds for every contender, and for the one Postgres they all use. */

/** The most connections a direct saver, or the proxy, holds: pg's own default. */
export const poolSize = 10;

/**
 * Settings of the server. Durable: fsync, full_page_writes and synchronous_commit are as they
 * come, said here so that nobody has to look. No checkpoint and no autovacuum falls into the
 * round of one contender and spares the others: the run vacuums and analyzes by itself.
 */
export const postgresSettings: Record<string, string> = {
  fsync: "on",
  full_page_writes: "on",
  synchronous_commit: "on",
  shared_buffers: "256MB",
  // Eight agent processes with a direct saver each hold 80.
  max_connections: "200",
  max_wal_size: "16GB",
  // Segments of the log that a checkpoint no longer needs are kept for use again.
  min_wal_size: "4GB",
  checkpoint_timeout: "1d",
  autovacuum: "off",
};
