import {
  chownSync,
  copyFileSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  rmSync,
  statSync,
  writeFileSync,
} from "node:fs";
import path from "node:path";
import { withClient } from "../store/client.js";
import { type Embedded, startEmbedded } from "../store/embedded.js";

/**
 * Starts a Postgres on `dataDir` that follows another embedded one, from a copy of the other's files.
 * There is no pg_basebackup among the embedded programs.
 */
export async function startStandby(
  primary: { databaseUrl: string; dataDir: string },
  dataDir: string,
): Promise<Embedded> {
  mkdirSync(dataDir, { mode: 0o711 });
  const label = await copyCluster(primary, dataDir);
  const cluster = path.join(dataDir, "postgres");
  const { uid, gid } = statSync(cluster);
  for (const [name, text] of [
    ["backup_label", label],
    ["standby.signal", ""],
  ] as const) {
    const file = path.join(cluster, name);
    writeFileSync(file, text, { mode: 0o600 });
    chownSync(file, uid, gid);
  }
  const { port, password } = new URL(primary.databaseUrl);
  return startEmbedded({
    dataDir,
    onProgress: () => {},
    settings: {
      max_connections: "120",
      primary_conninfo: `host=127.0.0.1 port=${port} user=postgres password=${password}`,
    },
  });
}

/** Copies the files of a Postgres that runs, and returns what marks them as a backup. */
function copyCluster(
  { databaseUrl, dataDir: from }: { databaseUrl: string; dataDir: string },
  dataDir: string,
): Promise<string> {
  // Both ends of a backup are of one session.
  return withClient({ databaseUrl }, async (client) => {
    await client.query("select pg_backup_start('standby', true)");
    for (const each of ["postgres", "password"]) {
      copy(path.join(from, each), path.join(dataDir, each));
    }
    for (const file of ["postmaster.pid", "postmaster.opts"]) {
      rmSync(path.join(dataDir, "postgres", file), { force: true });
    }
    const { rows } = await client.query("select labelfile from pg_backup_stop(false)");
    return String(rows[0].labelfile);
  });
}

/** With owner and mode. Files that go while it copies are in the log that is replayed. */
function copy(from: string, to: string): void {
  try {
    const found = lstatSync(from);
    const { uid, gid, mode } = found;
    if (found.isDirectory()) {
      mkdirSync(to, { mode });
      for (const name of readdirSync(from)) copy(path.join(from, name), path.join(to, name));
    } else {
      copyFileSync(from, to);
    }
    chownSync(to, uid, gid);
  } catch (error) {
    if ((error as { code?: unknown }).code !== "ENOENT") throw error;
  }
}
