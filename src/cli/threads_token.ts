/** The token of the `threads` commands. It is never typed, where every user of the machine could read it. */
import { readFileSync } from "node:fs";
import type { TokenSource } from "../client/credential.js";
import { UsageError } from "../settings/flags.js";
import { connectionFlags } from "./threads_flags.js";

/** The variable that holds the token itself. */
export const tokenVariable = "CHECKPOINTD_TOKEN";

/**
 * The token in the variable, or a function that reads the file of `--token-file` or its variable;
 * undefined where none is given.
 *
 * @throws UsageError where two variables give one, and where the file cannot be read
 */
export function chooseToken(
  tokenFile: string | undefined,
  args: readonly string[],
  env: Readonly<Record<string, string | undefined>>,
): TokenSource | undefined {
  const token = env[tokenVariable] || undefined;
  if (tokenFile === undefined) return token;
  const { flag, env: variable } = connectionFlags.tokenFile;
  const isTyped = args.some((arg) => arg === `--${flag}` || arg.startsWith(`--${flag}=`));
  if (token !== undefined && !isTyped) {
    throw new UsageError(`Give the token by ${tokenVariable} or by ${variable}, not by both.`);
  }
  // Again for another session: who puts tokens there replaces them before they end.
  const read = () => readFileSync(tokenFile, "utf8").trim();
  try {
    read();
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    throw new UsageError(`--${flag}: ${tokenFile} cannot be read (${code}).`);
  }
  return read;
}
