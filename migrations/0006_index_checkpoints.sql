-- safe: SHARE UPDATE EXCLUSIVE on checkpoints (CREATE INDEX CONCURRENTLY), writers go on
-- outside a transaction: each row of this query is a statement to run
--
-- checkpointd_checkpoints_newest_idx: all threads, newest first. On an expression so that the
-- planner takes it only for that: on the plain column it also walked this index for the latest
-- checkpoints of one thread, past everybody else's.
-- checkpointd_checkpoints_latest_idx: the greatest id of a thread in byte order, needed only on
-- tables made by a direct saver; on ours the primary key is in that order.
-- An index that an interrupted run left invalid is dropped first and built again.
WITH wanted (name, columns) AS (
  SELECT
    'checkpointd_checkpoints_newest_idx',
    '(checkpoint_id || '''') COLLATE "C", thread_id COLLATE "C", checkpoint_ns COLLATE "C"'
  UNION ALL
  SELECT
    'checkpointd_checkpoints_latest_idx',
    'thread_id, checkpoint_ns, checkpoint_id COLLATE "C"'
  FROM pg_attribute
  WHERE attrelid = to_regclass('checkpoints')
    AND attname = 'checkpoint_id'
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
    format('CREATE INDEX CONCURRENTLY IF NOT EXISTS %I ON checkpoints (%s)', name, columns)
  FROM wanted
) AS steps
ORDER BY name, step;
