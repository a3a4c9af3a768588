/** A Python with LangGraph and what the saver of `python/` needs: PYTHON, or one that its tests have made. */
import { execFile, execFileSync } from "node:child_process";
import { existsSync, readdirSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";

const folder = fileURLToPath(new URL("../../python", import.meta.url));
const env = {
  ...process.env,
  PYTHONPATH: [path.join(folder, "src"), process.env.PYTHONPATH]
    .filter(Boolean)
    .join(path.delimiter),
};

const installed = findInstalled();

/** Why there is none. */
export const noPython =
  installed === undefined
    ? "no Python with LangGraph: `npm run test:python` makes one, or set PYTHON"
    : undefined;

function findInstalled(): string | undefined {
  const made = path.join(folder, ".venv");
  const candidates = [
    ...(process.env.PYTHON ? [process.env.PYTHON] : []),
    ...(existsSync(made) ? readdirSync(made) : []).map((version) =>
      path.join(made, version, "bin", "python"),
    ),
  ];
  return candidates.find((python) => {
    try {
      execFileSync(python, ["-c", "import langgraph.graph, checkpointd"], { env, stdio: "ignore" });
      return true;
    } catch {
      return false;
    }
  });
}

/** Runs a file of `python/tests` with it to its end. */
export async function runPython(file: string, ...args: string[]): Promise<void> {
  const script = path.join(folder, "tests", file);
  await promisify(execFile)(installed ?? "python3", [script, ...args], { env, timeout: 120_000 });
}
