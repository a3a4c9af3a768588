import { readFlags, UsageError } from "../settings/flags.js";
import { distribute } from "../store/distribute.js";
import { dryRun, migrate } from "../store/migrate.js";
import { explainTrouble } from "../store/trouble.js";
import { chooseDatabase } from "./database_url.js";
import { hint, print, printText, say } from "./print.js";
import { migrateSettings } from "./settings.js";

const upToDate = "Nothing to do: the tables are up to date.";
const isDistributed = "Nothing to do: the tables are distributed.";

/**
 * Brings the tables up to date, or prints the SQL that would, or distributes them. Exits 0 when nothing is left to do. A
 * signal ends the running statement and undoes its migration; then it exits 1.
 */
export async function runMigrate(args: string[]): Promise<number> {
  const { values } = readFlags(migrateSettings, args, process.env);
  const { schema } = values;
  const { databaseUrl, warnings } = chooseDatabase(values, args);
  if (databaseUrl === undefined) {
    throw new UsageError(
      "migrate needs a database: give --database-url-file or --database-url, or set DATABASE_URL.",
    );
  }
  if (values.dryRun && values.distribute) {
    throw new UsageError(
      "--dry-run prints migrations, of which --distribute has none: give one of them.",
    );
  }
  for (const warning of warnings) say(`warning: ${warning}`);
  const stop = new AbortController();
  for (const name of ["SIGTERM", "SIGINT"] as const) {
    process.once(name, () => stop.abort(new Error(`stopped by ${name}`)));
  }
  try {
    if (values.dryRun) {
      const sql = await dryRun({ databaseUrl, schema, signal: stop.signal });
      if (sql !== "") printText(sql);
      // Not among the SQL, which may be piped to psql.
      else hint(upToDate);
      return 0;
    }
    if (values.distribute) {
      const { distributed } = await distribute({
        databaseUrl,
        schema,
        onProgress: (line) => say(line),
        signal: stop.signal,
      });
      const list = distributed.join(", ");
      print(list === "" ? isDistributed : `Distributed ${list}: start the servers anew.`);
      return 0;
    }
    const { applied } = await migrate({
      databaseUrl,
      schema,
      onProgress: (line) => say(line),
      signal: stop.signal,
    });
    print(applied.length === 0 ? upToDate : `Applied ${applied.join(", ")}.`);
    return 0;
  } catch (error) {
    const sentence = explainTrouble(error);
    if (sentence === undefined) throw error;
    // An AggregateError, of a name with several addresses, has no message.
    const { message, code } = error as { message: string; code?: string };
    throw new Error(`${sentence} (${message || code})`);
  }
}
