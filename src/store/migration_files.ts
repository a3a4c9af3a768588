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
   * The oldest version of the server that can go on beside it: 0.3.0 where the first line begins
   * with `-- breaking before 0.3.0:`, null where it begins with `-- safe:` and every version can.
   * Recorded with the name, for servers that do not have the file.
   */
  minServer: string | null;
}

const firstLine = /^-- (?:safe|breaking before (\d+\.\d+\.\d+)): /;

/** Reads a migration file. Throws if its first line does not say which servers can go on. */
export async function readMigrationFile(file: string): Promise<MigrationFile> {
  const text = await readFile(file, "utf8");
  const name = path.basename(file, ".sql");
  const [first = "", second = ""] = text.split("\n");
  const says = firstLine.exec(first);
  if (!says) {
    throw new Error(
      `migration ${name}: its first line begins neither with "-- safe: " nor with "-- breaking before X.Y.Z: "`,
    );
  }
  const inTransaction = !second.startsWith("-- outside a transaction");
  return { name, text, inTransaction, minServer: says[1] ?? null };
}

/** All migrations of a folder, of this package's unless given, in the order they run. */
export async function readMigrationFiles(dir = findMigrationsDir()): Promise<MigrationFile[]> {
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
