import type pg from "pg";

/** How long a question to the pooler may take, in ms. */
const ASK_MS = 2_000;
const ROUNDS = 5;

/**
 * Whether the client's statements do not all run in one session of Postgres, because a pooler
 * hands its connections from transaction to transaction. Without a pooler this costs one
 * statement: Postgres says at the start of a connection which of its processes serves it.
 *
 * A pooler invents that number, also one that gives each client a session of its own, which is
 * as good as none. It is asked with a second client: whose turn it is between two statements of
 * the first gets the same process if sessions are shared.
 */
export async function sharesSessions(
  client: pg.Client,
  newClient: () => pg.Client,
): Promise<boolean> {
  const mine = await findProcess(client);
  if (mine === (client as unknown as { processID: number }).processID) return false;
  const other = newClient();
  try {
    await other.connect();
    for (let round = 0; round < ROUNDS; round += 1) {
      // No answer: the only session there may be is the first client's own.
      if ((await findProcess(other).catch(() => 0)) === mine) return true;
      if ((await findProcess(client)) !== mine) return true;
    }
    return false;
  } finally {
    void other.end().catch(() => {});
  }
}

async function findProcess(client: pg.Client): Promise<number | undefined> {
  const asked = { text: "SELECT pg_backend_pid() AS pid", query_timeout: ASK_MS };
  return (await client.query<{ pid: number }>(asked)).rows[0]?.pid;
}
