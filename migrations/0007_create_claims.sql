-- safe: creates what is missing; no lock on tables that exist
--
-- Leases on threads (ThreadService.ClaimThreads): at most one for each thread. A row whose time
-- has passed counts for nothing; the next claim of the thread takes its place. No foreign key,
-- as LangGraph's tables have none; to delete a thread deletes its lease.
CREATE TABLE IF NOT EXISTS checkpointd_claims (
  thread_id text COLLATE "C" NOT NULL PRIMARY KEY,
  owner text NOT NULL,
  token text NOT NULL,
  expires_at timestamptz NOT NULL
);
