-- safe: ACCESS EXCLUSIVE on checkpoint_writes for an instant; rows are neither read nor rewritten
--
-- Python's saver has this column, the JS saver does not; its inserts take the default.
SET LOCAL lock_timeout = '5s';
ALTER TABLE checkpoint_writes ADD COLUMN IF NOT EXISTS task_path text NOT NULL DEFAULT '';
