import { execFileSync } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import { chmod, chown, mkdir, mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { findRunAs, POSTGRES_ENV } from "../store/embedded_binaries.js";
import { asPgdata, launch, shutDown } from "../store/embedded_process.js";

const programs = ["initdb", "postgres", "pg_dump", "pg_restore", "createdb"];

/**
 * The folder of a Postgres that this machine has with its clients, as Debian's package installs it;
 * undefined: there is none. What npm brings has only the server, and an older pg_dump refuses that.
 */
export const installedPostgres = findInstalled();

function findInstalled(): string | undefined {
  const debian = "/usr/lib/postgresql";
  const versions = existsSync(debian) ? readdirSync(debian) : [];
  const folders = [
    ...versions.sort((a, b) => Number(b) - Number(a)).map((name) => path.join(debian, name, "bin")),
    ...(process.env.PATH ?? "").split(path.delimiter),
  ];
  return folders.find((folder) => programs.every((name) => existsSync(path.join(folder, name))));
}

/** Starts it with a cluster of its own, to which everybody on this machine may connect. */
export async function startInstalledPostgres(
  bin: string,
): Promise<{ databaseUrl: string; stop(): Promise<void> }> {
  const dataDir = await mkdtemp(path.join(tmpdir(), "checkpointd-installed-"));
  await chmod(dataDir, 0o711);
  const cluster = path.join(dataDir, "postgres");
  const runAs = findRunAs(undefined);
  await mkdir(cluster, { mode: 0o700 });
  if (runAs.uid !== undefined && runAs.gid !== undefined) {
    await chown(cluster, runAs.uid, runAs.gid);
  }
  const flags = [`--pgdata=${asPgdata(cluster)}`, "--username=postgres", "--auth=trust"];
  execFileSync(path.join(bin, "initdb"), [...flags, "--encoding=UTF8", "--locale=C", "--no-sync"], {
    ...runAs,
    cwd: cluster,
    env: POSTGRES_ENV,
    stdio: ["ignore", "ignore", "pipe"],
  });
  const options = { dataDir, onProgress: () => {}, settings: { fsync: "off" } };
  const { server, exited, port } = await launch(
    dataDir,
    path.join(bin, "postgres"),
    runAs,
    options,
  );
  return {
    databaseUrl: `postgres://postgres@127.0.0.1:${port}/postgres`,
    async stop() {
      await shutDown(server, exited);
      await rm(dataDir, { recursive: true, force: true });
    },
  };
}
