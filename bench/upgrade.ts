/**
 * `npm run test:upgrade -- --from REF`: builds an older commit, and replaces its servers by those of
 * this one and back, one by one, while agents of both versions work. No call may fail, and all that
 * was acknowledged has to be there: bench/faults/check.ts judges, as it does a fault run.
 */
import { execFile, execFileSync } from "node:child_process";
import { existsSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { fileURLToPath } from "node:url";
import { parseArgs, promisify } from "node:util";
import { createRandom } from "../src/testing/random.js";
import type { Fault } from "./faults/faults.js";
import { createReport } from "./faults/report.js";
import { type FailedCall, runRound } from "./faults/round.js";
import { startWorld, type World } from "./faults/world.js";

const usage = `npm run test:upgrade -- --from REF [flags]
  --from REF        the commit to come from, which is built in a clone: minutes, and a registry
  --from-dist DIR   in its place: the dist folder of one that is built already
  --servers N       replicas (3)
  --in-flight N     calls of each of the six agents at a time (4)
  --rest SECONDS    between one replica and the next (3)
  --seed N          the agents' choices`;

const print = (line: string) => process.stdout.write(`${line}\n`);
const root = fileURLToPath(new URL("../../", import.meta.url));
const ownDist = path.join(root, "dist");

function readFlags() {
  const { values } = parseArgs({
    options: {
      from: { type: "string" },
      "from-dist": { type: "string" },
      servers: { type: "string", default: "3" },
      "in-flight": { type: "string", default: "4" },
      rest: { type: "string", default: "3" },
      seed: { type: "string", default: String(Math.floor(Math.random() * 1e9)) },
      help: { type: "boolean", default: false },
    },
  });
  return values;
}

/** Clones this repository, installs what the commit needs and compiles it. Answers its folder. */
function build(ref: string): string {
  const folder = mkdtempSync(path.join(tmpdir(), "checkpointd-upgrade-"));
  process.on("exit", () => rmSync(folder, { recursive: true, force: true }));
  const run = (program: string, args: readonly string[], cwd = folder) =>
    execFileSync(program, args, { cwd, stdio: ["ignore", "ignore", "inherit"] });
  const commit = execFileSync("git", ["rev-parse", "--verify", `${ref}^{commit}`], { cwd: root });
  run("git", ["clone", "--quiet", "--no-checkout", root, folder], root);
  run("git", ["checkout", "--quiet", "--detach", commit.toString().trim()]);
  print(`building ${ref}`);
  run("npm", ["ci", "--no-audit", "--no-fund", "--loglevel", "error"]);
  run("npm", ["run", "--silent", "build"]);
  return path.join(folder, "dist");
}

/** Not a synchronous one: the way from agents to servers goes through this process. */
async function migrate(world: World, dist: string): Promise<string> {
  const main = path.join(dist, "src/cli/main.js");
  const env = { PATH: process.env.PATH ?? "", DATABASE_URL: world.databaseUrl };
  const { stdout } = await promisify(execFile)(process.execPath, [main, "migrate"], { env });
  return stdout.trim();
}

/** Migrates, and replaces each server as an orchestrator does: SIGTERM, its end, the next. */
function rollTo(name: string, dist: string, restMs: number): Fault {
  return {
    name,
    hurts: "servers",
    async inject({ world }) {
      const applied = await migrate(world, dist);
      await sleep(restMs);
      for (const server of world.servers) {
        server.dist = dist;
        await world.restartServer(server, "SIGTERM", 0);
        await world.untilReady();
        await sleep(restMs);
      }
      return applied;
    },
  };
}

async function main(): Promise<number> {
  const flags = readFlags();
  if (flags.help || (flags.from === undefined) === (flags["from-dist"] === undefined)) {
    print(usage);
    return flags.help ? 0 : 2;
  }
  const from =
    flags.from === undefined ? path.resolve(flags["from-dist"] as string) : build(flags.from);
  if (!existsSync(path.join(from, "src/cli/main.js")))
    throw new Error(`nothing is built in ${from}`);
  const random = createRandom(Number(flags.seed));
  const restMs = Number(flags.rest) * 1000;
  print(`seed ${flags.seed}, ${flags.servers} servers, six agents, three of each version`);
  const world = await startWorld({
    servers: Number(flags.servers),
    dist: from,
    flags: ["--log-level", "warn"],
  });
  const interrupt = () => void world.stop(false).finally(() => process.exit(130));
  process.once("SIGINT", interrupt).once("SIGTERM", interrupt);
  const report = createReport(print);
  let isKept = true;
  try {
    const ways = [{}, { session: false }, { protocol: "grpc" as const }];
    const as = [from, ownDist].flatMap((dist) => ways.map((saver) => ({ dist, saver })));
    const faults: Fault[] = [
      {
        name: "the older version",
        hurts: "servers",
        // The agents have to start before something can stall.
        async inject() {
          await sleep(10_000);
          return undefined;
        },
      },
      rollTo("to this version", ownDist, restMs),
      rollTo("back", from, restMs),
      rollTo("to this version again", ownDist, restMs),
    ];
    const inFlight = Number(flags["in-flight"]);
    const plan = {
      number: 0,
      faults,
      agents: as.length,
      as,
      inFlight,
      seed: Number(flags.seed),
      random,
    };
    const result = await runRound(world, plan);
    report.add(result);
    // An agent that slept longer than its lease, as some do on purpose, is to be refused.
    const unmeant = result.failedCalls.filter(({ what }) => !what.endsWith("LEASE_LOST"));
    // A claim whose answer was lost is not repeated: its caller asks again, as recoverThreads does.
    const isLostClaim = ({ kind, what }: FailedCall) =>
      kind === "claim" && /^(Unavailable|Canceled|Internal)/.test(what);
    const failed = unmeant.filter((call) => !isLostClaim(call));
    print(
      `${unmeant.length - failed.length} claims whose answer was lost, ${failed.length} other calls failed`,
    );
    for (const { agent, kind, what, atMs, tookMs } of failed) {
      const { dist, saver } = as[Number(agent.slice(1))] as (typeof as)[number];
      const version = dist === from ? "the older" : "the newer";
      const way = JSON.stringify(saver);
      print(`FAILED at ${atMs} ms: ${kind} of ${version} saver ${way} after ${tookMs} ms: ${what}`);
    }
    for (const death of world.deaths) print(`VIOLATION: ${death}`);
    report.close();
    isKept = report.violations() + failed.length + world.deaths.length > 0;
  } finally {
    await world.stop(isKept);
    if (isKept) print(`kept for a look: ${world.folder}`);
  }
  return isKept ? 1 : 0;
}

process.exit(await main());
