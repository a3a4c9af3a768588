import type { Flags } from "../settings/flags.js";
import { migrateSettings, settings } from "./settings.js";

/** The text of --help, made from the table of settings. */
export function help(): string {
  return `checkpointd keeps LangGraph checkpoints in Postgres and serves them over gRPC and Connect.

Usage:
  checkpointd serve [flags]            start the service
  checkpointd migrate [flags]          bring the tables up to date and exit
  checkpointd migrate --dry-run        print the SQL that migrate would run
  checkpointd migrate --distribute     spread the tables over the nodes of Citus
  checkpointd threads COMMAND [flags]  look at and change threads (threads --help)
  checkpointd keys new --id ID         make an API key for the auth file (keys --help)
  checkpointd --help | --version
  checkpointd-server [flags]           the same as checkpointd serve; it takes all commands too

Flags of serve:
${describe(settings)}

Flags of migrate:
${describe(migrateSettings)}

A flag wins over its environment variable. --no-migrate and --no-prepare mean false.
Exit codes: 0 done or drained, 1 failed, 2 the command line is wrong.
`;
}

/** Each flag with what it is for, its default and its variable. */
export function describe(flags: Flags): string {
  return Object.values(flags)
    .map(({ flag, env, fallback, help }) => {
      const value = fallback === undefined ? "" : ` (default ${fallback})`;
      return `  --${flag}  ${help}${value}${env === undefined ? "" : `\n      ${env}`}`;
    })
    .join("\n");
}
