/** `npm run test:fuzz`: what hostile clients send, by the descriptors, and what it costs everybody else. */
import { parseArgs } from "node:util";
import { createClient } from "@connectrpc/connect";
import { createConnectTransport } from "@connectrpc/connect-node";
import { CheckpointService, ListView } from "../../gen/checkpointd/v1/checkpoint_service_pb.js";
import { ThreadService } from "../../gen/checkpointd/v1/thread_service_pb.js";
import { createRandom } from "../../src/testing/random.js";
import type { Environment } from "../environment.js";
import { startServer } from "../run_processes.js";
import { startWatch } from "../soak_watch.js";
import { withEnvironment } from "../with_environment.js";
import { createAttack } from "./requests.js";
import { type Answer, send } from "./send.js";

const usage = `npm run test:fuzz -- [flags]
  --requests N   how many (100000)
  --seed N       the same requests in the same order; request I of them is the same in any run
  --from I       begins with request I (0)
  --at-once N    requests at a time (8)`;

/** What no request may take from everybody else. */
const longestWaitMs = 3_000;
const mostRssMb = 1_500;
/** After so many everything that is stored is read in every way. */
const readEvery = 500;
/** What no client is to see: a stack, a statement, a file, a driver's word. */
const internals =
  /\bat \S+:\d+:\d+|node_modules|\/src\/|\bselect \S+ from\b|\bpg_\w+|PostgresError/i;

const print = (line: string) => process.stdout.write(`${line}\n`);

function readFlags() {
  const text = { type: "string" } as const;
  const { values } = parseArgs({
    options: { requests: text, seed: text, from: text, "at-once": text, help: { type: "boolean" } },
  });
  const number = (name: "requests" | "seed" | "from" | "at-once", otherwise: number) => {
    const value = Number(values[name] ?? otherwise);
    if (Number.isInteger(value) && value >= 0 && value < 1e9) return value;
    throw new Error(`--${name} takes a whole number, not "${values[name]}"`);
  };
  return {
    help: values.help ?? false,
    requests: number("requests", 100_000),
    seed: number("seed", Math.floor(Math.random() * 1e9)),
    from: number("from", 0),
    atOnce: Math.max(1, number("at-once", 8)),
  };
}

async function fuzz(
  { requests, seed, from, atOnce }: ReturnType<typeof readFlags>,
  environment: Environment,
): Promise<string[]> {
  const databaseUrl = environment.databaseUrl("connect");
  const server = await startServer("connect", databaseUrl, ["--log-level", "error"]);
  if (!server) throw new Error("there is no service");
  const watch = await startWatch(server.pid, databaseUrl);
  const transport = createConnectTransport({ baseUrl: server.url, httpVersion: "2" });
  const checkpoints = createClient(CheckpointService, transport);
  const threads = createClient(ThreadService, transport);

  const findings: string[] = [];
  const codes = new Map<string, number>();
  const waits: number[] = [];
  let peakMb = 0;
  let over = false;
  /** Another client, which asks for little all the time. */
  const neighbour = (async () => {
    while (!over) {
      const since = performance.now();
      await checkpoints.getTuple({ threadId: "neighbour" }, { timeoutMs: 30_000 });
      waits.push(performance.now() - since);
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
  })();
  neighbour.catch((error) => findings.push(`another client was refused: ${error}`));

  /** Everything that was accepted is there for everybody. */
  async function readAll(at: number): Promise<void> {
    const reads: Record<string, () => Promise<unknown>> = {
      List: () => drain(checkpoints.list({})),
      "List of the metadata": () => drain(checkpoints.list({ view: ListView.METADATA })),
      ListThreads: () => drain(threads.listThreads({ withCounts: true })),
      "a dry PruneThreads": () =>
        drain(threads.pruneThreads({ strategy: { case: "keepLast", value: 1 }, dryRun: true })),
    };
    for (const [name, read] of Object.entries(reads)) {
      await read().catch((error) => findings.push(`after ${at}: ${name} fails: ${error}`));
    }
  }

  const look = (i: number, name: string, { status, text, ms }: Answer) => {
    const code = /"code":\s*"(\w+)"|grpc-status: ?(\d+)/.exec(text);
    const told = code?.[1] ?? code?.[2] ?? `${status}`;
    codes.set(told, (codes.get(told) ?? 0) + 1);
    const say = (what: string) =>
      findings.push(`${i} (${name}): ${what}: ${JSON.stringify(text.slice(0, 300))}`);
    if (internals.test(text)) say("shows what is inside");
    if (told === "internal" || told === "13" || told === "unknown" || told === "2")
      say("is an error of ours");
    if (ms > longestWaitMs * 3) say(`took ${Math.round(ms)} ms`);
  };

  let next = from;
  const attack = async () => {
    while (next < from + requests && findings.length < 20) {
      const i = next++;
      const what = createAttack(createRandom(seed + i * 7919));
      look(i, what.name, await send(server.url, what));
      if (i % readEvery === readEvery - 1) await readAll(i);
      if (i % 50 === 0) peakMb = Math.max(peakMb, (await watch.sample()).rssMb);
      if (i % 5_000 === 4_999) print(`${i + 1} requests, ${Math.round(peakMb)} MB at the most`);
    }
  };
  await Promise.all(Array.from({ length: atOnce }, attack));
  await readAll(next);
  over = true;
  await neighbour.catch(() => {});
  const log = server.said();
  if (/"level":"(error|fatal)"/.test(log)) findings.push(`the log has errors: ${log.slice(-600)}`);
  waits.sort((a, b) => a - b);
  const wait = (share: number) => waits[Math.floor(waits.length * share)] ?? 0;
  if (wait(1 - 1e-9) > longestWaitMs) findings.push(`another client waited ${wait(1 - 1e-9)} ms`);
  if (peakMb > mostRssMb) findings.push(`the service took ${peakMb} MB`);
  await watch.close();
  print(
    `${next - from} requests; answers: ${[...codes].map(([code, n]) => `${code} ${n}`).join(", ")}`,
  );
  print(
    `another client's GetTuple: p50 ${wait(0.5).toFixed(1)} ms, p99 ${wait(0.99).toFixed(1)} ms, ` +
      `longest ${wait(1 - 1e-9).toFixed(0)} ms; memory ${Math.round(peakMb)} MB at the most`,
  );
  return findings;
}

async function drain(messages: AsyncIterable<unknown>): Promise<void> {
  for await (const _ of messages);
}

const flags = readFlags();
if (flags.help) print(usage);
else {
  print(`seed ${flags.seed}`);
  const findings = await withEnvironment(["connect"], 240, (environment) =>
    fuzz(flags, environment),
  );
  for (const finding of findings) print(`FOUND ${finding}`);
  print(findings.length === 0 ? "nothing found" : `${findings.length} found, seed ${flags.seed}`);
  process.exit(findings.length === 0 ? 0 : 1);
}
