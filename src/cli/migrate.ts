import { readConfig, UsageError } from "../config.js";
import { dryRun, migrate } from "../store/migrate.js";

/** The settings `checkpointd migrate` takes. */
export const migrateSettings = ["database-url", "schema"] as const;

/** Brings the tables up to date, or prints the SQL that would. Exits 0 when nothing is left to do. */
export async function runMigrate(args: string[]): Promise<number> {
  const config = readConfig(migrateSettings, args, process.env, ["dry-run"]);
  const databaseUrl = config["database-url"];
  if (databaseUrl === undefined) {
    throw new UsageError("migrate needs a database: give --database-url or set DATABASE_URL.");
  }
  if (config["dry-run"]) {
    process.stdout.write(await dryRun({ databaseUrl, schema: config.schema }));
    return 0;
  }
  const { applied } = await migrate({
    databaseUrl,
    schema: config.schema,
    onProgress: (line) => process.stderr.write(`${line}\n`),
  });
  process.stdout.write(
    applied.length === 0
      ? "Nothing to do: the tables are up to date.\n"
      : `Applied ${applied.join(", ")}.\n`,
  );
  return 0;
}
