import { type SettingName, settings } from "../config.js";
import { migrateSettings } from "./migrate.js";
import { serveSettings } from "./serve.js";
import { subcommands } from "./threads.js";

/** The text of --help, made from the table of settings. */
export function help(): string {
  return `checkpointd keeps LangGraph checkpoints in Postgres and serves them over gRPC and Connect.

Usage:
  checkpointd serve [flags]            start the service
  checkpointd migrate [flags]          bring the tables up to date and exit
  checkpointd migrate --dry-run        print the SQL that migrate would run
  checkpointd threads COMMAND [flags]  look at and change threads (threads --help)
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

/** The text of threads --help. */
export function threadsHelp(): string {
  const lines = Object.entries(subcommands).map(([name, { words, meaning, values, switches }]) => {
    const flags = [...values.map((flag) => `--${flag} …`), ...switches.map((flag) => `--${flag}`)];
    const usage = ["checkpointd threads", name, words].filter((word) => word !== "").join(" ");
    return `  ${usage}\n      ${meaning}${flags.length > 0 ? `\n      ${flags.join(" ")}` : ""}`;
  });
  return `Looks at and changes threads over the RPCs of a running service.

${lines.join("\n")}

Flags of all:
  --url  the service (default http://127.0.0.1:8080)
      CHECKPOINTD_URL
  --header "name: value"  sent with every call; may be repeated

--status takes completed, pending, interrupted, failed, separated by commas. --updated-after and
--updated-before take a time (2026-01-31T12:00:00Z) or an age (30m, 12h, 7d), --older-than an age.
--metadata takes a JSON object that the latest checkpoint's metadata contains. --json prints JSON
lines. rm and prune ask before they delete, unless --yes. Colours only on a terminal.
Exit codes: 0 done, 1 failed or not confirmed, 2 the command line is wrong.
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
