import { UsageError, unknownCommand } from "../settings/flags.js";
import { version } from "../version.js";
import { help } from "./help.js";
import { complain, printText, say } from "./print.js";

/**
 * The commands by name; each loads only what it needs itself. Exit codes: 0 done, 1 failed, 2 the
 * command line is wrong.
 */
const commands: Record<string, (args: string[]) => Promise<number>> = {
  serve: async (args) => (await import("./serve.js")).runServe(args),
  migrate: async (args) => (await import("./migrate_command.js")).runMigrate(args),
  threads: async (args) => (await import("./threads_command.js")).runThreads(args),
  keys: async (args) => (await import("./keys_command.js")).runKeys(args),
};

async function main(args: string[]): Promise<number> {
  const [name, ...rest] = args;
  if (name === "--version" || name === "-v") {
    printText(version());
    return 0;
  }
  if (name === undefined || name === "--help" || name === "-h" || name === "help") {
    if (name === undefined) for (const line of help().trimEnd().split("\n")) say(line);
    else printText(help());
    return name === undefined ? 2 : 0;
  }
  const command = Object.hasOwn(commands, name) ? commands[name] : undefined;
  if (!command) return unknownCommand(name, Object.keys(commands));
  const flags = rest.includes("--") ? rest.slice(0, rest.indexOf("--")) : rest;
  if (flags.includes("--help") || flags.includes("-h")) {
    if (name === "threads") printText((await import("./threads_help.js")).threadsHelp());
    else if (name === "keys") printText((await import("./keys_command.js")).keysHelp());
    else printText(help());
    return 0;
  }
  return command(rest);
}

/** Carries out a command line; resolves with the exit code. What is wrong is told on stderr. */
export async function run(args: string[]): Promise<number> {
  try {
    return await main(args);
  } catch (error) {
    const usage = error instanceof UsageError;
    const message = error instanceof Error ? error.message : String(error);
    complain(message);
    if (usage) {
      const hasHelp = args[0] === "threads" || args[0] === "keys";
      const command = hasHelp ? `checkpointd ${args[0]}` : "checkpointd";
      say(`Run ${command} --help for all flags.`);
    }
    return usage ? 2 : 1;
  }
}
