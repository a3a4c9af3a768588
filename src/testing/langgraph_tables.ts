/**
 * The tables as LangGraph's Python saver leaves them, one statement each (some refuse a
 * transaction): its migrations 0 to 9 in effect, recorded in `checkpoint_migrations`. They go
 * to the first schema of the search path.
 */
export const pythonSaverTables: readonly string[] = [
  "CREATE TABLE checkpoint_migrations (v integer PRIMARY KEY)",
  `CREATE TABLE checkpoints (thread_id text NOT NULL, checkpoint_ns text NOT NULL DEFAULT '',
     checkpoint_id text NOT NULL, parent_checkpoint_id text, type text,
     checkpoint jsonb NOT NULL, metadata jsonb NOT NULL DEFAULT '{}',
     PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id))`,
  `CREATE TABLE checkpoint_blobs (thread_id text NOT NULL, checkpoint_ns text NOT NULL DEFAULT '',
     channel text NOT NULL, version text NOT NULL, type text NOT NULL, blob bytea,
     PRIMARY KEY (thread_id, checkpoint_ns, channel, version))`,
  `CREATE TABLE checkpoint_writes (thread_id text NOT NULL, checkpoint_ns text NOT NULL DEFAULT '',
     checkpoint_id text NOT NULL, task_id text NOT NULL, idx integer NOT NULL,
     channel text NOT NULL, type text, blob bytea NOT NULL,
     PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id, task_id, idx))`,
  ...["checkpoints", "checkpoint_blobs", "checkpoint_writes"].map(
    (table) => `CREATE INDEX CONCURRENTLY ${table}_thread_id_idx ON ${table} (thread_id)`,
  ),
  "ALTER TABLE checkpoint_writes ADD COLUMN task_path text NOT NULL DEFAULT ''",
  "INSERT INTO checkpoint_migrations SELECT generate_series(0, 9)",
];
