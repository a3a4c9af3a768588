/** What a soak sees of the service from outside: its memory, its files, its connections. */
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import pg from "pg";

/** The service at one moment. */
export interface Sample {
  /** Resident memory, in MB of a million bytes. */
  rssMb: number;
  /** Open file descriptors, sockets among them. */
  fds: number;
  sockets: number;
  /** The service's connections to Postgres, and those of them that run a statement. */
  connections: number;
  active: number;
  idleInTransaction: number;
  /** Rows in the three tables together. */
  rows: number;
}

/** Looks at one service and its database. */
export interface Watch {
  sample(): Promise<Sample>;
  close(): Promise<void>;
}

/** Watches the process `pid` that serves the database, on a connection of its own. */
export async function startWatch(pid: number, databaseUrl: string): Promise<Watch> {
  const sql = new pg.Client({ connectionString: databaseUrl });
  sql.on("error", () => {});
  await sql.connect();
  return {
    async sample() {
      const { rows } = await sql.query(`
        select count(*)::int as connections,
          count(*) filter (where state = 'active')::int as active,
          count(*) filter (where state like 'idle in transaction%')::int as "idleInTransaction",
          (select count(*) from checkpoints)::int + (select count(*) from checkpoint_blobs)::int
            + (select count(*) from checkpoint_writes)::int as rows
        from pg_stat_activity
        where datname = current_database() and application_name = 'checkpointd'`);
      return { rssMb: residentMb(pid), ...descriptors(pid), ...rows[0] };
    },
    close: () => sql.end(),
  };
}

function residentMb(pid: number): number {
  const status = readFileSync(`/proc/${pid}/status`, "utf8");
  return (Number(/^VmRSS:\s+(\d+) kB$/m.exec(status)?.[1]) * 1024) / 1e6;
}

function descriptors(pid: number): { fds: number; sockets: number } {
  const folder = `/proc/${pid}/fd`;
  const targets = readdirSync(folder).map((fd) => {
    try {
      return readlinkSync(`${folder}/${fd}`);
    } catch {
      return undefined; // Closed meanwhile.
    }
  });
  const open = targets.filter((target) => target !== undefined);
  return { fds: open.length, sockets: open.filter((name) => name.startsWith("socket:")).length };
}
