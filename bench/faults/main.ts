/** `npm run test:faults`: real processes, everything that goes wrong, and a judge of what agents were told. */
import { writeFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { createRandom } from "../../src/testing/random.js";
import { allFaults, type Fault, shortFaults } from "./faults.js";
import { createReport } from "./report.js";
import { runRound } from "./round.js";
import { startWorld, type World } from "./world.js";

const usage = `npm run test:faults -- [flags]
  --short              the most telling faults, at most three minutes
  --minutes N          how long to go on (10)
  --only NAME,…        faults whose names begin so; --list shows them
  --seed N             the same faults in the same order
  --servers N          server processes (2)
  --agents N           agent processes (3)
  --in-flight N        calls of each at a time (16)
  --faults N           faults in a round (4)
  --dist FOLDER        the compiled service and client to try
  --report FILE        where the totals go as JSON`;

const print = (line: string) => process.stdout.write(`${line}\n`);
const ownDist = fileURLToPath(new URL("../../", import.meta.url));

function readFlags() {
  const { values } = parseArgs({
    options: {
      short: { type: "boolean", default: false },
      list: { type: "boolean", default: false },
      help: { type: "boolean", default: false },
      minutes: { type: "string" },
      only: { type: "string" },
      seed: { type: "string", default: String(Math.floor(Math.random() * 1e9)) },
      servers: { type: "string", default: "2" },
      agents: { type: "string", default: "3" },
      "in-flight": { type: "string", default: "16" },
      faults: { type: "string", default: "4" },
      dist: { type: "string", default: ownDist },
      report: { type: "string" },
    },
  });
  const number = (name: "seed" | "servers" | "agents" | "in-flight" | "faults" | "minutes") => {
    const value = Number(values[name] ?? (values.short ? 1.7 : 10));
    if (value >= 0 && value < 1e9) return value;
    throw new Error(`--${name} takes a number, not "${values[name]}"`);
  };
  return {
    ...values,
    minutes: number("minutes"),
    seed: number("seed"),
    servers: number("servers"),
    agents: number("agents"),
    inFlight: number("in-flight"),
    faultsInARound: number("faults"),
    dist: path.resolve(values.dist),
  };
}

function chooseFaults({ short, only }: ReturnType<typeof readFlags>): readonly Fault[] {
  const names = only?.split(",") ?? (short ? shortFaults : [""]);
  const chosen = allFaults.filter(({ name }) => names.some((begin) => name.startsWith(begin)));
  if (chosen.length === 0) throw new Error(`no fault is called ${only}; --list shows them`);
  return chosen;
}

async function main(): Promise<number> {
  const flags = readFlags();
  if (flags.help || flags.list) {
    print(flags.help ? usage : allFaults.map(({ name }) => name).join("\n"));
    return 0;
  }
  const faults = chooseFaults(flags);
  const random = createRandom(flags.seed);
  print(`seed ${flags.seed}, ${flags.servers} servers, ${flags.agents} agents`);
  const report = createReport(print);
  let world: World | undefined;
  let isInterrupted = false;
  process.once("SIGINT", () => {
    isInterrupted = true;
  });
  try {
    world = await startWorld({
      servers: flags.servers,
      dist: flags.dist,
      flags: ["--log-level", "warn"],
    });
    const until = performance.now() + flags.minutes * 60_000;
    // Each fault in turn, in another order each time.
    let queue: Fault[] = [];
    for (let number = 0; performance.now() < until && !isInterrupted; number++) {
      const round: Fault[] = [];
      while (round.length < flags.faultsInARound) {
        if (queue.length === 0) queue = shuffle(faults, random);
        round.push(queue.pop()!);
      }
      report.add(await runRound(world, { ...flags, number, faults: round, random }));
      if (report.violations() > 100) break;
    }
    await report.close(world);
  } finally {
    await world?.stop(report.violations() > 0);
  }
  if (flags.report) writeFileSync(flags.report, JSON.stringify(report.totals(), undefined, 2));
  if (report.violations() > 0)
    print(`kept for a look: ${world?.folder}; the seed was ${flags.seed}`);
  return report.violations() > 0 ? 1 : 0;
}

function shuffle<T>(items: readonly T[], random: (below: number) => number): T[] {
  const left = [...items];
  return items.map(() => left.splice(random(left.length), 1)[0]!);
}

try {
  process.exitCode = await main();
} catch (error) {
  process.stderr.write(`faults: ${error instanceof Error ? error.stack : error}\n`);
  process.exitCode = 1;
}
process.exit();
