/** `npm run soak`: the service under a mixed load with everything that goes wrong, for long. */
import { setTimeout as sleep } from "node:timers/promises";
import { parseArgs } from "node:util";
import type { Environment } from "./environment.js";
import { startServer } from "./run_processes.js";
import { type SoakLoad, startLoad, type Tally } from "./soak_load.js";
import { type Sample, startWatch, type Watch } from "./soak_watch.js";
import { withEnvironment } from "./with_environment.js";

const usage = `npm run soak -- [flags]
  --minutes N          how long the load lasts (10)
  --in-flight N        operations at a time (32)`;

const poolSize = 8;
// Short, so that every session moves many times.
const sessionAge = "20s";
const sampleMs = 1_000;
const lineMs = 10_000;
/** Within which the service has let go of everything after the last client went. */
const quietMs = 20_000;
/** Memory is flat when it grows by no more than a tenth and this. */
const slackMb = 16;
/** A shorter soak is all warming up, and tells nothing about memory. */
const memoryMinutes = 5;

const print = (line: string) => process.stdout.write(`${line}\n`);

interface Plan {
  minutes: number;
  inFlight: number;
}

function readPlan(args: string[]): Plan {
  const { values } = parseArgs({
    args,
    options: {
      minutes: { type: "string", default: "10" },
      "in-flight": { type: "string", default: "32" },
    },
  });
  const number = (name: "minutes" | "in-flight", greatest: number) => {
    const value = Number(values[name]);
    if (value > 0 && value <= greatest) return value;
    throw new Error(`--${name} takes a number above 0 to ${greatest}, not "${values[name]}"`);
  };
  return { minutes: number("minutes", 1440), inFlight: Math.ceil(number("in-flight", 1000)) };
}

/** Runs the load and returns what is wrong with the service afterwards, a sentence each. */
async function soak({ minutes, inFlight }: Plan, environment: Environment): Promise<string[]> {
  const databaseUrl = environment.databaseUrl("connect");
  const flags = ["--pool-size", String(poolSize), "--session-age", sessionAge];
  // What was given up is no news.
  flags.push("--log-level", "warn");
  const server = await startServer("connect", databaseUrl, flags);
  if (!server) throw new Error("there is no service");
  const watch = await startWatch(server.pid, databaseUrl);
  const start = await watch.sample();
  print(`service ${server.pid}, ${minutes} minutes, ${inFlight} in flight, pool ${poolSize}`);
  print(toLine("start", undefined, start));
  const load = await startLoad(server.url, databaseUrl, inFlight);
  const samples = await watchLoad(watch, load, minutes * 60_000);
  await load.stop();
  const end = await untilQuiet(watch, start);
  print(toLine("end", load.tally, end));
  await watch.close();
  const failures = [
    ...judge(start, samples, end, load.tally),
    ...(minutes < memoryMinutes ? [] : judgeMemory(samples)),
  ];
  if (server.said() !== "") failures.push(`the service's log says: ${server.said()}`);
  return failures;
}

async function watchLoad(watch: Watch, load: SoakLoad, durationMs: number): Promise<Sample[]> {
  const samples: Sample[] = [];
  const started = performance.now();
  let nextLine = lineMs;
  for (let elapsed = 0; elapsed < durationMs; elapsed = performance.now() - started) {
    await sleep(Math.min(sampleMs, durationMs - elapsed));
    const sample = await watch.sample();
    samples.push(sample);
    if (performance.now() - started < nextLine) continue;
    print(toLine(`${Math.round(nextLine / 1000)} s`, load.tally, sample));
    nextLine += lineMs;
  }
  return samples;
}

/** Waits until the service has let go of everything, or has had the time to. */
async function untilQuiet(watch: Watch, start: Sample): Promise<Sample> {
  const limit = performance.now() + quietMs;
  for (;;) {
    const sample = await watch.sample();
    const isQuiet = sample.fds <= start.fds + poolSize && sample.active === 0;
    if (isQuiet || performance.now() > limit) return sample;
    await sleep(500);
  }
}

function judge(start: Sample, samples: readonly Sample[], end: Sample, tally: Tally): string[] {
  const most = Math.max(...[...samples, end].map(({ connections }) => connections));
  const checks: [failed: boolean, sentence: string][] = [
    [tally.operations === 0, "nothing was done"],
    [
      tally.errors.length > 0,
      `${tally.errors.length} operations failed that must not: ${tally.errors.slice(0, 3).join("\n")}`,
    ],
    [
      Math.abs(end.fds - start.fds) > poolSize,
      `the service holds ${end.fds} file descriptors; it began with ${start.fds}`,
    ],
    [end.active > 0, `${end.active} statements still run`],
    [end.idleInTransaction > 0, `${end.idleInTransaction} transactions are left open`],
    [most > poolSize, `${most} connections to Postgres, with a pool of ${poolSize}`],
    [end.rows > 0, `${end.rows} rows are left of threads that were deleted`],
  ];
  return checks.filter(([failed]) => failed).map(([, sentence]) => sentence);
}

/** Compares the second fifth of the load, the first being for warming up, with the last. */
function judgeMemory(samples: readonly Sample[]): string[] {
  const fifth = Math.floor(samples.length / 5);
  const early = medianMb(samples.slice(fifth, 2 * fifth));
  const late = medianMb(samples.slice(-fifth));
  print(`memory: median ${mb(early)} in the second fifth, ${mb(late)} in the last`);
  return late > early * 1.1 + slackMb ? [`memory grew from ${mb(early)} to ${mb(late)}`] : [];
}

const mb = (value: number) => `${Math.round(value)} MB`;

function medianMb(samples: readonly Sample[]): number {
  const sorted = samples.map(({ rssMb }) => rssMb).sort((a, b) => a - b);
  return sorted[Math.floor(sorted.length / 2)] ?? 0;
}

function toLine(when: string, tally: Tally | undefined, sample: Sample): string {
  const { operations = 0, givenUp = 0, errors = [] } = tally ?? {};
  return [
    `${when}:`.padEnd(7),
    `${operations} operations, ${givenUp} given up, ${errors.length} errors;`,
    `RSS ${mb(sample.rssMb)}, ${sample.fds} fds (${sample.sockets} sockets);`,
    `Postgres ${sample.connections} connections, ${sample.active} active,`,
    `${sample.idleInTransaction} idle in transaction, ${sample.rows} rows`,
  ].join(" ");
}

if (process.argv.includes("--help")) {
  print(usage);
} else {
  try {
    const plan = readPlan(process.argv.slice(2));
    // Postgres as it comes: durable, and with autovacuum, which the deleted rows need.
    const work = (environment: Environment) => soak(plan, environment);
    const failures = await withEnvironment(["connect"], plan.minutes + 3, work, {});
    for (const sentence of failures) process.stderr.write(`soak: ${sentence}\n`);
    process.exitCode = failures.length > 0 ? 1 : 0;
    if (failures.length === 0) print("soak: all is as it was");
  } catch (error) {
    process.stderr.write(`soak: ${error instanceof Error ? error.message : error}\n`);
    process.exitCode ||= 1;
  }
  // After an interruption the load still tries to reach what has been stopped.
  process.exit();
}
