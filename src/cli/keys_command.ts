import { createKey, hashKey } from "../auth/api_keys.js";
import { parseTime } from "../auth/auth_file.js";
import { clean } from "../clean.js";
import { define, readFlags, UsageError, unknownCommand } from "../settings/flags.js";
import { kind } from "../settings/kinds.js";
import { describe } from "./help.js";
import { hint, print, printJson } from "./print.js";

const flags = {
  id: define({
    flag: "id",
    kind: kind("a name of 1 to 1024 characters, none of them a control character", (value) =>
      value !== "" && value.length <= 1024 && clean(value) === value ? value : undefined,
    ),
    unset: undefined,
    help: "what the auth file calls the key; the key cannot be told from it",
  }),
  expires: define({
    flag: "expires",
    kind: kind("a time to come with its zone, such as 2031-01-31T00:00:00Z", (value) => {
      const time = parseTime(value);
      return time !== undefined && time > Date.now() ? value : undefined;
    }),
    unset: undefined,
    help: "when the key ends; without it the key holds until it is taken out of the file",
  }),
};

/** The text of keys --help. */
export function keysHelp(): string {
  return `Makes API keys. Nothing is sent anywhere.

  checkpointd keys new --id ID [--expires TIME]
      prints two lines: the key, and the JSON for the list "keys" of the auth file

Flags of new:
${describe(flags)}

The key is shown this once: the file has its hash only. No command takes a key as a flag, where every
user of the machine could read it.
Exit codes: 0 done, 2 the command line is wrong.
`;
}

/** Carries out a command of keys. */
export async function runKeys([name, ...args]: string[]): Promise<number> {
  if (name === undefined) throw new UsageError("keys needs a command: new.");
  if (name !== "new") unknownCommand(name, ["new"], "keys ");
  const { id, expires } = readFlags(flags, args, {}).values;
  if (id === undefined) throw new UsageError("keys new needs --id, a name for the key.");
  const key = createKey();
  print(key);
  printJson({ id, sha256: hashKey(key), ...(expires === undefined ? {} : { expires }) });
  // Who reads both lines in a script needs no words beside them.
  if (process.stdout.isTTY) {
    hint("Keep the first line where the agent reads it, and put the second into the auth file.");
  }
  return 0;
}
