import { type SettingName, settings } from "../config.js";
import { migrateSettings } from "./migrate.js";
import { serveSettings } from "./serve.js";

/** The text of --help, made from the table of settings. */
export function help(): string {
  return `checkpointd keeps LangGraph checkpoints in Postgres and serves them over gRPC and Connect.

Usage:
  checkpointd serve [flags]            start the service
  checkpointd migrate [flags]          bring the tables up to date and exit
  checkpointd migrate --dry-run        print the SQL that migrate would run
  checkpointd --help | --version

Flags of serve:
${describe(serveSettings)}

Flags of migrate:
${describe(migrateSettings)}
  --dry-run  print SQL, change nothing

A flag wins over its environment variable. --no-migrate and --no-prepare mean false.
Exit codes: 0 done or drained, 1 failed, 2 the command line is wrong.
`;
}

function describe(names: readonly SettingName[]): string {
  return names
    .map((name) => {
      const { env, fallback, meaning } = settings[name];
      const value = fallback === undefined ? "" : ` (default ${fallback})`;
      return `  --${name}  ${meaning}${value}\n      ${env}`;
    })
    .join("\n");
}
