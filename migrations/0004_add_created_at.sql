-- safe: ACCESS EXCLUSIVE on checkpoints for an instant; rows are neither read nor rewritten
--
-- When the row was stored, by the database's clock; checkpoints older than this migration carry
-- the moment of the migration. now() is evaluated once here, which is why nothing is rewritten.
SET LOCAL lock_timeout = '5s';
ALTER TABLE checkpoints ADD COLUMN IF NOT EXISTS created_at timestamptz NOT NULL DEFAULT now();
