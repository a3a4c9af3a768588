/** One round: agents work, things go wrong, all comes to rest, and what was told is judged. */
import { rmSync } from "node:fs";
import path from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { AgentPlan } from "./agent.js";
import { type Event, readEvents } from "./call_history.js";
import { checkHistories, type Violation } from "./check.js";
import type { Fault } from "./faults.js";
import { readRows } from "./read_rows.js";
import type { World } from "./world.js";

/** What a round is made of. */
export interface RoundPlan {
  number: number;
  faults: readonly Fault[];
  agents: number;
  /** What each of them is, where they are not all alike. */
  as?: readonly Pick<AgentPlan, "dist" | "saver">[];
  inFlight: number;
  seed: number;
  /** Whole numbers below the one given. */
  random: (below: number) => number;
}

/** What came of one fault. */
export interface Injected {
  name: string;
  note: string | undefined;
  /** Without an acknowledgement of anybody, while it lasted and two seconds after. */
  worstStallMs: number;
  /** Calls that failed in that time. */
  failed: number;
}

/** A call that failed. */
export interface FailedCall {
  agent: string;
  kind: string;
  what: string;
  /** Since the round began, and how long the call took. */
  atMs: number;
  tookMs: number;
}

/** What came of a round. */
export interface RoundResult {
  number: number;
  injected: Injected[];
  acknowledged: number;
  failed: number;
  /** How many of each code and reason. */
  failures: Record<string, number>;
  failedCalls: FailedCall[];
  violations: Violation[];
}

const timeoutMs = 30_000;
/** Within which a fault ends. */
const faultMs = 90_000;
/** How long a fault is looked at after its end. */
const afterMs = 2_000;
const quietMs = 60_000;
const now = () => Number(process.hrtime.bigint()) / 1e6;

/** Of each third agent's ways to call one, round by round. */
const ways = [{}, { session: false }, { protocol: "grpc" as const }];

