/** Runs a plan: for each cell every contender in turn, round after round. */

import type { Contender } from "./contenders.js";
import { cpuOf, peakMemoryOf } from "./cpu.js";
import type { Environment } from "./environment.js";
import type { Stored, Workload } from "./load.js";
import type { Measured } from "./load_agent.js";
import type { Concurrency, Plan, Stage } from "./plan.js";
import { type Round, type Row, toRow } from "./row.js";
import { type Agent, type Server, startAgent, startServer, stopProcess } from "./run_processes.js";
import { findWorkload } from "./workloads.js";

/** A contender's processes in one stage. */
interface Side {
  contender: Contender;
  server: Server | undefined;
  agents: Agent[];
}

/**
 * The rounds of a cell end early, after two at the least, when they have taken this many times
 * what was planned: single operations can outlast a round many times over.
 */
const patience = 2;

/** How long a contender runs uncounted, with new processes and before each further cell. */
const coldSeconds = 4;
const warmSeconds = 1.5;

/** Runs everything; `onRow` hears of each row as soon as it is there. */
export async function runPlan(
  plan: Plan,
  environment: Environment,
  onRow: (row: Row) => void,
): Promise<Row[]> {
  const rows: Row[] = [];
  for (const stage of plan.stages) {
    // Processes are new for each workload and number of processes: nothing that a workload
    // leaves in a heap or in compiled code is there in the next, and memory can be compared.
    const counts = new Set(stage.concurrencies.map(([, processes]) => processes));
    for (const processes of counts) {
      // The most in flight first: V8 has compiled what matters when latency alone counts.
      const concurrencies = stage.concurrencies
        .filter((each) => each[1] === processes)
        .sort(([a], [b]) => b - a);
      const sides = await startSides(plan, environment, processes);
      try {
        for (const [index, concurrency] of concurrencies.entries()) {
          const warmUp = index === 0 ? coldSeconds : warmSeconds;
          for (const row of await runCell(plan, environment, stage, concurrency, sides, warmUp)) {
            rows.push(row);
            onRow(row);
          }
        }
      } finally {
        await stopSides(sides);
      }
    }
  }
  return rows;
}

async function startSides(plan: Plan, environment: Environment, processes: number) {
  const sides: Side[] = [];
  for (const contender of plan.contenders) {
    const databaseUrl = environment.databaseUrl(contender);
    const server = await startServer(contender, databaseUrl);
    const agents = Array.from({ length: processes }, startAgent);
    const target = { databaseUrl, url: server?.url };
    await tellAll(agents, () => ({ do: "connect", contender, target }));
    sides.push({ contender, server, agents });
  }
  return sides;
}

async function stopSides(sides: Side[]): Promise<void> {
  for (const { agents, server } of sides) {
    await Promise.all(agents.map((agent) => agent.tell({ do: "close" }).catch(() => {})));
    await Promise.all(agents.map((agent) => stopProcess(agent.pid)));
    if (server) await stopProcess(server.pid);
  }
}

function tellAll<T>(agents: Agent[], command: (index: number) => Parameters<Agent["tell"]>[0]) {
  return Promise.all(agents.map((agent, index) => agent.tell<T>(command(index))));
}

async function runCell(
  plan: Plan,
  environment: Environment,
  { workload: name }: Stage,
  [inFlight, processes]: Concurrency,
  sides: Side[],
  warmUpSeconds: number,
): Promise<Row[]> {
  const workload = findWorkload(name);
  for (const { contender, agents } of sides) {
    if (contender !== "memory") await environment.prepare(contender, workload.seed ?? []);
    await tellAll(agents, (index) => ({
      do: "open",
      workload: name,
      name: `${name}-${inFlight}-${index}`,
      slots: Math.floor((inFlight + index) / processes),
    }));
    await tellAll(agents, () => ({ do: "run", seconds: warmUpSeconds, warmUp: true }));
  }
  const rounds = new Map(sides.map((side) => [side, [] as Round[]]));
  const budgetMs = plan.rounds * plan.seconds * sides.length * patience * 1000;
  const started = performance.now();
  for (let round = 0; round < plan.rounds; round += 1) {
    if (round >= 2 && performance.now() - started > budgetMs) break;
    for (const side of sides) {
      // After the others' rounds caches are cold and idle connections gone. Where operations
      // are long that is lost in them.
      const again = { do: "run", seconds: plan.seconds / 10, warmUp: true } as const;
      if (!workload.slow) await tellAll(side.agents, () => again);
      rounds.get(side)!.push(await runRound(environment, side, plan.seconds));
    }
  }
  const rows: Row[] = [];
  for (const side of sides) {
    const { server, agents, contender } = side;
    const peakMemory = {
      client: Math.max(...agents.map((agent) => peakMemoryOf(agent.pid))),
      server: server ? peakMemoryOf(server.pid) : null,
    };
    await verify(environment, workload, side);
    const cell = { workload: name, inFlight, processes, contender };
    rows.push(toRow(cell, workload, rounds.get(side)!, peakMemory));
  }
  return rows;
}

async function runRound(environment: Environment, side: Side, seconds: number): Promise<Round> {
  const { agents, server, contender } = side;
  const read = () => ({
    agent: agents.reduce((sum, agent) => sum + cpuOf(agent.pid), 0),
    service: server ? cpuOf(server.pid) : 0,
    postgres: environment.cpuMicros(),
  });
  // Read while nothing runs, before and after: all of the work is counted, and nothing else.
  const before = read();
  const measured = await tellAll<Measured>(agents, () => ({ do: "run", seconds, warmUp: false }));
  const after = read();
  return {
    operations: measured.reduce((sum, each) => sum + each.operations, 0),
    elapsedMs: Math.max(...measured.map((each) => each.elapsedMs)),
    latenciesMs: measured.flatMap((each) => each.latenciesMs),
    firstTupleMs: measured.flatMap((each) => each.firstTupleMs),
    cpuMicros: {
      agent: after.agent - before.agent,
      service: after.service - before.service,
      postgres: after.postgres - before.postgres,
    },
    connections: contender === "memory" ? 0 : await environment.connections(contender),
  };
}

async function verify(environment: Environment, workload: Workload, side: Side): Promise<void> {
  const stored = await tellAll<Stored>(side.agents, () => ({ do: "verify" }));
  if (side.contender === "memory") return;
  const found = await environment.count(side.contender);
  for (const table of Object.keys(found) as (keyof Stored)[]) {
    if (!stored.every((each) => each[table] !== undefined)) continue;
    // A seeded thread is one and the same for all processes.
    const expected = stored.reduce((sum, each) => sum + each[table]!, 0);
    const rows = workload.seed ? stored[0]![table] : expected;
    if (found[table] === rows) continue;
    throw new Error(
      `${side.contender} has ${found[table]} rows in ${table} after ${workload.name}, not ${rows}`,
    );
  }
}
