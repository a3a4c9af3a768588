-- safe: creates what is missing; no lock on tables that exist
--
-- LangGraph's own four tables, with its columns, types and primary keys; rows are interchangeable
-- with the direct savers'. No foreign keys: writes may arrive before their checkpoint.
--
-- Ids compare byte by byte, so the keys are COLLATE "C". Where a direct saver has made some of
-- the tables already, the missing ones follow its collation: a join of two collations cannot use
-- the index of one side. The look is repeated before each table because a saver may be setting
-- up at this moment; it creates them in this order.
DO $do$
DECLARE
  statement text;
BEGIN
  FOREACH statement IN ARRAY ARRAY[
    $table$
    CREATE TABLE IF NOT EXISTS checkpoints (
      thread_id text COLLATE "C" NOT NULL,
      checkpoint_ns text COLLATE "C" NOT NULL DEFAULT '',
      checkpoint_id text COLLATE "C" NOT NULL,
      parent_checkpoint_id text COLLATE "C",
      type text,
      checkpoint jsonb NOT NULL,
      metadata jsonb NOT NULL DEFAULT '{}',
      PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id)
    )
    $table$,
    $table$
    CREATE TABLE IF NOT EXISTS checkpoint_blobs (
      thread_id text COLLATE "C" NOT NULL,
      checkpoint_ns text COLLATE "C" NOT NULL DEFAULT '',
      channel text COLLATE "C" NOT NULL,
      version text COLLATE "C" NOT NULL,
      type text NOT NULL,
      blob bytea,
      PRIMARY KEY (thread_id, checkpoint_ns, channel, version)
    )
    $table$,
    $table$
    CREATE TABLE IF NOT EXISTS checkpoint_writes (
      thread_id text COLLATE "C" NOT NULL,
      checkpoint_ns text COLLATE "C" NOT NULL DEFAULT '',
      checkpoint_id text COLLATE "C" NOT NULL,
      task_id text COLLATE "C" NOT NULL,
      idx integer NOT NULL,
      channel text COLLATE "C" NOT NULL,
      type text,
      blob bytea NOT NULL,
      task_path text NOT NULL DEFAULT '',
      PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id, task_id, idx)
    )
    $table$
  ]
  LOOP
    IF EXISTS (
      SELECT FROM pg_attribute
      WHERE attrelid IN (
          to_regclass('checkpoints'),
          to_regclass('checkpoint_blobs'),
          to_regclass('checkpoint_writes')
        )
        AND attname = 'thread_id'
        AND attcollation <> '"C"'::regcollation
    ) THEN
      statement := replace(statement, ' COLLATE "C"', '');
    END IF;
    EXECUTE statement;
  END LOOP;
END
$do$;

CREATE TABLE IF NOT EXISTS checkpoint_migrations (v integer PRIMARY KEY);
