-- safe: ACCESS EXCLUSIVE on checkpoint_blobs for an instant; rows are neither read nor rewritten
--
-- A channel without a value is stored as type `empty` with a NULL blob. One table a migration:
-- a transaction that locked several could deadlock with a saver deleting a thread.
SET LOCAL lock_timeout = '5s';
ALTER TABLE checkpoint_blobs ALTER COLUMN blob DROP NOT NULL;
