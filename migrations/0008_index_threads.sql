-- safe: SHARE UPDATE EXCLUSIVE on checkpoints (CREATE INDEX CONCURRENTLY), writers go on
-- outside a transaction: each row of this query is a statement to run
--
-- checkpointd_threads_updated_idx: root checkpoints by the time they were made, which is in their
-- id if that is a UUID of version 6 (100 ns since 1582), else the time they were stored. The
-- expression stands in src/store/threads.ts too.
-- checkpointd_threads_id_idx: threads in byte order, needed only on tables made by a direct saver.
-- checkpointd_runs_idx: the checkpoints of a run, where LangGraph was given run ids.
-- An index that an interrupted run left invalid is dropped first and built again.
WITH wanted (name, definition) AS (
  SELECT
    'checkpointd_threads_updated_idx',
    $index$((
      CASE WHEN checkpoint_id COLLATE "C" ~ '^[0-9a-f]{8}-[0-9a-f]{4}-6[0-9a-f]{3}-'
        THEN to_timestamp((
          ('x' || substr(checkpoint_id, 1, 8) || substr(checkpoint_id, 10, 4)
            || substr(checkpoint_id, 16, 3))::bit(60)::bigint - 122192928000000000
        ) / 10000000.0::float8)
        ELSE created_at
      END
    ), (thread_id COLLATE "C")) WHERE checkpoint_ns = ''$index$
  UNION ALL
  SELECT
    'checkpointd_runs_idx',
    $index$((metadata ->> 'run_id')) WHERE metadata ? 'run_id'$index$
  UNION ALL
  SELECT
    'checkpointd_threads_id_idx',
    $index$(thread_id COLLATE "C") WHERE checkpoint_ns = ''$index$
  FROM pg_attribute
  WHERE attrelid = to_regclass('checkpoints')
    AND attname = 'thread_id'
    AND attcollation <> '"C"'::regcollation
)
SELECT statement
FROM (
  SELECT name, 1 AS step, format('DROP INDEX CONCURRENTLY IF EXISTS %I', name) AS statement
  FROM wanted
  JOIN pg_index ON indexrelid = to_regclass(name) AND NOT indisvalid
  UNION ALL
  SELECT
    name,
    2,
    format('CREATE INDEX CONCURRENTLY IF NOT EXISTS %I ON checkpoints ', name)
      || regexp_replace(definition, '\s+', ' ', 'g')
  FROM wanted
) AS steps
ORDER BY name, step;
