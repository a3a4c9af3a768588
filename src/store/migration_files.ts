import { existsSync } from "node:fs";
import { readdir, readFile } from "node:fs/promises";
import path from "node:path";
import { fileURLToPath } from "node:url";

/** The table that records which of our migrations have run; it lies in the same schema. */
export const BOOKKEEPING = "checkpointd_migrations";

/** One file of `migrations/`. */
export interface MigrationFile {
  /** The file's name without `.sql`, as the bookkeeping table records it. */
  name: string;
  /** Everything in the file, comments included. */
  text: string;
  /**
   * False for a file whose second line begins with `-- outside a transaction`. Its text is then
   * a query, and each row it returns is a statement to run on its own: CREATE INDEX CONCURRENTLY
   * is refused inside a transaction, and a DO block, which could decide what to run, is one.
   */
  inTransaction: boolean;
  /**
   * Whether servers of earlier versions can go on: the first line begins with `-- safe:` and not
   * with `-- breaking:`. Recorded with the name, for servers that do not have the file.
   */
  safe: boolean;
}

/** Reads a migration file. */
export async function readMigrationFile(file: string): Promise<MigrationFile> {
  const text = await readFile(file, "utf8");
  const second = text.split("\n")[1] ?? "";
  return {
    name: path.basename(file, ".sql"),
    text,
    inTransaction: !second.startsWith("-- outside a transaction"),
    safe: text.startsWith("-- safe:"),
  };
}

/** All migrations in the order they run. */
export async function readMigrationFiles(): Promise<MigrationFile[]> {
  const dir = findMigrationsDir();
  const names = (await readdir(dir)).filter((name) => /^\d{4}_\w+\.sql$/.test(name)).sort();
  return Promise.all(names.map((name) => readMigrationFile(path.join(dir, name))));
}

/** The folder `migrations/` of this package, whether run from its sources or from dist. */
export function findMigrationsDir(): string {
  for (let dir = path.dirname(fileURLToPath(import.meta.url)); ; dir = path.dirname(dir)) {
    const found = path.join(dir, "migrations");
    if (existsSync(found)) return found;
    if (dir === path.dirname(dir)) throw new Error("this installation lacks its migrations folder");
  }
}
