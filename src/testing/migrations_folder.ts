import { cp, mkdtemp, readdir, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { findMigrationsDir } from "../store/migration_files.js";

/** A folder of migrations, as another version of the service would bring it. */
export interface MigrationsFolder {
  readonly dir: string;
  /** Adds one: its name without `.sql`, and its text. */
  add(name: string, text: string): Promise<void>;
  remove(): Promise<void>;
}

/** A folder with the migrations of this version, or with the first `count` of them. */
export async function createMigrationsFolder(
  count = Number.POSITIVE_INFINITY,
): Promise<MigrationsFolder> {
  const dir = await mkdtemp(path.join(tmpdir(), "checkpointd-migrations-"));
  const from = findMigrationsDir();
  const names = (await readdir(from)).filter((name) => name.endsWith(".sql")).sort();
  for (const name of names.slice(0, count)) await cp(path.join(from, name), path.join(dir, name));
  return {
    dir,
    add: (name, text) => writeFile(path.join(dir, `${name}.sql`), text),
    remove: () => rm(dir, { recursive: true, force: true }),
  };
}
