/**
 * For CI: one short run that compares what a put and a getTuple cost in CPU, agent, service and
 * Postgres together, with the service and without. CPU time hardly depends on what else the
 * machine does, so the bounds can be held; they are wide, for they guard against a blunder, not
 * against a percent. The benchmark itself is `npm run bench`.
 */
import type { Plan } from "./plan.js";
import { runPlan } from "./run.js";
import { cellOf, createTable } from "./summary.js";
import { withEnvironment } from "./with_environment.js";

/** The most that the service may cost, as a multiple of the direct saver's cost. */
const bounds: Record<string, number> = { put: 1, getTuple: 1 };

const plan: Plan = {
  stages: Object.keys(bounds).map((workload) => ({ workload, concurrencies: [[32, 1]] })),
  contenders: ["direct", "connect"],
  rounds: 3,
  seconds: 2,
  keep: false,
};

const print = (text: string) => process.stdout.write(`${text}\n`);

try {
  const rows = await withEnvironment(plan.contenders, 5, (environment) =>
    runPlan(plan, environment, createTable(print)),
  );
  print("");
  for (const row of rows.filter((each) => each.contender === "connect")) {
    const direct = rows.find(
      (each) => each.workload === row.workload && each.contender === "direct",
    )!;
    const ratio = row.cpuMicrosPerOp / direct.cpuMicrosPerOp;
    const bound = bounds[row.workload]!;
    print(`${cellOf(row)}: CPU ${ratio.toFixed(2)} × direct's, bound ${bound.toFixed(2)} ×`);
    if (!(ratio <= bound)) process.exitCode = 1;
  }
  if (process.exitCode) throw new Error("the service costs more CPU than the bound allows");
} catch (error) {
  process.stderr.write(`guard: ${error instanceof Error ? error.message : error}\n`);
  process.exitCode ||= 1;
}
