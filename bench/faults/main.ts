/** `npm run test:faults`: real processes, everything that goes wrong, and a judge of what agents were told. */
import { writeFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { createRandom } from "../../src/testing/random.js";
import type { Fault } from "./faults.js";
import { createReport } from "./report.js";
import { runRound } from "./round.js";
import { startWorld } from "./world.js";
import { type Kind, kindsOf } from "./worlds.js";

const usage = `npm run test:faults -- [flags]
  --short              the most telling faults, at most three minutes
  --minutes N          how long to go on (10)
  --only NAME,…        faults whose names begin so; --list shows them
  --world NAME         only this kind of world
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
      world: { type: "string" },
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
    const value = Number(values[name] ?? (values.short ? 1.5 : 10));
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

async function main(): Promise<number> {
  const flags = readFlags();
  const kinds = kindsOf(flags.short);
  if (flags.help || flags.list) {
    for (const { name, faults } of flags.list ? kinds : []) {
      print(`${name}\n${faults.map((fault) => `  ${fault.name}`).join("\n")}`);
    }
    if (flags.help) print(usage);
    return 0;
  }
  const random = createRandom(flags.seed);
  print(`seed ${flags.seed}, ${flags.servers} servers, ${flags.agents} agents`);
  const report = createReport(print);
  let number = 0;
  for (const kind of chosen(kinds, flags)) {
    if (kind.missing !== undefined) {
      print(`left out, ${kind.name}: ${kind.missing}`);
      continue;
    }
    print(`${kind.name}:`);
    const world = await startWorld({
      ...kind.plan,
      servers: kind.servers ?? flags.servers,
      dist: flags.dist,
      flags: ["--log-level", "warn", ...(kind.plan.flags ?? [])],
    });
    const interrupt = () => void world.stop(false).finally(() => process.exit(130));
    process.once("SIGINT", interrupt).once("SIGTERM", interrupt);
    const before = report.violations();
    try {
      const until = performance.now() + flags.minutes * kind.share * 60_000;
      // Each fault in turn, in another order each time.
      let queue: Fault[] = [];
      do {
        const round: Fault[] = [];
        while (round.length < flags.faultsInARound) {
          if (queue.length === 0) queue = shuffle(kind.faults, random);
          round.push(queue.pop()!);
        }
        report.add(await runRound(world, { ...flags, number: number++, faults: round, random }));
      } while (performance.now() < until && report.violations() < 100);
      report.look(world);
    } finally {
      process.off("SIGINT", interrupt).off("SIGTERM", interrupt);
      const isKept = report.violations() > before;
      await world.stop(isKept);
      if (isKept) print(`kept for a look: ${world.folder}; the seed was ${flags.seed}`);
    }
  }
  report.close();
  if (flags.report) writeFileSync(flags.report, JSON.stringify(report.totals(), undefined, 2));
  return report.violations() > 0 ? 1 : 0;
}

/** The kinds with a fault that is asked for, and only those faults; their shares make a whole. */
function chosen(kinds: readonly Kind[], { only, world }: ReturnType<typeof readFlags>): Kind[] {
  const names = only?.split(",") ?? [""];
  const left = kinds
    .filter(({ name }) => world === undefined || name === world)
    .map((kind) => ({
      ...kind,
      faults: kind.faults.filter(({ name }) => names.some((begin) => name.startsWith(begin))),
    }))
    .filter(({ faults }) => faults.length > 0);
  if (left.length === 0) throw new Error("no fault is called so; --list shows them");
  const whole = left.reduce((sum, { share }) => sum + share, 0);
  return left.map((kind) => ({ ...kind, share: kind.share / whole }));
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
