import { type ChildProcess, spawn } from "node:child_process";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";

const runTs = fileURLToPath(new URL("run_ts.mjs", import.meta.url));

/**
 * Runs a TypeScript file of this folder in a process of its own and waits for the first line
 * it prints; rejects with what it wrote to standard error when it ends without one.
 */
export async function startScript(
  file: string,
  args: readonly string[],
): Promise<{ child: ChildProcess; line: string }> {
  const script = fileURLToPath(new URL(file, import.meta.url));
  const child = spawn(process.execPath, [runTs, script, ...args], {
    stdio: ["ignore", "pipe", "pipe"],
  });
  let errors = "";
  child.stderr.setEncoding("utf8").on("data", (chunk: string) => {
    errors += chunk;
  });
  for await (const line of createInterface({ input: child.stdout })) return { child, line };
  throw new Error(`${file} ended without a line: ${errors}`);
}
