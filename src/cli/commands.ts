import { UsageError } from "../config.js";
import { help, threadsHelp } from "./help.js";
import { runMigrate } from "./migrate.js";
import { runServe } from "./serve.js";
import { runThreads } from "./threads.js";
import { version } from "./version.js";

/** Exit codes: 0 done, 1 failed, 2 the command line is wrong. */
const commands: Record<string, (args: string[]) => Promise<number>> = {
  serve: runServe,
  migrate: runMigrate,
  threads: runThreads,
};

async function main(args: string[]): Promise<number> {
  const [name, ...rest] = args;
  if (name === "--version" || name === "-v") {
    process.stdout.write(`${version()}\n`);
    return 0;
  }
  if (name === undefined || name === "--help" || name === "-h" || name === "help") {
    (name === undefined ? process.stderr : process.stdout).write(help());
    return name === undefined ? 2 : 0;
  }
  const command = commands[name];
  if (!command) {
    throw new UsageError(
      `Unknown command "${name}". Commands are ${Object.keys(commands).join(", ")}.`,
    );
  }
  if (rest.includes("--help") || rest.includes("-h")) {
    process.stdout.write(name === "threads" ? threadsHelp() : help());
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
    process.stderr.write(`checkpointd: ${message}\n`);
    if (usage) process.stderr.write("Run checkpointd --help for all flags.\n");
    return usage ? 2 : 1;
  }
}
