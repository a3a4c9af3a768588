/** `npm run test:planted`: shows of each planted bug which rule of the checker finds it. */
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import path from "node:path";
import { parseArgs } from "node:util";
import { startEmbedded } from "../../src/store/embedded.js";
import { checkHistories, type Violation } from "./check.js";
import { type Bug, bugs } from "./planted_bugs.js";
import { Agent, runLoad } from "./planted_load.js";
import { plant, startWorld } from "./planted_world.js";

const usage = `npm run test:planted -- [flags]
  --only TEXT       only bugs whose names contain it; those of "nothing planted" are not to be found
  --seconds N       how long a bug may hide (20)`;

const roundMs = 3_000;
const timeoutMs = 2_000;
/** Too short for a put while the tables are locked. */
const hastyMs = 250;

const print = (line: string) => process.stdout.write(`${line}\n`);

/** The first violations that a bug leads to within the time, and the operations it took. */
async function run(
  bug: Bug,
  postgresUrl: string,
  seconds: number,
): Promise<{ found: Violation[]; operations: number }> {
  const world = await startWorld(await plant(bug), postgresUrl, bug.fault);
  const until = performance.now() + seconds * 1000;
  let operations = 0;
  try {
    for (let round = 0; performance.now() < until && !isInterrupted; round++) {
      const agents = [0, 1, 2].map(
        (i) => new Agent(world.client, world.url, `a${round}.${i}`, timeoutMs),
      );
      const hasty = new Agent(world.client, world.url, `hasty${round}`, hastyMs);
      const prefix = `r${round}-`;
      await runLoad(agents, hasty, prefix, roundMs);
      const events = [...agents, hasty].flatMap((agent) => agent.events);
      operations += events.length / 2;
      const found = checkHistories(events, await world.rows(prefix));
      await Promise.all([...agents, hasty].map((agent) => agent.end()));
      if (found.length > 0) return { found, operations };
    }
    return { found: [], operations };
  } finally {
    await world.stop();
  }
}

const { values } = parseArgs({
  options: {
    only: { type: "string", default: "" },
    seconds: { type: "string", default: "20" },
    help: { type: "boolean" },
  },
});
if (values.help) {
  print(usage);
  process.exit(0);
}
/** The same trouble, and nothing to be found. */
const controls: Bug[] = [
  { name: "nothing planted", patches: [] },
  { name: "nothing planted, a frozen server", patches: [], fault: "frozen server" },
  { name: "nothing planted, skipped statements", patches: [], fault: "skipped statements" },
];
const chosen = [...controls, ...bugs].filter(({ name }) => name.includes(values.only));
const dataDir = await mkdtemp(path.join(tmpdir(), "checkpointd-planted-data-"));
const settings = { shared_buffers: "64MB", deadlock_timeout: "300ms" };
const postgres = await startEmbedded({ dataDir, onProgress: () => {}, settings });
let wrong = 0;
let isInterrupted = false;
for (const signal of ["SIGINT", "SIGTERM"] as const) {
  process.once(signal, () => {
    isInterrupted = true;
  });
}
try {
  print("| bug | found by | after operations | the first it says |\n|---|---|---|---|");
  for (const bug of chosen) {
    if (isInterrupted) break;
    try {
      const { found, operations } = await run(bug, postgres.databaseUrl, Number(values.seconds));
      if (found.length > 0 === controls.includes(bug)) wrong++;
      const rules = [...new Set(found.map(({ rule }) => rule))].join(", ") || "nothing";
      const [first] = found;
      const says = first ? `${first.explanation} (${first.thread}: ${first.ops.join(" ")})` : "";
      print(`| ${bug.name} | ${rules} | ${Math.round(operations)} | ${says} |`);
    } catch (error) {
      wrong++;
      print(`| ${bug.name} | not run: ${(error as Error).message} | | |`);
    }
  }
} finally {
  await postgres.stop();
  await rm(dataDir, { recursive: true, force: true });
}
print(`${chosen.length - wrong} of ${chosen.length} as they should be`);
process.exit(wrong > 0 ? 1 : 0);