/** Runs a round on a world that is well, and leaves it well and empty. */
export async function runRound(world: World, plan: RoundPlan): Promise<RoundResult> {
  const { number, faults, random } = plan;
  const prefix = `r${number}`;
  const files: string[] = [];
  const start = (name: string, index: number) => {
    const history = path.join(world.folder, `${prefix}-${files.length}-${name}.jsonl`);
    files.push(history);
    return world.startAgent({
      name,
      history,
      prefix,
      inFlight: plan.inFlight,
      // It is told when it is over; this is for one that nobody tells.
      seconds: 300,
      timeoutMs,
      seed: random(2 ** 31),
      saver: index === plan.agents - 1 ? ways[number % ways.length]! : {},
      ...plan.as?.[index],
    });
  };
  const agents = Array.from({ length: plan.agents }, (_, i) => start(`a${i}`, i));
  let replaced = 0;
  const scene = {
    world,
    random: () => random(1_000_000) / 1_000_000,
    replaceAgent: () => {
      agents[1]?.kill("SIGKILL");
      agents[1] = start(`b${replaced++}`, 1);
    },
  };
  const windows: { fault: Fault; note: string | undefined; from: number; to: number }[] = [];
  const hung: Violation[] = [];
  const began = now();
  const last: Partial<Record<NonNullable<Fault["hurts"]>, Promise<void>>> = {};
  const inject = async (fault: Fault) => {
    const from = now();
    const note = await Promise.race([
      fault.inject(scene).catch((error) => `failed: ${error.message}`),
      sleep(faultMs, "hung"),
    ]);
    if (note === "hung") {
      const explanation = `the fault ${fault.name} did not end within ${faultMs} ms`;
      hung.push({ rule: "deadlines", thread: "", ops: [], explanation });
    }
    windows.push({ fault, note, from, to: now() });
  };
  const inTurn = (fault: Fault): Promise<void> => {
    if (!fault.hurts) return inject(fault);
    const done = (last[fault.hurts] ?? Promise.resolve()).then(() => inject(fault));
    last[fault.hurts] = done;
    return done;
  };
  await sleep(1_500);
  const left = [...faults];
  while (left.length > 0) {
    // One by one, and two or three at a time.
    const together = left.splice(0, 1 + random(3));
    await Promise.all(together.map(inTurn));
    await sleep(300 + random(700));
  }
  await sleep(afterMs);
  const violations = [...hung, ...(await end(world, agents))];
  const events = function* (): Generator<Event> {
    for (const file of files) yield* readEvents(file);
  };
  const rows = await readRows(world.databaseUrl, prefix);
  violations.push(...checkHistories(events(), rows));
  const answers: { at: number; ok: boolean }[] = [];
  const failures: Record<string, number> = {};
  const failedCalls: FailedCall[] = [];
  const invoked = new Map<string, { kind: string; at: number }>();
  for (const event of events()) {
    if (event.e === "invoke") invoked.set(`${event.agent}/${event.op}`, event);
    if (event.e !== "answer") continue;
    const ok = event.outcome === "ok";
    answers.push({ at: event.at, ok });
    const isOdd = /^(Internal|Unknown)$/.test(event.code ?? "");
    const what = `${event.code} ${event.reason ?? (isOdd ? event.message : "")}`.trim();
    if (ok) continue;
    failures[what] = (failures[what] ?? 0) + 1;
    const { kind = "", at = event.at } = invoked.get(`${event.agent}/${event.op}`) ?? {};
    const times = { atMs: Math.round(event.at - began), tookMs: Math.round(event.at - at) };
    failedCalls.push({ agent: event.agent, kind, what, ...times });
  }
  answers.sort((a, b) => a.at - b.at);
  if (violations.length === 0) for (const file of files) rmSync(file, { force: true });
  await world.sql("truncate checkpoints, checkpoint_blobs, checkpoint_writes, checkpointd_claims");
  return {
    number,
    injected: windows.map(({ fault, note, from, to }) => {
      const until = to + afterMs;
      const within = answers.filter(({ at }) => at >= from && at <= until);
      const acknowledged = [from, ...within.filter(({ ok }) => ok).map(({ at }) => at), until];
      const gaps = acknowledged.slice(1).map((at, i) => at - acknowledged[i]!);
      return {
        name: fault.name,
        note,
        worstStallMs: Math.round(Math.max(...gaps)),
        failed: within.filter(({ ok }) => !ok).length,
      };
    }),
    acknowledged: answers.filter(({ ok }) => ok).length,
    failed: answers.filter(({ ok }) => !ok).length,
    failures,
    failedCalls,
    violations,
  };
}

type Agents = ReturnType<World["startAgent"]>[];

/** Lets agents finish and everything come to rest; what does not is a violation. */
async function end(world: World, agents: Agents): Promise<Violation[]> {
  const violations: Violation[] = [];
  const report = (explanation: string) =>
    violations.push({ rule: "deadlines", thread: "", ops: [], explanation });
  for (const agent of agents) agent.stdin?.end();
  for (const agent of agents) {
    const ended = new Promise<boolean>((resolve) => {
      if (agent.exitCode !== null) resolve(true);
      agent.once("exit", () => resolve(true));
    });
    if (await Promise.race([ended, sleep(timeoutMs + 15_000, false)])) {
      if (agent.exitCode !== 0) report(`an agent ended with ${agent.signalCode ?? agent.exitCode}`);
    } else {
      report("an agent's calls did not end by their deadline");
      agent.kill("SIGKILL");
    }
  }
  await world.untilReady().catch((error) => report(error.message));
  const until = performance.now() + quietMs;
  for (;;) {
    const [row] = await world.sql<{ busy: number }>(
      `select count(*)::int as busy from pg_stat_activity
       where application_name = 'checkpointd' and state <> 'idle'`,
    );
    if (row?.busy === 0) return violations;
    if (performance.now() > until) {
      report(`${row?.busy} connections of the servers are not idle a minute after the last call`);
      return violations;
    }
    await sleep(100);
  }
}
