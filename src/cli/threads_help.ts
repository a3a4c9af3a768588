import type { Flags } from "../settings/flags.js";
import { describe } from "./help.js";
import { subcommands } from "./threads_command.js";
import { connectionFlags } from "./threads_flags.js";

/** The text of threads --help, made from the table of subcommands. */
export function threadsHelp(): string {
  const lines = Object.entries(subcommands).map(([name, { words, meaning, flags }]) => {
    const usage = ["checkpointd threads", name, words].filter((word) => word !== "").join(" ");
    const taken = Object.values(flags).map(
      ({ flag, kind }) => `--${flag}${kind.alone === undefined ? " …" : ""}`,
    );
    return `  ${usage}\n      ${meaning}${taken.length > 0 ? `\n      ${taken.join(" ")}` : ""}`;
  });
  const all: Flags = Object.assign({}, ...Object.values(subcommands).map(({ flags }) => flags));
  return `Looks at and changes threads over the RPCs of a running service.

${lines.join("\n")}

Flags of all:
${describe(connectionFlags)}

Flags of some:
${describe(all)}

rm, prune and release ask before they do it, unless --yes. Colours only on a terminal.
Exit codes: 0 done, 1 failed or not confirmed, 2 the command line is wrong.
`;
}
