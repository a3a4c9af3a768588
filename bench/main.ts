/** `npm run bench`: what checkpointd costs and saves against the alternatives, measured here. */
import { mkdir, writeFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import { toChart } from "./chart.js";
import { type Plan, readPlan, usage } from "./plan.js";
import { benchPython } from "./python.js";
import { runPlan } from "./run.js";
import { createTable, describeMachine, type Results, toBarLines } from "./summary.js";
import { withEnvironment } from "./with_environment.js";

/** The folder of the results in the repository; this file runs from dist/bench. */
const resultsFolder = fileURLToPath(new URL("../../bench/results/", import.meta.url));
/** A run that takes longer is broken. */
const limitMinutes = 40;

const print = (text: string) => process.stdout.write(`${text}\n`);

async function bench(plan: Plan): Promise<void> {
  const machine = describeMachine();
  const results = await withEnvironment(plan.contenders, limitMinutes, async (environment) => {
    const { postgresVersion: postgres } = environment;
    print(
      `${machine.cores} × ${machine.cpu}, ${machine.memoryGb} GB, ${machine.os}; Node ${process.versions.node}, Postgres ${postgres}`,
    );
    print(`${plan.rounds} rounds of ${plan.seconds} s for each of ${plan.contenders.join(", ")}`);
    const rows = await runPlan(plan, environment, createTable(print));
    const date = new Date().toISOString();
    return { machine, date, node: process.versions.node, postgres, rows } satisfies Results;
  });
  print(`\n${toBarLines(results.rows)}`);
  if (!plan.keep) return;
  await mkdir(resultsFolder, { recursive: true });
  await writeFile(`${resultsFolder}latest.json`, `${JSON.stringify(results, null, 1)}\n`);
  const chart = toChart(results);
  if (chart) await writeFile(`${resultsFolder}latest.svg`, chart);
  print("\nKept in bench/results/: latest.json, latest.svg");
}

const args = process.argv.slice(2);
if (args.includes("--help")) {
  print(usage);
} else {
  try {
    if (args.includes("--python")) await benchPython(args, print);
    else await bench(readPlan(args));
  } catch (error) {
    process.stderr.write(`bench: ${error instanceof Error ? error.message : error}\n`);
    process.exitCode ||= 1;
  }
}
